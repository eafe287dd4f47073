"""One process that runs until it is ended, with everything it starts itself."""

from __future__ import annotations

import contextlib
import pwd
import signal
import subprocess
from typing import TYPE_CHECKING

from engines import _processes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

STOP_TIMEOUT_S = 30
TAIL_LINES = 25


class Daemon:
    """A running process in a session of its own: Ctrl-C in the terminal does not reach it, its end is ours to bring."""

    def __init__(self, command: Sequence[str], *, log: Path, environ: Mapping[str, str], account: str | None) -> None:
        self.log = log
        self.stop_signal = signal.SIGTERM
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env=dict(environ),
                user=account,
                group=account and _group(account),
                extra_groups=None if account is None else [],
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """Ask it to end, wait, and kill whatever is left."""
        if self.is_running:
            self._process.send_signal(self.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End it and its family with SIGKILL, and wait until they are gone."""
        # A process that begins while the list is read is in the next one.
        while entries := _processes.family(self.pid):
            _processes.send(entries, signal.SIGKILL)
            self._process.wait()
            _processes.wait_gone(entries, 10)
        self._process.wait()

    def tail(self) -> str:
        """Return the last lines it wrote."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-TAIL_LINES:])


def _group(account: str) -> int:
    return pwd.getpwnam(account).pw_gid
