"""MLflow's database as `keynet up` makes it: once, whole or not at all, and as durable as any other."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
import sqlalchemy as sa

from keynet_server import _mlflow

KILLED = """
import os, signal, sys
from itertools import count
from pathlib import Path
import sqlalchemy as sa
from keynet_server._mlflow import prepare_database
steps = count()
def step(*_):
    if next(steps) == 100:
        os.kill(os.getpid(), signal.SIGKILL)
sa.event.listen(sa.Engine, "before_cursor_execute", step)
prepare_database(Path(sys.argv[1]))
"""


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    return home


def experiments(home):
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        return database.execute("SELECT name, artifact_location FROM experiments").fetchall()


def test_the_database_is_whole_and_is_left_alone_afterwards(home):
    _mlflow.prepare_database(home)
    assert experiments(home) == [("Default", f"{(home / 'mlartifacts').as_uri()}/0")]
    assert sorted(path.name for path in home.iterdir()) == ["mlflow.db", "run"]
    before = (home / "mlflow.db").stat()
    _mlflow.prepare_database(home)
    after = (home / "mlflow.db").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_only_the_making_goes_without_the_disk(home):
    engine = sa.create_engine(f"sqlite:///{home / 'other.db'}")

    def manners():
        with engine.connect() as connection:
            found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("synchronous", "journal_mode")]
        engine.dispose()
        return found

    before = manners()
    with _mlflow._without_waiting_for_the_disk():
        assert manners() == [0, "memory"]
    assert manners() == before != [0, "memory"]


def test_killed_while_it_is_made_and_made_again(home):
    done = subprocess.run([sys.executable, "-c", KILLED, str(home)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not (home / "mlflow.db").exists()
    _mlflow.prepare_database(home)
    assert len(experiments(home)) == 1
