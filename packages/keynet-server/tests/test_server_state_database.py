"""Opening the journal's database: what a URL may be, what a database is told, and what its refusals say."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa

from keynet_core import Event, KeynetError, MissingDependency, SettingsInvalid
from keynet_server._database import migrate, open_database, revision_of, sqlite_file
from keynet_server._errors import JournalUnavailable
from keynet_server._journal import Journal
from keynet_server._serve import alone_on

SECRET = "hunter2"


@pytest.fixture
def opened():
    """Open databases, and let go of them."""
    engines = []

    def opened(url):
        engines.append(open_database(str(url)))
        return engines[-1]

    yield opened
    for engine in engines:
        engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "no url at all",
        f"postgresql//u:{SECRET}@h/db",
        f"postgresql://u:{SECRET}@h:{SECRET}/db",
        f"unheardof://u:{SECRET}@h/db",
        f"mysql://u:{SECRET}@h/db",
        f"postgresql+psycopg2://u:{SECRET}@h/db",
        f"postgresql+nodriver://u:{SECRET}@h/db",
        f"postgresql://u:p@{SECRET}@h/db",
        "sqlite+aiosqlite:///x.db",
    ],
)
def test_a_url_the_journal_does_not_run_on_is_told_with_a_next_step_and_without_its_password(url):
    with pytest.raises(SettingsInvalid) as raised:
        open_database(url)
    assert "KEYNET_DATABASE_URL" in raised.value.message + raised.value.hint or "%40" in raised.value.hint
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None, "what SQLAlchemy said may hold a part of the password"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_postgresql_is_psycopg_3(opened, scheme):
    engine = opened(f"{scheme}://ada:secret@db.example:5433/keynet?connect_timeout=3")
    assert engine.url.drivername == "postgresql+psycopg"
    assert (engine.url.host, engine.url.port, engine.url.database) == ("db.example", 5433, "keynet")
    assert engine.url.query["connect_timeout"] == "3", "what the URL says comes before what we would"
    assert "secret" not in repr(engine)


def test_without_psycopg_the_line_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingDependency) as raised:
        open_database("postgresql://u@h/db")
    assert raised.value.hint == "pip install 'keynet-server[postgresql]'"


def test_opening_sqlite_imports_no_driver_of_another_database(tmp_path):
    script = (
        "import sys; from keynet_server._database import *; e = open_database(sys.argv[1]); revision_of(e);"
        "print('psycopg' in sys.modules)"
    )
    command = [sys.executable, "-c", script, f"sqlite:///{tmp_path / 'x.db'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_only_sqlite_has_a_file(tmp_path):
    assert sqlite_file(f"sqlite:///{tmp_path}/a.db") == tmp_path / "a.db"
    for url in ("sqlite://", "sqlite:///:memory:", "postgresql://h/db", "no url"):
        assert sqlite_file(url) is None


def test_sqlite_is_durable_and_checks_references(opened, tmp_path):
    with opened(f"sqlite:///{tmp_path / 'x.db'}").connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


def test_a_writer_of_sqlite_waits_for_another_to_end(opened, tmp_path, publishing):
    engine = opened(f"sqlite:///{tmp_path / 'x.db'}")
    migrate(engine, tmp_path / "lock")
    event = publishing.publish().to_event()
    with opened(engine.url).begin():
        late = threading.Thread(target=Journal(engine).receive, args=[event])
        late.start()
        late.join(0.3)
        assert late.is_alive()
        assert Journal(engine).knows(event.id) is False, "a reader does not wait"
    late.join(30)
    assert Journal(engine).knows(event.id)


def test_a_file_that_is_no_database_is_unavailable(opened, tmp_path):
    (tmp_path / "keynet.db").write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(JournalUnavailable, match="not a database"):
        revision_of(opened(f"sqlite:///{tmp_path / 'keynet.db'}"))


def test_a_file_sqlite_cannot_open_is_told_with_the_command_that_shows_why(opened, tmp_path):
    (tmp_path / "keynet.db").mkdir()
    with pytest.raises(JournalUnavailable, match="cannot be opened") as raised:
        migrate(opened(f"sqlite:///{tmp_path / 'keynet.db'}"), tmp_path / "lock")
    assert raised.value.hint == f"ls -ld {tmp_path}"


def test_a_file_nobody_may_write_is_told_with_the_command_that_shows_why(opened, tmp_path):
    engine = opened(f"sqlite:///{tmp_path / 'keynet.db'}")
    migrate(engine, tmp_path / "lock")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    event = Event(id="1", source="/x", type="any", subject="times", data={})
    with pytest.raises(JournalUnavailable, match="cannot be written") as raised:
        Journal(engine).receive(event)
    assert raised.value.hint == f"ls -l {tmp_path / 'keynet.db'}"


def test_a_second_server_on_one_file_is_told_that_servers_share_postgresql(tmp_path):
    file = tmp_path / "shared.db"
    script = "import runpy, sys; from keynet_server import _serve; _serve._ENDING_S = 0.2;"
    script += "sys.argv = ['x', '127.0.0.1', '0']; runpy.run_module('keynet_server')"
    environ = {name: text for name, text in os.environ.items() if not name.startswith(("KEYNET", "TRITON", "AWS"))}
    environ |= {"KEYNET_HOME": str(tmp_path / "second"), "KEYNET_TOKEN": "t", "TRITON_URL": "http://127.0.0.1:9"}
    with alone_on(tmp_path / "first", file):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environ | {"KEYNET_DATABASE_URL": f"sqlite:///{file}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 5
    assert f"error: another keynet server has its journal in {file}" in done.stderr
    assert "PostgreSQL" in done.stderr
    assert not file.exists()


def test_a_journal_without_tables_says_what_makes_them(database):
    with pytest.raises(JournalUnavailable, match="no journal yet") as raised:
        Journal(database).unfinished()
    assert raised.value.hint == "keynet up"


def test_every_error_of_a_database_is_one_of_ours(database, tmp_path):
    migrate(database, tmp_path / "lock")
    with database.begin() as connection:
        connection.execute(sa.text("DROP TABLE deployments"))
    with pytest.raises(KeynetError) as raised:
        Journal(database).models()
    assert raised.value.code == "journal.unavailable"
