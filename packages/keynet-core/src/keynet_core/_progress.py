"""How far a transfer is: told once it takes over two seconds, to the logger `keynet.objects` or to a function."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EVERY_S = 2.0
"""How long a transfer is silent, and then how long between two tellings."""

_LOG = logging.getLogger("keynet.objects")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one transfer is."""

    what: str
    """Such as `storing package mnist`."""

    done_bytes: int
    total_bytes: int
    elapsed_s: float

    def __str__(self) -> str:
        percent = min(100, 100 * self.done_bytes // self.total_bytes) if self.total_bytes else 100
        done, total = self.done_bytes / 1e6, self.total_bytes / 1e6
        return f"{self.what}: {percent} %, {done:.1f} of {total:.1f} MB after {self.elapsed_s:.0f} s"


def _log(progress: Progress) -> None:
    _LOG.info("%s", progress)


_TELL: ContextVar[Callable[[Progress], None]] = ContextVar("keynet_tell_progress", default=_log)
_ADVANCE: ContextVar[Callable[[int], None] | None] = ContextVar("keynet_advance", default=None)


@contextmanager
def watching_progress(tell: Callable[[Progress], None]) -> Iterator[None]:
    """
    Have the transfers that begin in this block tell how far they are to `tell`, and not to the logger.

    Args:
        tell: Called every two seconds, and once more at the end, for each transfer that takes that long; from a thread
            of its own, so it must return soon, and what it raises ends the telling and not the transfer.

    """
    token = _TELL.set(tell)
    try:
        yield
    finally:
        _TELL.reset(token)


@contextmanager
def metered(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told of each few bytes done; inside another meter's block, it is that meter's."""
    if (outer := _ADVANCE.get()) is not None:
        yield outer
        return
    meter = _Meter(what, total_bytes, _TELL.get())
    token = _ADVANCE.set(meter.advance)
    meter.start()
    try:
        yield meter.advance
    finally:
        _ADVANCE.reset(token)
        meter.stop()


class _Meter:
    """Counts bytes; a thread tells of them, so that a transfer that stands still is told of as well."""

    def __init__(self, what: str, total_bytes: int, tell: Callable[[Progress], None]) -> None:
        self._what, self._total_bytes, self._tell = what, total_bytes, tell
        self._done_bytes = 0
        self._lock = Lock()
        self._ended = Event()
        self._started_s = time.monotonic()
        self._thread = Thread(target=self._run, name="keynet-progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def advance(self, count: int) -> None:
        with self._lock:
            self._done_bytes += count

    def _run(self) -> None:
        told = False
        while not self._ended.wait(EVERY_S):
            self._tell(self._now())
            told = True
        if told:
            self._tell(self._now())

    def _now(self) -> Progress:
        return Progress(
            what=self._what,
            done_bytes=self._done_bytes,
            total_bytes=self._total_bytes,
            elapsed_s=time.monotonic() - self._started_s,
        )
