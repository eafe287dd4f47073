"""The journal and its migrations, on a real SQLite."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa

from keynet_server._database import migrate, newest_revision, open_database, revision_of
from keynet_server._errors import DeploymentUnknown, EventUnknown, JournalUnavailable
from keynet_server._journal import SHOWN_DEPLOYMENTS, Journal
from keynet_server._records import Request
from keynet_server._tables import UtcTime, metadata


def received(publishing, journal, **options):
    event = publishing.publish(**options).to_event()
    assert journal.receive(event)
    return event


def request_for(event):
    data = event.data
    return Request(
        event_id=event.id,
        model=data["model"],
        digest=data["digest"],
        model_version=data["model_version"],
        run_id=data["run_id"],
        requested_by=event.source,
    )


@pytest.fixture
def database(home):
    database = open_database(f"sqlite:///{home / 'other.db'}")
    yield database
    database.dispose()


def test_migrations_leave_the_tables_that_the_code_uses(database, home):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    migrate(database, home / "lock")
    with database.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrations_go_up_and_down_with_data(database, home, publishing):
    lock = home / "lock"
    migrate(database, lock)
    journal = Journal(database)
    deployment = journal.begin(request_for(received(publishing, journal, run_id="r1")))
    journal.deployed(deployment, "loaded")
    migrate(database, lock, "0001")
    assert revision_of(database) == "0001"
    with database.connect() as connection:
        assert connection.execute(sa.text("SELECT model, state FROM deployments")).all() == [("times", "deployed")]
    migrate(database, lock)
    assert revision_of(database) == newest_revision()
    assert journal.live("times").restores is None
    assert journal.live("times").run_id == "r1"
    migrate(database, lock, "base")
    assert revision_of(database) is None
    migrate(database, lock)
    assert journal.models() == []


def test_two_starts_at_once_migrate_once(home):
    script = (
        "import sys, pathlib; from keynet_server._database import *; home = pathlib.Path(sys.argv[1]);"
        "migrate(open_database(f'sqlite:///{home}/new.db'), home / 'lock')"
    )
    home.mkdir()
    starts = [subprocess.Popen([sys.executable, "-c", script, str(home)]) for _ in range(3)]
    assert [start.wait(60) for start in starts] == [0, 0, 0]


def test_tables_of_a_newer_keynet_are_left_alone(database, home):
    migrate(database, home / "lock")
    with database.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(JournalUnavailable, match="9999"):
        migrate(database, home / "lock")


def test_sqlite_is_durable_and_checks_references(database):
    with database.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


@pytest.mark.parametrize("url", ["no url at all", "unheardof://x", "postgresql+nodriver://x"])
def test_a_database_that_cannot_be_opened_is_told_with_a_next_step(url):
    with pytest.raises(JournalUnavailable) as raised:
        open_database(url)
    assert "KEYNET_DATABASE_URL" in raised.value.hint


def test_a_database_that_is_no_database_is_unavailable(tmp_path):
    (tmp_path / "keynet.db").write_bytes(b"not a database, whatever its name says" * 100)
    database = open_database(f"sqlite:///{tmp_path / 'keynet.db'}")
    with pytest.raises(JournalUnavailable, match="not a database"):
        revision_of(database)


def test_an_event_is_written_down_once(publishing, journal):
    event = received(publishing, journal)
    assert journal.receive(event) is False
    assert [each.id for each in journal.unfinished()] == [event.id]
    assert journal.event(event.id).received_at.utcoffset() == timedelta(0)
    assert "body" not in journal.event(event.id).to_dict()


def test_unfinished_events_come_in_the_order_they_were_received(publishing, journal):
    ids = [received(publishing, journal, factor=float(factor)).id for factor in (3, 1, 2)]
    assert [each.id for each in journal.unfinished()] == ids
    journal.finish(ids[0], "failed", "x" * 9000)
    assert [each.id for each in journal.unfinished()] == ids[1:]
    assert len(journal.event(ids[0]).reason) == 4000


def test_what_is_not_known_says_so(journal):
    with pytest.raises(EventUnknown):
        journal.event("nope")
    with pytest.raises(DeploymentUnknown):
        journal.history("nope")
    with pytest.raises(DeploymentUnknown):
        journal.find("nope", 1)
    assert journal.live("nope") is None


def test_a_deployment_begun_twice_for_one_event_is_one(publishing, journal):
    request = request_for(received(publishing, journal))
    assert journal.begin(request) == journal.begin(request)


def test_models_show_what_is_live_and_what_was_tried_last(publishing, journal):
    first, second = (journal.begin(request_for(received(publishing, journal, factor=f))) for f in (1.0, 2.0))
    journal.deployed(first, "loaded")
    journal.failed(second, "no", None)
    [state] = journal.models()
    assert (state.live.number, state.last.number, state.last.state) == (1, 2, "failed")
    assert journal.find("times", 2).reason == "no"
    assert [each.number for each in journal.recent()] == [2, 1]


def test_times_are_aware_and_a_naive_one_is_refused():
    kept = UtcTime()
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert kept.process_bind_param(noon, None) == datetime(2026, 1, 1, 10, tzinfo=UTC)
    with pytest.raises(ValueError, match="time zone"):
        kept.process_bind_param(noon.replace(tzinfo=None), None)


@pytest.mark.parametrize(
    ("version", "served"),
    [("7", "7"), ("007", "7"), (None, "3"), ("0", "3"), ("-1", "3"), ("champion", "3"), ("²", "3"), ("9" * 30, "3")],
)
def test_only_a_positive_registry_version_is_served_under_its_number(publishing, journal, version, served):
    for factor in (1.0, 2.0):
        journal.begin(request_for(received(publishing, journal, factor=factor)))
    event = received(publishing, journal, factor=3.0, version=version)
    assert journal.begin(request_for(event)).served_version == served


def test_a_number_nobody_chose_is_above_every_version_that_was_served(publishing, journal):
    versions = []
    for factor, version in ((1.0, "7"), (2.0, None), (3.0, "3"), (4.0, None)):
        event = received(publishing, journal, factor=factor, version=version)
        versions.append(journal.begin(request_for(event)).served_version)
    assert versions == ["7", "8", "3", "9"]


def test_a_failure_that_comes_too_late_changes_nothing(publishing, journal):
    event = received(publishing, journal)
    deployment = journal.begin(request_for(event))
    journal.deployed(deployment, "loaded")
    journal.failed(deployment, "too late", None)
    assert journal.live("times").reason is None
    assert journal.event(event.id).outcome == "deployed"


def test_a_long_history_says_that_it_is_longer(publishing, journal):
    event = received(publishing, journal)
    for number in range(SHOWN_DEPLOYMENTS + 1):
        assert journal.receive(replace(event, id=str(number)))
        journal.begin(replace(request_for(event), event_id=str(number)))
        if number == SHOWN_DEPLOYMENTS - 1:
            assert journal.newest("times").to_dict()["truncated"] is False
    told = journal.newest("times").to_dict()
    assert (len(told["deployments"]), told["deployments"][0]["number"]) == (SHOWN_DEPLOYMENTS, SHOWN_DEPLOYMENTS + 1)
    assert told["truncated"] is True
