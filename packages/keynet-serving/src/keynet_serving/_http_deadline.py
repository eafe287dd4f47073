"""A moment that is often moved and seldom reached: one timer behind it, which is not touched when it moves away."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_NEVER = float("inf")
_CLOCK_S = 0.001


class Deadline:
    """
    Calls when a time is over.

    Args:
        loop: Whose clock and timers it uses.
        call: What to call.
    """

    __slots__ = ("_at", "_call", "_loop", "_timer", "_timer_at")

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call
        self._at = _NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = _NEVER

    def set(self, seconds: float) -> None:
        """Call in so many seconds, and not when it was said before."""
        self._at = self._loop.time() + seconds
        if self._at < self._timer_at:
            self._set_timer()

    def clear(self) -> None:
        """Do not call."""
        self._at = _NEVER

    def close(self) -> None:
        """Do not call, and let go of what would be called."""
        self._at = self._timer_at = _NEVER
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._at
        self._timer = self._loop.call_at(self._at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._timer_at = _NEVER
        if self._loop.time() >= self._at - _CLOCK_S:
            self._at = _NEVER
            self._call()
        elif self._at != _NEVER:
            self._set_timer()
