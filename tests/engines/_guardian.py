"""
A small process that outlives a test run that was killed, and ends what the run had started.

It reads JSON lines from its standard input: `{"process": [pid, started]}`, `{"remove": "path or glob"}`. When the input
ends, or its parent is another one than at the start, it ends the processes, removes the paths and leaves.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from engines import _processes

GRACE_S = 5


class Guardian:
    """The other end of a guardian's standard input."""

    def __init__(self) -> None:
        environ = {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-m", "engines._guardian"],
            stdin=subprocess.PIPE,
            env=environ,
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        """End this process, with its family, when this test run is gone."""
        entry = _processes.look(pid)
        if entry is not None:
            self._tell({"process": [entry.pid, entry.started]})

    def remove(self, pattern: str) -> None:
        """Remove what matches, when this test run is gone."""
        self._tell({"remove": pattern})

    def close(self) -> None:
        """Let the guardian end and remove what is left, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _tell(self, what: dict[str, object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        self._process.stdin.flush()


def _orders() -> list[dict[str, object]]:
    """Collect lines until the input ends or the parent is gone; a forked child may hold the pipe open for longer."""
    parent, collected = os.getppid(), b""
    while os.getppid() == parent:
        if select.select([0], [], [], 0.5)[0]:
            chunk = os.read(0, 65536)
            if not chunk:
                break
            collected += chunk
    return [json.loads(line) for line in collected.splitlines()]


def _leave_nothing(orders: list[dict[str, object]]) -> None:
    alive = []
    for order in orders:
        match order:
            case {"process": [int(pid), int(started)]}:
                entry = _processes.look(pid)
                if entry is not None and entry.started == started:
                    alive += _processes.family(pid)
    _processes.end(alive, GRACE_S)
    for order in orders:
        match order:
            case {"remove": str(pattern)}:
                remove(pattern)


def remove(pattern: str) -> None:
    """Remove the files and directories that match a pattern."""
    for path in Path("/").glob(pattern.lstrip("/")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _leave_nothing(_orders())
