"""PostgreSQL as the journal's database: sessions with their manners set, locks between servers, refusals explained."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from keynet_core import MissingDependency, Secret, SettingsInvalid
from keynet_server._errors import JournalUnavailable

STATEMENT_TIMEOUT_S = 30
_POOL_TIMEOUT_S = 10
_CONNECTING = {
    "connect_timeout": "10",
    "client_encoding": "utf8",
    "fallback_application_name": "keynet",
    # A host that vanished says nothing: without these, a statement would wait for it for a quarter of an hour.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
_SESSION = {
    "statement_timeout": f"{STATEMENT_TIMEOUT_S}s",
    # A claim waits in silence while a model loads. The server must not take that for an end,
    # and must notice the real one, of a host that vanished, to free what it had claimed.
    "idle_session_timeout": "0",
    # A server that stands still in a transaction, as one that is suspended does, would keep every other from writing.
    "idle_in_transaction_session_timeout": f"{STATEMENT_TIMEOUT_S}s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trouble:
    """One kind of refusal: how it is recognised, what it means, and the command that looks into it."""

    states: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    sentence: str
    command: str

    def is_told(self, state: str | None, told: str) -> bool:
        # What refuses a connection has no state in libpq, only words.
        return state in self.states if state else any(words in told for words in self.words)


_TROUBLES = (
    _Trouble(
        states=("57P01", "57P02", "57P03"),
        words=(
            "Connection refused",
            "timeout expired",
            "failed to resolve",
            "server closed the connection",
            "the database system",
            "is closed",
            "is lost",
        ),
        sentence="PostgreSQL at {server} does not answer",
        command="pg_isready {where_but_user}",
    ),
    _Trouble(
        states=("28P01", "28000"),
        words=("authentication failed", "no password supplied", "no pg_hba.conf entry", 'role "'),
        sentence="PostgreSQL at {server} does not let {user} in",
        command="{psql}, and KEYNET_DATABASE_URL with the password that works there, percent-encoded",
    ),
    _Trouble(
        states=("3D000",),
        words=('database "',),
        sentence="PostgreSQL at {server} has no database {database}",
        command="createdb {where} {database}",
    ),
    _Trouble(
        states=("25006",),
        sentence="PostgreSQL at {server} takes no changes; it may be a standby",
        command="name the primary in KEYNET_DATABASE_URL, or add ?target_session_attrs=read-write",
    ),
    _Trouble(
        states=("42501",),
        sentence="{user} may not change the tables of {database}",
        command="""psql {where_but_user} -d {database} -c 'GRANT CREATE, USAGE ON SCHEMA public TO "{user}"'""",
    ),
    _Trouble(states=("42P01",), sentence="{database} at {server} has no journal yet", command="keynet up"),
    _Trouble(
        states=("53300",),
        words=("too many",),
        sentence="PostgreSQL at {server} has no connection left",
        command="{psql} -c 'SHOW max_connections'",
    ),
    _Trouble(
        states=("53100", "53200"),
        sentence="PostgreSQL at {server} has no room left",
        command="""{psql} -c '\\l+'""",
    ),
    _Trouble(
        states=("55P03", "57014"),
        sentence="PostgreSQL at {server} did not do what it was asked in time",
        command="{psql} -c 'SELECT pid, state, query FROM pg_stat_activity'",
    ),
)


def open_postgresql(url: sa.URL) -> sa.Engine:
    """
    Return an engine; nothing is connected yet.

    Raises:
        MissingDependency: psycopg 3 is not installed.
        SettingsInvalid: The URL asks for another driver, or its password is not percent-encoded.

    """
    if url.drivername not in {"postgresql", "postgresql+psycopg"}:
        raise SettingsInvalid(
            f"keynet speaks to PostgreSQL with psycopg 3, not with {url.drivername}",
            hint="begin KEYNET_DATABASE_URL with postgresql+psycopg://",
        )
    if "@" in (url.host or ""):
        raise SettingsInvalid(
            "the password in KEYNET_DATABASE_URL has an @ of its own, which ends it too early",
            hint="write it as %40; python -c 'import urllib.parse as u; print(u.quote(input(), \"\"))' does the rest",
        )
    _require_driver()
    defaults = {name: value for name, value in _CONNECTING.items() if name not in url.query}
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg").update_query_dict(defaults),
        # Whoever waited for a lock must see what its holder did.
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_recycle=1800,
        pool_timeout=_POOL_TIMEOUT_S,
    )
    sa.event.listen(engine, "connect", _prepare)
    sa.event.listen(engine, "begin", _begin)
    return engine


def lock_key(purpose: str) -> int:
    """Return the number an advisory lock has for a purpose."""
    return int.from_bytes(hashlib.sha256(f"keynet/{purpose}".encode()).digest()[:8], "big", signed=True)


def explain(error: BaseException | None, url: sa.URL) -> tuple[str, str]:
    """Return what went wrong in one sentence, and the command that looks into it; the password is in neither."""
    told = _masked(" ".join(str(error).split()), url)
    state = getattr(error, "sqlstate", None)
    trouble = next((each for each in _TROUBLES if each.is_told(state, told)), None)
    words = _words(url)
    if trouble is None:
        return told, words["psql"]
    return f"{trouble.sentence.format(**words)} ({told})", trouble.command.format(**words)


def is_too_large(error: BaseException | None) -> bool:
    """Return whether a value is larger than an index can hold."""
    return getattr(error, "sqlstate", None) == "54000"


def wait_for_turn_to_migrate(connection: sa.Connection, timeout_s: float) -> None:
    """
    Hold the lock of whoever changes the tables until the transaction ends, in a database that can hold every text.

    Raises:
        JournalUnavailable: The database has an encoding for some languages only.

    """
    connection.execute(
        sa.select(
            sa.func.set_config("lock_timeout", f"{timeout_s:.0f}s", True),  # noqa: FBT003 - PostgreSQL's: until the end
            sa.func.set_config("statement_timeout", "0", True),  # noqa: FBT003 - the same
        )
    )
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock_key("migrations"))))
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        words = _words(connection.engine.url)
        raise JournalUnavailable(
            f"the database {words['database']} is encoded in {encoding}, which cannot hold every text",
            hint="createdb {where} --encoding=UTF8 --template=template0 keynet".format(**words),
        )


def _require_driver() -> None:
    try:
        import psycopg  # noqa: F401 - SQLAlchemy's own error would not say how to install it
    except ImportError as error:
        raise MissingDependency(
            f"PostgreSQL needs psycopg, which cannot be imported: {error}",
            hint="pip install 'keynet-server[postgresql]'",
        ) from error


def _prepare(connection: Any, _record: object) -> None:
    # Set by a statement, not as `options` of the URL: poolers refuse what they do not know there.
    known = {name: value for name, value in _SESSION.items() if not _is_too_new(name, connection)}
    asked = ", ".join("set_config(%s, %s, false)" for _ in known)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {asked}", [text for pair in known.items() for text in pair])
    connection.commit()


def _is_too_new(name: str, connection: Any) -> bool:
    return name == "idle_session_timeout" and connection.info.server_version < 140000


def _begin(connection: sa.Connection) -> None:
    # Numbers are given out before a transaction ends. One at a time, a lower one is never seen after a higher one.
    if connection.get_execution_options().get("keynet_in_order", False):
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock_key("events in order"))))


def _masked(told: str, url: sa.URL) -> str:
    secrets = [url.password, *(url.query.get(name) for name in ("password", "sslpassword"))]
    for secret in secrets:
        if secret:
            told = told.replace(str(secret), Secret.MASK)
    return told


def _words(url: sa.URL) -> dict[str, str]:
    """Return what sentences and commands are filled with."""
    host = url.host or url.query.get("host", "localhost")
    port, user = url.port or 5432, url.username or "postgres"
    where = f"-h {host} -p {port}"
    database = url.database or user
    return {
        "server": f"{host}:{port}",
        "user": user,
        "database": database,
        "where_but_user": where,
        "where": f"{where} -U {user}",
        "psql": f"psql {where} -U {user} -d {database}",
    }
