"""What PostgreSQL alone can refuse, delay or forget; each with a sentence and the command that looks into it."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from keynet_core import Event, EventInvalid
from keynet_server import _postgresql
from keynet_server._database import migrate, open_database
from keynet_server._errors import JournalUnavailable
from keynet_server._journal import Journal
from keynet_server._tables import events

SECRET = "hunter2-and-more"


@pytest.fixture
def url(postgresql):
    return sa.make_url(postgresql.database())


@pytest.fixture
def opened():
    engines = []

    def opened(url):
        text = url if isinstance(url, str) else url.render_as_string(hide_password=False)
        engines.append(open_database(text))
        return engines[-1]

    yield opened
    for engine in engines:
        engine.dispose()


@pytest.fixture
def journal(opened, url, tmp_path):
    engine = opened(url)
    migrate(engine, tmp_path / "lock")
    return Journal(engine)


@pytest.fixture
def unavailable(opened, tmp_path):
    """Return the error of whoever brings up a database that cannot be used."""

    def unavailable(url):
        with pytest.raises(JournalUnavailable) as raised:
            migrate(opened(url), tmp_path / "lock")
        return raised.value

    return unavailable


def run(url, *statements):
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def event(number, subject="times"):
    return Event(id=f"{subject}-{number}", source="/x", type="any", subject=subject, data={})


def test_a_wrong_password_is_told_without_it(unavailable, url):
    error = unavailable(url.set(password=SECRET))
    assert "does not let keynet in" in error.message
    assert "KEYNET_DATABASE_URL" in error.hint
    assert SECRET not in str(error)


def test_a_user_nobody_knows_is_told(unavailable, url):
    assert "does not let nobody in" in unavailable(url.set(username="nobody")).message


def test_a_database_that_is_not_there_comes_with_the_command_that_makes_it(unavailable, url):
    error = unavailable(url.set(database="elsewhere"))
    assert "no database elsewhere" in error.message
    assert shlex.split(error.hint)[0] == "createdb"
    assert shlex.split(error.hint)[-1] == "elsewhere"


@pytest.mark.parametrize("change", [{"port": 1}, {"host": "nowhere.invalid"}], ids=["no server", "no host"])
def test_a_server_that_is_away_comes_with_the_command_that_asks_for_it(unavailable, url, change):
    error = unavailable(url.set(**change))
    assert "does not answer" in error.message
    assert error.hint.startswith("pg_isready")


def test_a_server_that_accepts_and_never_answers_is_given_up(unavailable, url):
    with socket.create_server(("127.0.0.1", 0)) as hole:
        silent = url.set(port=hole.getsockname()[1]).update_query_dict({"connect_timeout": "2"})
        assert "does not answer" in unavailable(silent).message


def test_a_database_that_takes_no_changes_is_told(unavailable, url):
    run(url, f"ALTER DATABASE {url.database} SET default_transaction_read_only = on")
    error = unavailable(url)
    assert "takes no changes" in error.message
    assert "target_session_attrs" in error.hint


def test_a_user_who_may_not_make_tables_comes_with_the_grant_that_is_enough(unavailable, opened, url, tmp_path):
    run(
        url,
        "DO $$ BEGIN CREATE ROLE weak LOGIN PASSWORD 'weak'; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    )
    weak = url.set(username="weak", password="weak")
    error = unavailable(weak)
    assert "weak may not change the tables" in error.message
    grant = shlex.split(error.hint)
    run(url, grant[grant.index("-c") + 1])
    migrate(opened(weak), tmp_path / "lock")


def test_a_database_in_an_encoding_for_some_languages_is_refused_at_the_start(unavailable, url):
    name = f"{url.database}_latin"
    run(url, f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    error = unavailable(url.set(database=name))
    assert "LATIN1" in error.message
    assert "--encoding=UTF8" in error.hint


def test_a_statement_that_takes_too_long_is_ended(opened, url, tmp_path, monkeypatch):
    monkeypatch.setitem(_postgresql._SESSION, "statement_timeout", "200ms")
    journal = Journal(opened(url))
    migrate(journal._engine, tmp_path / "lock")
    blocker = sa.create_engine(url)
    with blocker.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE events")
        with pytest.raises(JournalUnavailable, match="in time"):
            journal.receive(event(1))
    blocker.dispose()
    assert journal.receive(event(1))


def test_a_session_has_a_bound_for_statements_and_none_for_silence(opened, url):
    with opened(url).connect() as connection:
        told = {name: connection.exec_driver_sql(f"SHOW {name}").scalar() for name in _postgresql._SESSION}
        told["isolation"] = connection.exec_driver_sql("SHOW transaction_isolation").scalar()
    assert told["statement_timeout"] == "30s"
    assert told["idle_session_timeout"] == "0"
    assert told["idle_in_transaction_session_timeout"] == "30s"
    assert [told[f"tcp_keepalives_{name}"] for name in ("idle", "interval", "count")] == ["30", "10", "3"]
    assert told["isolation"] == "read committed"


def test_a_server_that_stands_still_in_a_transaction_keeps_no_other_from_receiving(opened, url, journal, monkeypatch):
    short = {**_postgresql._SESSION, "idle_in_transaction_session_timeout": "1s"}
    monkeypatch.setattr(_postgresql, "_SESSION", short)
    suspended = opened(url).execution_options(keynet_in_order=True).connect()
    suspended.begin()
    assert journal.receive(event(1))
    suspended.invalidate()
    suspended.close()


def test_an_event_id_that_no_index_holds_is_invalid(journal):
    rare = "".join(chr(0x4E00 + (number * 7919) % 20000) for number in range(2048))
    with pytest.raises(EventInvalid):
        journal.receive(Event(id=rare, source="/x", type="any", subject="times", data={}))
    assert journal.unfinished() == []


def test_times_are_utc_whatever_zone_the_database_lives_in(journal, url):
    run(url, f"ALTER DATABASE {url.database} SET timezone = 'Asia/Seoul'")
    journal._engine.dispose()
    journal.receive(event(1))
    received = journal.event("times-1").received_at
    assert received.isoformat().endswith("+00:00")
    assert abs((datetime.now(UTC) - received).total_seconds()) < 600


def test_an_event_is_never_seen_before_one_with_a_lower_number(journal):
    """Numbers are given out before transactions end: without turns, a later event could be acted on first."""
    row = {"id": "first", "type": "any", "subject": "times", "source": "/x", "body": "{}"}
    with journal._in_order.begin() as slow:
        slow.execute(events.insert().values(received_at=datetime.now(UTC), **row))
        quick = threading.Thread(target=journal.receive, args=[event(2)])
        quick.start()
        quick.join(0.3)
        assert quick.is_alive()
        assert journal.unfinished() == []
    quick.join(30)
    assert [each.id for each in journal.unfinished()] == ["first", "times-2"]


def test_a_server_that_restarted_is_found_again(journal, postgresql):
    journal.receive(event(1))
    postgresql.kill()
    with pytest.raises(JournalUnavailable, match="does not answer"):
        journal.unfinished()
    postgresql.start()
    assert [each.id for each in journal.unfinished()] == ["times-1"]
    assert journal.receive(event(2))


def keynet(home, *arguments, **environ):
    command = [sys.executable, "-c", "from keynet_server._cli import main; main()", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KEYNET_")}
    environ = clean | {"KEYNET_HOME": str(home)} | environ
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.usefixtures("journal")
def test_doctor_and_models_read_the_journal_that_the_url_names(url, home):
    home.mkdir()
    told = url.render_as_string(hide_password=False)
    done = keynet(home, "doctor", "--json", KEYNET_DATABASE_URL=told)
    [found] = [each for each in json.loads(done.stdout)["findings"] if each["check"] == "journal"]
    assert found["level"] == "ok"
    done = keynet(home, "models", "list", "--json", KEYNET_DATABASE_URL=told)
    assert json.loads(done.stdout) == {"models": []}, done.stderr


def test_doctor_tells_of_a_wrong_password_without_it(url, home):
    home.mkdir()
    wrong = url.set(password=SECRET).render_as_string(hide_password=False)
    done = keynet(home, "doctor", "--json", KEYNET_DATABASE_URL=wrong)
    [found] = [each for each in json.loads(done.stdout)["findings"] if each["check"] == "journal"]
    assert found["level"] == "error"
    assert "psql" in found["remedy"]
    assert SECRET not in done.stdout + done.stderr
