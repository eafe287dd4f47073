"""Watchdog: what is done over a socket is done in time, or the socket is shut down under it."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from threading import Condition, Thread
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from socket import socket


class Watchdog:
    """
    Bounds steps over sockets, one at a time; a socket's own time-out starts again with every byte that drips in.

    One thread serves any number of steps, and sleeps through those that end in time.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._thread: Thread | None = None
        self._sock: socket | None = None
        self._deadline = self._wakes_at = float("inf")
        self._has_bitten = self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    @contextmanager
    def bounding(self, sock: socket, timeout_s: float) -> Iterator[None]:
        """
        Bound what the block does.

        Raises:
            TimeoutError: It took longer, whatever it then raised or returned.

        """
        self._watch(sock, timeout_s)
        late = TimeoutError(f"no whole answer within {timeout_s:g} s")
        try:
            yield
        except Exception as error:
            if self._let_go():
                raise late from error
            raise
        else:
            # Half a line looks like a whole one when the connection ends behind it.
            if self._let_go():
                raise late
        finally:
            self._let_go()

    def _watch(self, sock: socket, timeout_s: float) -> None:
        with self._changed:
            self._sock, self._has_bitten = sock, False
            self._deadline = time.monotonic() + timeout_s
            if self._thread is None:
                self._thread = Thread(target=self._run, name="keynet-watchdog", daemon=True)
                self._thread.start()
            elif self._deadline < self._wakes_at:
                self._changed.notify()

    def _let_go(self) -> bool:
        """End the step, and return whether its time was over."""
        with self._changed:
            self._sock, self._deadline = None, float("inf")
            return self._has_bitten

    def _run(self) -> None:
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                if self._sock is not None and now >= self._deadline:
                    _shut_down(self._sock)
                    self._sock, self._deadline, self._has_bitten = None, float("inf"), True
                self._wakes_at = self._deadline
                self._changed.wait(None if self._deadline == float("inf") else self._deadline - now)


def _shut_down(sock: socket) -> None:
    from socket import SHUT_RDWR, socket

    with suppress(OSError):  # closed in this very moment
        socket.shutdown(sock, SHUT_RDWR)  # the plain one: TLS must not be unwrapped under a reader
