"""The journal's database: an engine with its manners set, and the migrations that bring it up to date."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.resources import files
from typing import TYPE_CHECKING

import sqlalchemy as sa

from keynet_core import SettingsInvalid, locked
from keynet_server import _postgresql, _sqlite
from keynet_server._errors import JournalUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from alembic.config import Config

_MIGRATION_TIMEOUT_S = 60.0
_FORMS = "write it as postgresql+psycopg://user:password@host:5432/database, or leave it out for SQLite"


def open_database(url: str) -> sa.Engine:
    """
    Return an engine for a SQLAlchemy URL; nothing is connected yet, except that SQLite's directory is made.

    Raises:
        SettingsInvalid: The URL cannot be read, or names a database the journal does not run on.
        MissingDependency: Its driver is not installed.

    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "postgresql":
        return _postgresql.open_postgresql(parsed)
    if parsed.drivername in {"sqlite", "sqlite+pysqlite"}:
        return _sqlite.open_sqlite(parsed)
    raise SettingsInvalid(
        f"the journal runs on SQLite and PostgreSQL; KEYNET_DATABASE_URL asks for {parsed.drivername}", hint=_FORMS
    )


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite database, or None for any other database, and for a URL that cannot be read."""
    try:
        parsed = _parse(url)
    except SettingsInvalid:
        return None
    return _sqlite.file_of(parsed) if parsed.get_backend_name() == "sqlite" else None


def migrate(engine: sa.Engine, lock: Path, revision: str = "head") -> None:
    """
    Bring the database to a revision, one process at a time.

    Args:
        engine: The database.
        lock: A file that the servers of one SQLite database share; PostgreSQL has locks of its own.
        revision: The revision, or `head` or `base`.

    Raises:
        JournalUnavailable: The database cannot be used, or is newer than this keynet.
        LockTimeout: Another process was at it for too long.

    """
    from alembic import command

    with locked(lock, timeout_s=_MIGRATION_TIMEOUT_S), translating(engine), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            _postgresql.wait_for_turn_to_migrate(connection, _MIGRATION_TIMEOUT_S)
        found = _revision_of(connection)
        _require_known(found)
        if found != (newest_revision() if revision == "head" else revision):
            move = command.downgrade if _is_older(revision, found) else command.upgrade
            move(_config(connection), revision)


def revision_of(engine: sa.Engine) -> str | None:
    """Return the migration the database stands at, or None when it has no tables."""
    with translating(engine), engine.execution_options(keynet_reads=True).connect() as connection:
        return _revision_of(connection)


def newest_revision() -> str:
    """Return the newest migration this keynet knows."""
    return revisions()[-1]


def revisions() -> list[str]:
    """Return every migration this keynet knows, oldest first."""
    from alembic.script import ScriptDirectory

    return [script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions()][::-1]


@contextmanager
def translating(engine: sa.Engine) -> Iterator[None]:
    """Translate what SQLAlchemy raises into this package's errors."""
    try:
        yield
    except sa.exc.TimeoutError as error:
        raise JournalUnavailable(
            f"no connection to the journal's database became free: {error}", hint="keynet doctor"
        ) from error
    except sa.exc.DBAPIError as error:
        backend = _postgresql if engine.dialect.name == "postgresql" else _sqlite
        sentence, hint = backend.explain(error.orig, engine.url)
        raise JournalUnavailable(f"the journal's database cannot be used: {sentence}", hint=hint) from error


def is_of_value(error: sa.exc.DBAPIError) -> bool:
    """Return whether a statement was refused for what it was to write, whatever the state of the database."""
    return isinstance(error, sa.exc.DataError) or _postgresql.is_too_large(error.orig)


def _parse(url: str) -> sa.URL:
    if url.startswith("postgres://"):  # as many hosts write it, and SQLAlchemy no longer reads it
        url = url.replace("postgres", "postgresql", 1)
    try:
        return sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        # Without what was found: it may be a part of the password.
        raise SettingsInvalid("KEYNET_DATABASE_URL is not the URL of a database", hint=_FORMS) from None


def _require_known(found: str | None) -> None:
    if found is not None and found not in revisions():
        raise JournalUnavailable(
            f"the journal's tables are at {found}, this keynet knows {newest_revision()} and older",
            hint="a newer keynet wrote them: pip install --upgrade keynet-server",
        )


def _revision_of(connection: sa.Connection) -> str | None:
    from alembic.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()


def _is_older(revision: str, found: str | None) -> bool:
    return revision == "base" or (revision != "head" and found is not None and revision < found)


def _config(connection: sa.Connection | None) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("keynet_server") / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
