"""Many events that wait: what a round costs, who has a turn, and a clock that does not matter."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from keynet_core import Outbox
from keynet_server import _worker
from keynet_server._database import migrate
from keynet_server._deployer import Deployer
from keynet_server._errors import JournalUnavailable
from keynet_server._journal import Journal
from keynet_server._tables import events
from keynet_server._turns import MAX_POSTPONED
from keynet_server._worker import EVENTS_AT_ONCE, Worker

MANY = 10_000


@pytest.fixture
def journal(database, tmp_path):
    migrate(database, tmp_path / "migrate.lock")
    return Journal(database)


@pytest.fixture
def worker(deployer, home, publishing):
    return Worker(deployer, Outbox(home / "outbox"), publishing.store, tick_s=0.02)


@pytest.fixture
def now(monkeypatch):
    """Hold the clock that waits are counted with."""
    told = [0.0]
    monkeypatch.setattr(_worker.time, "monotonic", lambda: told[0])
    return told


@pytest.fixture
def fill(database, publishing):
    """Have many events wait, all at once."""

    def fill(count, name_of, package=None):
        published = {}
        rows = []
        for number in range(count):
            name = name_of(number)
            source = package or name  # with a package of another name, nobody may get as far as to fetch it
            if source not in published:
                published[source] = publishing.publish(source).to_event()
            event = published[source]
            event = replace(event, id=f"{name}-{number}", subject=name, data=event.data | {"model": name})
            rows.append(
                {
                    "id": event.id,
                    "type": event.type,
                    "subject": name,
                    "source": "/x",
                    "received_at": datetime.now(UTC),
                    "body": event.to_json().decode(),
                }
            )
        with database.begin() as connection:
            connection.execute(events.insert(), rows)
        return [row["id"] for row in rows]

    return fill


@contextmanager
def counting(database):
    """Count the statements, and the events, that the database is asked for."""
    counts = {"statements": 0, "bodies": 0}

    def note(_connection, _cursor, statement, *_rest):
        counts["statements"] += 1
        counts["bodies"] += "events.body" in statement

    sa.event.listen(database, "before_cursor_execute", note)
    yield counts
    sa.event.remove(database, "before_cursor_execute", note)


def waiting(database):
    with database.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).where(events.c.outcome.is_(None))).scalar()


def test_a_round_among_many_models_that_all_have_to_wait_costs_little(worker, fill, database, engine, now):
    fill(MANY, lambda number: f"model-{number}", package="model-0")
    engine.down = True
    for _ in range(5):
        with counting(database) as counts:
            worker.run_once()
        assert counts["statements"] < 40 * MAX_POSTPONED
        now[0] += 60.0
    assert waiting(database) == MANY
    engine.down = False


def test_every_model_has_its_turn_however_few_are_read_at_once(worker, fill, database, monkeypatch):
    monkeypatch.setattr(_worker, "MODELS_AT_ONCE", 2)
    fill(5, lambda number: f"model-{number}")
    worker.run_once()
    assert waiting(database) == 0


def test_after_an_outage_every_model_has_its_turn(worker, fill, engine, journal, now, database):
    fill(20, lambda number: f"model-{number}")
    engine.down = True
    for _ in range(10):
        worker.run_once()
        now[0] += 60.0
    engine.down = False
    now[0] += 60.0
    while worker.run_once():
        pass
    assert waiting(database) == 0
    assert all(journal.live(f"model-{number}") for number in range(20))


def test_what_was_never_tried_in_an_outage_does_not_wait_for_the_weather(worker, fill, engine, database, now):
    fill(MAX_POSTPONED + 5, lambda number: f"model-{number}")
    engine.down = True
    worker.run_once()
    engine.down = False
    worker.run_once()
    assert waiting(database) == MAX_POSTPONED, "those that were tried have a pause of their own"
    now[0] += 2.0
    worker.run_once()
    assert waiting(database) == 0


def test_many_events_that_were_overtaken_are_given_up_at_once(worker, fill, database, publishing, journal, deployer):
    old = fill(MANY, lambda _number: "times")
    newest = publishing.publish("times", 3.0).to_event()
    deployer.receive(newest)
    deployer.deploy(journal.event(newest.id))
    with counting(database) as counts:
        worker.run_once()
    assert waiting(database) == 0
    assert counts["statements"] < 40
    assert journal.event(old[0]).outcome == journal.event(old[-1]).outcome == "failed"
    assert [each.number for each in journal.history("times")] == [1]


def test_a_model_with_many_events_does_not_keep_others_waiting(worker, fill, journal):
    busy = fill(EVENTS_AT_ONCE + 10, lambda _number: "busy")
    [other] = fill(1, lambda _number: "other")
    assert worker.run_once() is True
    assert journal.event(other).outcome == "deployed"
    assert journal.event(busy[EVENTS_AT_ONCE - 1]).outcome is not None
    assert journal.event(busy[EVENTS_AT_ONCE]).outcome is None
    assert worker.run_once() is True
    assert worker.run_once() is False
    assert journal.event(busy[-1]).outcome is not None


def test_a_round_in_which_nothing_is_due_reads_no_events(worker, fill, database, engine, now):
    fill(2, lambda number: f"model-{number}")
    engine.down = True
    worker.run_once()
    with counting(database) as counts:
        worker.run_once()
    assert counts["bodies"] == 0


def test_a_new_event_wakes_a_model_that_rests(worker, fill, engine, journal, publishing, deployer, now):
    fill(1, lambda _number: "times")
    engine.down = True
    worker.run_once()
    engine.down = False
    event = publishing.publish("times", 5.0).to_event()
    deployer.receive(event)
    worker.run_once()
    assert journal.event(event.id).outcome == "deployed"


@pytest.mark.parametrize("jump", [timedelta(days=-4000), timedelta(days=4000)])
def test_a_clock_that_jumps_stops_nothing_and_doubles_nothing(
    database, tmp_path, publishing, repository, engine, home, jump
):
    migrate(database, tmp_path / "migrate.lock")
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    journal = Journal(database, clock=lambda: now[0])
    deployer = Deployer(journal=journal, store=publishing.store, repository=repository, engine=engine)
    worker = Worker(deployer, Outbox(home / "outbox"), publishing.store)
    sent = []
    for factor in (2.0, 3.0, 4.0):
        event = publishing.publish("times", factor).to_event()
        deployer.receive(event)
        sent.append(event)
        now[0] += jump
        if factor == 3.0:
            worker.run_once()
            assert engine.factor() == 3.0
            now[0] -= jump * 3
    assert deployer.receive(sent[0]) is False, "it is known, whatever the time was"
    while worker.run_once():
        pass
    assert [journal.event(event.id).outcome for event in sent] == ["deployed"] * 3
    assert [(each.number, each.state) for each in journal.history("times")] == [
        (3, "deployed"),
        (2, "superseded"),
        (1, "superseded"),
    ]
    assert engine.factor() == 4.0
    assert worker.run_once() is False


def test_a_package_under_a_newer_registry_number_keeps_the_number_it_is_served_under(
    worker, publishing, deployer, journal
):
    outcomes = []
    for version in ("3", "7"):
        event = publishing.publish("times", 2.0, version=version).to_event()
        deployer.receive(event)
        worker.run_once()
        outcomes.append(journal.event(event.id).outcome)
    assert outcomes == ["deployed", "already deployed"]
    assert [each.served_version for each in journal.history("times")] == ["3"]


def test_a_database_that_is_away_is_told_of_once(worker, journal, monkeypatch, caplog):
    def unavailable(**_options):
        raise JournalUnavailable("no database")

    with monkeypatch.context() as patched:
        patched.setattr(journal, "backlogs", unavailable)
        for _ in range(3):
            assert worker.run_once() is False
    worker.run_once()
    with monkeypatch.context() as patched:
        patched.setattr(journal, "backlogs", unavailable)
        worker.run_once()
    told = [record.getMessage() for record in caplog.records]
    assert told == ["journal.unavailable: no database"] * 2, "once for each time it went away"


def test_an_event_the_journal_cannot_go_on_with_is_tried_later_and_does_not_stop_the_next(
    worker, fill, journal, now, monkeypatch
):
    begin, tries = journal.begin, []

    def refuse(request):
        if request.model == "bad":
            tries.append(request.event_id)
            raise JournalUnavailable("it cannot be written down")
        return begin(request)

    bad, good = fill(2, lambda number: ["bad", "good"][number])
    with monkeypatch.context() as patched:
        patched.setattr(journal, "begin", refuse)
        for _ in range(3):
            worker.run_once()
    assert (len(tries), journal.event(bad).outcome) == (1, None)
    assert journal.event(good).outcome == "deployed"
    now[0] += 60.0
    worker.run_once()
    assert journal.event(bad).outcome == "deployed"
