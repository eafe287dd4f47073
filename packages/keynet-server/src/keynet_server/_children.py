"""
Engines as child processes: started, waited for, started again when they end, and gone when we are.

Each child runs under a guardian (`_guard.py`) that holds one end of a pipe. The kernel closes our end however we end,
so no child survives us, not even SIGKILL.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keynet_server import _guard
from keynet_server._errors import ChildFailed
from keynet_server._ports import listens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

GRACE_S = 5.0
_KEPT_LOGS = 3
_SHOWN_LINES = 12
_POLL_S = 0.05
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a child is: its command and surroundings, and how it shows that it is ready."""

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    directory: Path
    log: Path
    health_url: str
    timeout_s: float = 60.0


class Child:
    """A program that runs, under its guardian."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.restarts = 0
        self._start()

    def _start(self) -> None:
        read_end, self._lifeline = os.pipe()
        arguments = [sys.executable, "-I", "-S", _guard.__file__, str(GRACE_S), *self.program.command]
        self.program.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.program.log.open("ab") as log:
                self._guardian = subprocess.Popen(  # noqa: S603 - commands are made here, of absolute paths
                    arguments,
                    stdin=read_end,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(self.program.environ),
                    cwd=self.program.directory,
                    start_new_session=True,  # Ctrl-C reaches us only; we end the children in order
                )
        finally:
            os.close(read_end)
        self.started_at = time.monotonic()

    @property
    def pid(self) -> int:
        """The guardian's process id."""
        return self._guardian.pid

    def exit_status(self) -> int | None:
        """Return the status the child ended with, or None while it runs."""
        return self._guardian.poll()

    def wait_until_ready(self, wanted: Callable[[], bool]) -> float:
        """
        Return after how many seconds the child answered that it is ready.

        Raises:
            ChildFailed: It ended, or did not answer in time; the last lines of its log are in the message.

        """
        deadline = self.started_at + self.program.timeout_s
        while wanted():
            if (status := self.exit_status()) is not None:
                raise self._failed(f"ended with status {status}")
            if answers(self.program.health_url) and self._is_what_answers():
                break
            if time.monotonic() > deadline:
                raise self._failed(f"is not ready after {self.program.timeout_s:.0f} s")
            time.sleep(_POLL_S)
        return time.monotonic() - self.started_at

    def _is_what_answers(self) -> bool:
        """Return whether the answer is ours: another program may have had the port before the child bound it."""
        port = int(self.program.health_url.removeprefix("http://").partition("/")[0].rpartition(":")[2])
        return self.exit_status() is None and listens(port, self.pid) is not False

    def restart(self) -> None:
        """Start the program again."""
        self.let_go()
        self.restarts += 1
        self._start()

    def let_go(self) -> None:
        """Close the pipe: the guardian ends the child."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def wait(self, timeout_s: float) -> None:
        """Wait for the end; a guardian that takes too long is killed, and the kernel ends its child."""
        try:
            self._guardian.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._guardian.kill()
            self._guardian.wait()

    def last_lines(self) -> str:
        """Return the end of the child's log."""
        with self.program.log.open("rb") as log:
            log.seek(max(0, self.program.log.stat().st_size - 8192))
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-_SHOWN_LINES:])

    def _failed(self, what: str) -> ChildFailed:
        name, log = self.program.name, self.program.log
        return ChildFailed(f"{name} {what}; the end of its log:\n{self.last_lines()}", hint=f"less {log}")


class Children:
    """All children of `keynet up`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._all: list[Child] = []
        self._due: dict[str, float] = {}

    def start(self, program: Program) -> Child:
        """Start a program and keep it."""
        rotate(program.log)
        child = Child(program)
        self._all.append(child)
        return child

    def tend(self) -> None:
        """Start again what ended, after a pause that grows while it keeps ending."""
        now = time.monotonic()
        for child in self._all:
            if (status := child.exit_status()) is None:
                continue
            name = child.program.name
            if name not in self._due:
                pause_s = self._pause_after(child, now)
                self._due[name] = now + pause_s
                self._say(
                    f"{name} ended with status {status}; it starts again in {pause_s:.0f} s ({child.program.log})"
                )
            elif self._due[name] <= now:
                del self._due[name]
                child.restart()
                self._say(f"{name} started again")

    def stop(self) -> None:
        """End all children, at the same time, within seconds."""
        for child in self._all:
            child.let_go()
        deadline = time.monotonic() + GRACE_S + 2.0
        for child in self._all:
            child.wait(max(0.1, deadline - time.monotonic()))

    def _pause_after(self, child: Child, now: float) -> float:
        if now - child.started_at > _STEADY_S:
            child.restarts = 0
        return min(2.0**child.restarts - 0.5, _LONGEST_PAUSE_S)


def answers(url: str, *, timeout_s: float = 1.0) -> bool:
    """Return whether a loopback address answers 200 to GET; proxies are not asked."""
    host, _, rest = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=timeout_s)
    try:
        connection.request("GET", f"/{rest}")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def rotate(log: Path, kept: int = _KEPT_LOGS) -> None:
    """Move a log of an earlier start aside, and drop the oldest."""
    names: Sequence[Path] = [log, *(log.with_name(f"{log.name}.{number}") for number in range(1, kept + 1))]
    for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
        if newer.exists():
            newer.replace(older)
