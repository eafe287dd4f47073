"""Servers that start at the same time, and one that is killed while it changes the tables."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import sqlalchemy as sa

from keynet_server import _database, _postgresql
from keynet_server._database import migrate, newest_revision, revision_of
from keynet_server._errors import JournalUnavailable

MIGRATE = """
import os, sys, pathlib
import sqlalchemy as sa
from keynet_server._database import migrate, open_database
url, lock, end = sys.argv[1:]
database = open_database(url)
if end == "killed":
    sa.event.listen(database, "commit", lambda _connection: os.kill(os.getpid(), 9))
migrate(database, pathlib.Path(lock))
"""


def start(url, lock, end="well"):
    return subprocess.Popen([sys.executable, "-c", MIGRATE, url, str(lock), end])


@pytest.fixture
def lock_of(database, tmp_path):
    """Return the lock file of each server: one of SQLite's home, or of its own home where PostgreSQL is shared."""
    of_its_own = database.dialect.name == "postgresql"
    return lambda number: tmp_path / (f"home-{number}.lock" if of_its_own else "home.lock")


def test_servers_that_start_at_once_make_the_tables_once(database, database_url, lock_of):
    starts = [start(database_url, lock_of(number)) for number in range(4)]
    assert [each.wait(120) for each in starts] == [0, 0, 0, 0]
    assert revision_of(database) == newest_revision()


def test_one_that_is_killed_before_it_is_done_leaves_nothing(database, database_url, lock_of):
    assert start(database_url, lock_of(1), "killed").wait(120) == -signal.SIGKILL
    assert revision_of(database) is None
    assert start(database_url, lock_of(2)).wait(120) == 0
    assert revision_of(database) == newest_revision()


def test_one_that_is_at_it_for_too_long_is_not_waited_for(postgresql, tmp_path, monkeypatch):
    monkeypatch.setattr(_database, "_MIGRATION_TIMEOUT_S", 1.0)
    database = _database.open_database(postgresql.database())
    with database.begin() as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_postgresql.lock_key("migrations"))))
        with pytest.raises(JournalUnavailable, match="in time"):
            migrate(database, tmp_path / "lock")
    migrate(database, tmp_path / "lock")
    database.dispose()
