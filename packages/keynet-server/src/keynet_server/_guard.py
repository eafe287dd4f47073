"""
The guardian of one child process: run as a script, between `keynet up` and an engine.

Its standard input is a pipe whose other end only `keynet up` holds. When that end closes, because `keynet up` closed
it or because it is gone (killed too), the guardian ends the engine and every process the engine started. The
guardian imports nothing of keynet, so that it starts in milliseconds.

    python -I -S _guard.py GRACE_S COMMAND...
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.1


def main(arguments: list[str]) -> int:
    """Run a command until it ends or nobody wants it any more; return its exit status."""
    grace_s, command = float(arguments[0]), arguments[1:]
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what the engine leaves behind becomes ours, and is found below
    # The guardian has one thread, so the function between fork and exec is safe.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent)  # noqa: PLW1509, S603 - see above; the command is ours
    try:
        _wait(child)
    finally:
        _end(child, grace_s)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _wait(child: subprocess.Popen[bytes]) -> None:
    while child.poll() is None:
        readable, _, _ = select.select([0], [], [], _POLL_S)
        if readable and not os.read(0, 1):
            return


def _end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    if child.poll() is None:
        _signal_group(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    _signal_group(child.pid, signal.SIGKILL)
    child.wait()
    for orphan in _children():
        _signal(orphan, signal.SIGKILL)


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _die_with_parent() -> None:
    for restored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(restored, signal.SIG_DFL)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
