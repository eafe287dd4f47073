"""One process at a time, and what is made once however many start at the same time."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from keynet_core._durable import replacing
from keynet_core._errors import LockTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_POLL_S = 0.02


@contextmanager
def locked(path: Path, *, timeout_s: float) -> Iterator[None]:
    """
    Hold the lock that the file `path` stands for; the kernel frees it when the process ends, however it ends.

    Raises:
        LockTimeout: Another process, or another thread, held it for longer than `timeout_s` seconds.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = os.getpid()
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _wait_for(handle, path, time.monotonic() + timeout_s)
        yield
    finally:
        # Not left to close alone: a child forked meanwhile holds a copy of the handle, and with it the lock.
        # The child itself must not free what its parent still holds.
        if os.getpid() == owner:
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def is_held(path: Path) -> bool:
    """Return whether some process holds the lock of a file now."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not see each other
    except BlockingIOError:
        return True
    else:
        # Not left to close alone: a child forked in this moment would go on to hold it.
        fcntl.flock(handle, fcntl.LOCK_UN)
        return False
    finally:
        os.close(handle)


def _wait_for(handle: int, path: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise LockTimeout(f"another process holds {path}", hint="wait for it to end, then try again") from None
            time.sleep(_POLL_S)
        else:
            return


def create_once(path: Path, lock: Path, make: Callable[[Path], object], *, timeout_s: float) -> None:
    """
    Have `make` write a file that is not there yet, under another name: `path` appears whole, or not at all.

    Raises:
        LockTimeout: Another process was making it for longer than `timeout_s` seconds.
    """
    if path.exists():
        return
    with locked(lock, timeout_s=timeout_s):
        if not path.exists():
            with replacing(path) as staged:
                make(staged)
