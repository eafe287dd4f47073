"""Something that may take long, and is waited for only so long."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Background(Generic[T]):
    """A call in a thread of its own, which does not keep the process alive."""

    def __init__(self, call: Callable[[], T], name: str) -> None:
        self._call = call
        self._value: T
        self._error: Exception | None = None
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def result(self, timeout_s: float) -> T:
        """
        Return what the call returned, or raise what it raised.

        Raises:
            TimeoutError: It has done neither for `timeout_s` seconds; it goes on.
        """
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"{self._thread.name} takes longer than {timeout_s:g} s")
        if self._error is not None:
            raise self._error
        return self._value

    def _run(self) -> None:
        try:
            self._value = self._call()
        except Exception as error:  # noqa: BLE001 - the boundary of a thread: whoever asks for the result gets it
            self._error = error
