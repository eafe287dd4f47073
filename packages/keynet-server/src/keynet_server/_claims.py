"""
Claims: a model is acted on by one server at a time.

On PostgreSQL a claim is an advisory lock of a session of its own: it ends with the connection, so a server that is
killed, or cut off, blocks nobody. SQLite has one server by construction, and every claim is free.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import sqlalchemy as sa

from keynet_server._database import translating
from keynet_server._errors import ClaimMissing
from keynet_server._postgresql import lock_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


class Claim(Protocol):
    """A model that is this server's to act on."""

    def require(self) -> None:
        """
        Check that it still is.

        Raises:
            ClaimMissing: Another server may be acting on the model by now.

        """


class Claims(Protocol):
    """What servers agree with on who acts on a model."""

    def hold(self, subject: str | None) -> AbstractContextManager[Claim | None]:
        """Claim a model; yield None when another server has it."""


def open_claims(engine: sa.Engine) -> Claims:
    """Return the claims that the servers of a database share."""
    return AdvisoryClaims(engine) if engine.dialect.name == "postgresql" else FreeClaims()


class AlwaysOurs:
    """The claim of the only server there is."""

    def require(self) -> None:
        """Do nothing: nobody else is there."""


ALWAYS_OURS = AlwaysOurs()


class FreeClaims:
    """The claims of the only server there is."""

    @contextmanager
    def hold(self, _subject: str | None) -> Iterator[Claim | None]:
        """Yield a claim that nobody else can have."""
        yield ALWAYS_OURS


class AdvisoryClaims:
    """The claims of the servers that share a PostgreSQL database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def hold(self, subject: str | None) -> Iterator[Claim | None]:
        """
        Claim a model; yield None when another server has it.

        Raises:
            JournalUnavailable: The database cannot be asked.

        """
        key = lock_key(f"models/{subject or ''}")
        with translating(self._engine), self._engine.connect() as connection:
            if not connection.execute(sa.select(sa.func.pg_try_advisory_lock(key))).scalar():
                yield None
                return
            try:
                yield _Session(connection, key, str(subject))
            finally:
                _let_go(connection, key)


class _Session:
    """A session that holds the lock of a model, for as long as it lives."""

    def __init__(self, connection: sa.Connection, key: int, subject: str) -> None:
        self._connection = connection
        self._key = key
        self._subject = subject

    def require(self) -> None:
        """Ask the server whether this very session still holds the lock; one that ended was replaced unasked."""
        try:
            held = self._connection.execute(_HELD, {"key": self._key}).scalar()
        except sa.exc.SQLAlchemyError as error:
            raise ClaimMissing(f"the claim on {self._subject} ended with its connection") from error
        if not held:
            raise ClaimMissing(f"the claim on {self._subject} ended with its connection")


def _let_go(connection: sa.Connection, key: int) -> None:
    """Free the lock; a session that may still hold it is ended, not used again."""
    try:
        freed = connection.execute(sa.select(sa.func.pg_advisory_unlock(key))).scalar()
    except sa.exc.SQLAlchemyError:  # also of a connection that was lost before, and known to be
        freed = False
    if not freed:
        connection.invalidate()


_HELD = sa.text(
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid() AND objsubid = 1"
    " AND ((classid::bigint << 32) | objid::bigint) = :key"
).bindparams(sa.bindparam("key", type_=sa.BigInteger))
"""Whether this session holds a lock whose one number PostgreSQL shows as two."""
