"""SQLite as the journal's database: one file, one server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

BUSY_TIMEOUT_S = 10

_TROUBLES = (
    ("database is locked", "another process has been writing {file} for too long", "fuser {file}"),
    ("readonly", "{file} cannot be written", "ls -l {file}"),
    ("unable to open", "{file} cannot be opened", "ls -ld {directory}"),
    ("is full", "there is no room left for {file}", "df -h {directory}"),
    ("no such table", "{file} has no journal yet", "keynet up"),
)
"""What SQLite says, what it means, and the command that looks into it."""


def open_sqlite(url: sa.URL) -> sa.Engine:
    """Return an engine; the directory of its file is made, nothing is connected yet."""
    file = file_of(url)
    if file is not None:
        file.absolute().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    sa.event.listen(engine, "connect", _prepare)
    sa.event.listen(engine, "begin", _begin)
    return engine


def file_of(url: sa.URL) -> Path | None:
    """Return the file of a database, or None for one in memory."""
    name = url.database or ""
    return None if not name or name.startswith((":memory:", "file:")) else Path(name)


def explain(error: BaseException | None, url: sa.URL) -> tuple[str, str]:
    """Return what went wrong in one sentence, and the command that looks into it."""
    told = str(error)
    file = file_of(url) or Path(":memory:")
    for words, sentence, command in _TROUBLES:
        if words in told:
            where = {"file": file, "directory": file.parent}
            return f"{sentence.format(**where)} ({told})", command.format(**where)
    return told, "keynet doctor"


def _prepare(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late: after the first SELECT
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sa.Connection) -> None:
    # A transaction that reads and then writes must be the writer from its start, or it fails half-way.
    reads = connection.get_execution_options().get("keynet_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
