"""PostgreSQL, from Debian's packages."""

from __future__ import annotations

import itertools
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from engines._engine import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence

USER, PASSWORD = "keynet", "keynet-tests"


class Postgres(Engine):
    """One PostgreSQL server with fsync on, as it comes; every `database()` is a new one."""

    NAME: ClassVar[str] = "PostgreSQL"
    PORT_COUNT: ClassVar[int] = 1
    ACCOUNTS: ClassVar[Sequence[str]] = ("postgres", "nobody")  # it refuses to be run by root

    @classmethod
    def is_installed(cls) -> str | None:
        return None if _binaries() else "no initdb and postgres"

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)

    @property
    def url(self) -> str:
        """Where the server is, as SQLAlchemy writes it, with the database that only makes others."""
        return self._url("postgres")

    def database(self) -> str:
        """Create an empty database and return its URL."""
        import psycopg
        from psycopg import sql

        name = f"keynet_{next(self._numbers)}"
        with psycopg.connect(_plain(self.url), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._url(name)

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def _prepare(self) -> None:
        secret = self.directory / "password"
        secret.write_text(PASSWORD, encoding="ascii")
        secret.chmod(0o644)
        options = ["--encoding=UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256", "--no-sync", "--no-instructions"]
        data = str(self.directory / "data")
        self._call([_binary("initdb"), "-D", data, "-U", USER, f"--pwfile={secret}", *options])

    def _launch(self) -> None:
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "32MB",
            "dynamic_shared_memory_type": "mmap",  # the other kinds outlive a SIGKILL outside the directory
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        daemon = self._run("postgres", [_binary("postgres"), "-D", str(self.directory / "data"), *options])
        daemon.stop_signal = signal.SIGINT  # ends connections; SIGTERM would wait for them
        self._await(self._answers)

    def kill(self) -> None:
        """End every process with SIGKILL; what the kernel keeps for the dead server is removed, as a reboot would."""
        was_there = bool(self._daemons)
        super().kill()
        if was_there:
            state = self.directory / "data" / "postmaster.pid"
            segment = state.read_text(encoding="ascii").splitlines()[6].split() if state.exists() else []
            if segment:
                self._call(["ipcrm", "--shmem-id", segment[-1]])

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(_plain(self.url), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


def _plain(url: str) -> str:
    """Return the URL as libpq reads it."""
    return url.replace("+psycopg", "", 1)


def _binaries() -> Path | None:
    """Find where initdb is: on the path, or the newest of Debian's versions, which are not on it."""
    found = [Path(path).parent for path in [shutil.which("initdb")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    return next((path for path in found if (path / "initdb").exists() and (path / "postgres").exists()), None)


def _binary(name: str) -> str:
    directory = _binaries()
    assert directory is not None, "is_installed() told otherwise"
    return str(directory / name)
