"""Every migration, up and down, with data in the tables, on SQLite and on PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from keynet_server._database import migrate, newest_revision, revision_of, revisions
from keynet_server._errors import JournalUnavailable
from keynet_server._journal import Journal
from keynet_server._tables import metadata

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
EVENTS = [
    {"id": "e1", "outcome": "deployed", "finished_at": NOON},
    {"id": "e2", "outcome": "failed", "reason": "모델 거부", "finished_at": NOON},
    {"id": "e3", "outcome": "deployed", "finished_at": NOON},
    {"id": "e4", "outcome": None},
    {"id": "e5", "outcome": "failed", "subject": None},
]
DEPLOYMENTS = [
    {"number": 1, "event_id": "e1", "state": "superseded", "finished_at": NOON, "engine_answer": "loaded"},
    {"number": 2, "event_id": "e2", "state": "failed", "reason": "모델 거부"},
    {"number": 3, "event_id": "e3", "state": "deployed", "finished_at": NOON, "model_version": "7", "restores": 1},
    {"number": 4, "event_id": "e4", "state": "deploying", "why": "published", "run_id": "r"},
]
COMMON = {
    "events": {"type": "any", "subject": "times", "source": "/x", "received_at": NOON, "body": "{}"},
    "deployments": {
        "model": "times",
        "digest": "sha256:0",
        "served_version": "7",
        "requested_by": "ada",
        "started_at": NOON,
    },
}


@pytest.fixture
def bring(database, tmp_path):
    """Bring the database to a revision."""

    def bring(revision="head"):
        migrate(database, tmp_path / "migrate.lock", revision)
        assert revision_of(database) == {"head": newest_revision(), "base": None}.get(revision, revision)

    return bring


def table(database, name):
    return sa.Table(name, sa.MetaData(), autoload_with=database)


def insert(database, name, *rows):
    """Insert rows; columns that the table does not have, or not yet, are left out."""
    into = table(database, name)
    with database.begin() as connection:
        for row in rows:
            values = {key: value for key, value in (COMMON[name] | row).items() if key in into.c}
            connection.execute(into.insert().values(values))


def fill(database):
    insert(database, "events", *EVENTS)
    insert(database, "deployments", *DEPLOYMENTS)


def rows_of(database):
    """Return all rows as texts, by table and key."""
    found = {}
    for name, key in (("events", "id"), ("deployments", "event_id")):
        query = sa.select(table(database, name))
        with database.connect() as connection:
            for row in connection.execute(query).mappings():
                found[name, row[key]] = {column: str(value) for column, value in row.items()}
    return found


def shared(before, after):
    """Return rows with only the columns that `before` has."""
    return {key: {column: row[column] for column in before[key]} for key, row in after.items()}


STEPS = list(zip(revisions(), revisions()[1:], strict=False))


@pytest.mark.parametrize(("older", "newer"), STEPS)
def test_a_migration_keeps_every_row_up_and_down(database, bring, older, newer):
    bring(older)
    fill(database)
    before = rows_of(database)
    assert len(before) == len(EVENTS) + len(DEPLOYMENTS)
    bring(newer)
    up = rows_of(database)
    assert shared(before, up) == before
    bring(older)
    assert rows_of(database) == before
    bring(newer)
    assert rows_of(database) == up


def test_the_whole_way_up_and_down_keeps_every_row(database, bring):
    bring("0001")
    fill(database)
    before = rows_of(database)
    bring()
    assert shared(before, rows_of(database)) == before
    assert Journal(database).live("times").number == 3
    bring("0001")
    assert rows_of(database) == before
    bring("base")
    assert sa.inspect(database).get_table_names() == ["alembic_version"]
    bring()
    assert Journal(database).models() == []


def test_the_newest_tables_are_those_the_code_uses(database, bring):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    bring()
    with database.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


@pytest.mark.parametrize("revision", revisions())
def test_at_every_revision_the_tables_refuse_what_makes_no_sense(database, bring, revision):
    bring(revision)
    fill(database)
    for row in (
        {"number": 5, "event_id": "e5", "state": "deployed"},
        {"number": 5, "event_id": "e1", "state": "failed"},
        {"number": 5, "event_id": "nobody sent it", "state": "failed"},
        {"number": 4, "event_id": "e5", "state": "failed"},
        {"number": 5, "event_id": "e5", "state": "no state"},
        {"number": 5, "event_id": "e5", "state": "failed", "digest": None},
    ):
        with pytest.raises(sa.exc.IntegrityError):
            insert(database, "deployments", row)
    with pytest.raises(sa.exc.IntegrityError):
        insert(database, "events", {"id": "e1"})


def test_an_event_that_was_removed_leaves_its_number_unused(database, bring):
    bring()
    fill(database)
    events = table(database, "events")
    with database.begin() as connection:
        newest = connection.execute(sa.select(sa.func.max(events.c.seq))).scalar()
        connection.execute(events.delete().where(events.c.seq == newest))
    insert(database, "events", {"id": "e6"})
    with database.connect() as connection:
        assert connection.execute(sa.select(events.c.seq).where(events.c.id == "e6")).scalar() == newest + 1


def test_0002_deployments_from_before_restore_nothing(database, bring):
    bring("0001")
    fill(database)
    bring("0002")
    assert {row.get("restores") for (name, _), row in rows_of(database).items() if name == "deployments"} == {"None"}


def test_0003_what_waits_is_found_without_looking_at_what_is_done(database, bring):
    bring("0003")
    names = {index["name"] for index in sa.inspect(database).get_indexes("events")}
    assert {"events_waiting", "events_of_subject"} <= names
    bring("0002")
    names = {index["name"] for index in sa.inspect(database).get_indexes("events")}
    assert "events_unfinished" in names
    assert not {"events_waiting", "events_of_subject"} & names


def test_0004_knows_what_was_unloaded_and_the_release_before_calls_it_superseded(database, bring):
    bring("0003")
    fill(database)
    unloaded = {"number": 5, "event_id": "e5", "state": "unloaded"}
    with pytest.raises(sa.exc.IntegrityError):
        insert(database, "deployments", unloaded)
    bring("0004")
    insert(database, "deployments", unloaded)
    bring("0003")
    assert rows_of(database)["deployments", "e5"]["state"] == "superseded"
    with pytest.raises(sa.exc.IntegrityError):
        insert(database, "deployments", unloaded | {"number": 6})


@pytest.mark.parametrize("revision", ["head", "0001", "base"])
def test_tables_of_a_newer_keynet_are_left_alone(database, bring, revision):
    bring()
    fill(database)
    with database.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    before = rows_of(database)
    with pytest.raises(JournalUnavailable, match="9999") as raised:
        bring(revision)
    assert "pip install --upgrade keynet-server" in raised.value.hint
    assert rows_of(database) == before
