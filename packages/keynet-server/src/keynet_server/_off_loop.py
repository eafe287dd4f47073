"""A function that waits, called from a coroutine that must not."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


async def off_loop(function: Callable[[], R]) -> R:
    """
    Return what `function` returns, called in a thread of its own.

    The thread is a daemon: a database or a store that hangs keeps no process from ending, as asyncio's own threads do.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[R] = loop.create_future()

    def settle(value: R | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(value)  # type: ignore[arg-type]  # one of the two is there

    def run() -> None:
        value, error = None, None
        try:
            value = function()
        except BaseException as raised:  # noqa: BLE001  # it is raised again where it is awaited
            error = raised
        with suppress(RuntimeError):  # the loop ended meanwhile, and nobody waits
            loop.call_soon_threadsafe(settle, value, error)

    Thread(target=run, name="keynet-consumer-call", daemon=True).start()
    return await done
