"""The journal's database: an engine with its manners set, and the migrations that bring it up to date."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from keynet_core import locked
from keynet_server._errors import JournalUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from alembic.config import Config

BUSY_TIMEOUT_S = 10
_MIGRATION_TIMEOUT_S = 60.0


def open_database(url: str) -> sa.Engine:
    """
    Return an engine for a SQLAlchemy URL; nothing is connected yet, except that SQLite's directory is made.

    Raises:
        JournalUnavailable: The URL cannot be read, or its driver is not installed.

    """
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sa.create_engine(parsed, pool_pre_ping=True, pool_recycle=1800)
        return _open_sqlite(parsed)
    except (sa.exc.ArgumentError, ImportError) as error:
        raise JournalUnavailable(
            f"the journal's database cannot be opened: {error}",
            hint="set KEYNET_DATABASE_URL to a SQLAlchemy URL whose driver is installed, or leave it out for SQLite",
        ) from error


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite database, or None for any other database, and for a URL that cannot be read."""
    from pathlib import Path

    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        return None
    name = parsed.database or ""
    is_file = parsed.get_backend_name() == "sqlite" and name and not name.startswith((":memory:", "file:"))
    return Path(name) if is_file else None


def migrate(engine: sa.Engine, lock: Path, revision: str = "head") -> None:
    """
    Bring the database to a revision, one process at a time.

    Raises:
        JournalUnavailable: The database cannot be used, or is newer than this keynet.

    """
    from alembic import command
    from alembic.util import CommandError

    with locked(lock, timeout_s=_MIGRATION_TIMEOUT_S), translating(), engine.begin() as connection:
        if revision == "head" and _revision_of(connection) == newest_revision():
            return
        try:
            (command.downgrade if _is_older(connection, revision) else command.upgrade)(_config(connection), revision)
        except CommandError as error:
            raise JournalUnavailable(
                f"the journal's tables cannot be brought to {revision}: {error}",
                hint="a newer keynet wrote them: pip install --upgrade keynet-server",
            ) from error


def revision_of(engine: sa.Engine) -> str | None:
    """Return the migration the database stands at, or None when it has no tables."""
    with translating(), engine.connect() as connection:
        return _revision_of(connection)


def newest_revision() -> str:
    """Return the newest migration this keynet knows."""
    from alembic.script import ScriptDirectory

    head = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert head is not None
    return head


@contextmanager
def translating() -> Iterator[None]:
    """Translate what SQLAlchemy raises into this package's errors."""
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        told = str(error.orig) if isinstance(error, sa.exc.DBAPIError) else str(error)
        raise JournalUnavailable(f"the journal's database cannot be used: {told}", hint="keynet doctor") from error


def _open_sqlite(url: sa.URL) -> sa.Engine:
    from pathlib import Path

    if url.database and url.database != ":memory:":
        Path(url.database).absolute().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late: after the first SELECT
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads and then writes must be the writer from its start, or it fails half-way.
    reads = connection.get_execution_options().get("keynet_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _revision_of(connection: sa.Connection) -> str | None:
    from alembic.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()


def _is_older(connection: sa.Connection, revision: str) -> bool:
    current = _revision_of(connection)
    return revision == "base" or (revision != "head" and current is not None and revision < current)


def _config(connection: sa.Connection | None) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("keynet_server") / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
