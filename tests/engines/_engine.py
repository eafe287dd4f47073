"""What all engines have in common: a directory, ports, processes, and an end that leaves nothing."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from engines import _processes
from engines._daemon import Daemon
from engines._errors import EngineFailed
from engines._guardian import Guardian, remove
from engines._ports import Ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

READY_TIMEOUT_S = 90
PORT_TAKEN = ("address already in use", "eaddrinuse", "already in use")


def search_path() -> str:
    """Return where programs are looked for: also where Debian has those of administrators."""
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def missing_programs(*names: str) -> str | None:
    """Return None, or which of the programs are not there."""
    missing = [name for name in names if shutil.which(name, path=search_path()) is None]
    return f"no {', '.join(missing)}" if missing else None


class Engine(ABC):
    """
    One isolated instance of an engine.

    `start` after `stop` or `kill` finds the same addresses and the same data; `close` removes everything. A test run
    that is itself killed leaves nothing either: see `_guardian`.
    """

    NAME: ClassVar[str]
    PORT_COUNT: ClassVar[int]
    ACCOUNTS: ClassVar[Sequence[str]] = ()
    """Who runs it when root runs the tests, the first that exists; nobody in particular: root."""

    @classmethod
    @abstractmethod
    def is_installed(cls) -> str | None:
        """Return None, or what is missing in one line."""

    def __init__(self) -> None:
        self._daemons: list[Daemon] = []
        self._ending = contextlib.ExitStack()
        self._is_prepared = False

    @abstractmethod
    def _prepare(self) -> None:
        """Write what the first start needs; daemons may be started already."""

    @abstractmethod
    def _launch(self) -> None:
        """Start the daemons and wait until they answer."""

    @property
    def is_running(self) -> bool:
        """Whether all processes of the engine are there."""
        return bool(self._daemons) and all(daemon.is_running for daemon in self._daemons)

    def start(self) -> None:
        """Start the engine, and return when it answers; nothing happens when it runs."""
        if self.is_running:
            return
        self.kill()
        if self._is_prepared:
            self._guarded(self._launch)
            return
        for tries_left in (2, 1, 0):
            try:
                self._start_anew()
            except EngineFailed as error:
                if not tries_left or not any(words in str(error).lower() for words in PORT_TAKEN):
                    raise
            else:
                return

    def stop(self) -> None:
        """End the engine as its makers want it ended, and keep its data."""
        for daemon in reversed(self._daemons):
            daemon.stop()
        self._daemons.clear()

    def kill(self) -> None:
        """End every process of the engine with SIGKILL, and keep its data."""
        for daemon in self._daemons:
            daemon.kill()
        self._daemons.clear()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold every process of the engine: the kernel accepts connections, and nobody answers until the block ends."""
        held = [entry for daemon in self._daemons for entry in _processes.family(daemon.pid)]
        _processes.send(held, signal.SIGSTOP)
        try:
            yield
        finally:
            _processes.send(held, signal.SIGCONT)

    def close(self) -> None:
        """End the engine and remove its data, which therefore need not be written first."""
        try:
            self.kill()
        finally:
            self._is_prepared = False
            self._ending.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_anew(self) -> None:
        self._ending = contextlib.ExitStack()
        with contextlib.ExitStack() as failing:
            failing.callback(self._ending.close)
            self._guardian = Guardian()
            self._ending.callback(self._guardian.close)
            self.directory = Path(tempfile.mkdtemp(prefix=f"keynet-{self.NAME.lower()}-"))
            self._leave_nothing_of(str(self.directory))
            self._owner = self._account()
            if self._owner is not None:
                shutil.chown(self.directory, self._owner)
            ports = Ports(self.PORT_COUNT)
            self._ending.callback(ports.close)
            self.port = ports.first
            self._guarded(self._prepare)
            self._guarded(self._launch)
            self._is_prepared = True
            failing.pop_all()

    def _leave_nothing_of(self, pattern: str) -> None:
        """Remove what matches the pattern, in the end."""
        self._guardian.remove(pattern)
        self._ending.callback(remove, pattern)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Take a step; when it fails, or is interrupted, no process is left."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.kill)
            step()
            stack.pop_all()

    def _account(self) -> str | None:
        if os.geteuid() != 0:
            return None
        known = {entry.pw_name for entry in pwd.getpwall()}
        return next((name for name in self.ACCOUNTS if name in known), None)

    def _environ(self) -> dict[str, str]:
        """Return what every process of the engine gets: nothing of the tests' own environment but the path."""
        return {"PATH": search_path(), "HOME": str(self.directory), "LANG": "C.UTF-8", "TMPDIR": str(self.directory)}

    def _run(self, name: str, command: Sequence[str], environ: Mapping[str, str] | None = None) -> Daemon:
        """Start a daemon; its output goes to a file of its name."""
        daemon = Daemon(
            command,
            log=self.directory / f"{name}.out",
            environ=self._environ() | dict(environ or {}),
            account=self._owner,
        )
        self._daemons.append(daemon)
        self._guardian.watch(daemon.pid)
        return daemon

    def _call(self, command: Sequence[str], *, text: str = "", timeout_s: float = 60) -> str:
        """Run a command of the engine to its end and return what it said."""
        try:
            done = subprocess.run(
                command,
                input=text,
                env=self._environ(),
                user=self._owner,
                cwd=self.directory,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EngineFailed(f"{self.NAME}: {command[0]} did not end within {timeout_s} s{self._logs()}") from None
        if done.returncode != 0:
            raise EngineFailed(f"{self.NAME}: {command[0]} failed: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def _await(self, is_ready: Callable[[], bool], timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until the engine answers."""
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            for daemon in self._daemons:
                if not daemon.is_running:
                    raise EngineFailed(f"{self.NAME} ended while it started{self._logs()}")
            if time.monotonic() > deadline:
                raise EngineFailed(f"{self.NAME} did not answer within {timeout_s:.0f} s{self._logs()}")
            time.sleep(0.05)

    def _logs(self) -> str:
        return "".join(f"\n--- {daemon.log.name}\n{daemon.tail()}" for daemon in self._daemons)
