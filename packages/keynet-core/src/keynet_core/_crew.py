"""A few threads for one transfer; they end with it, so that a process that forks later has none."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

T = TypeVar("T")


class Crew:
    """A few threads, and no more work handed to them than a bound, because work holds memory."""

    def __init__(self, pool: ThreadPoolExecutor, limit: int) -> None:
        self._pool, self._limit = pool, limit
        self._pending: set[Future[Any]] = set()

    def hand(self, work: Callable[..., T], *arguments: object) -> Future[T]:
        """Have a thread do something; wait until they take more, and raise what an earlier one raised."""
        while len(self._pending) >= self._limit:
            self._settle()
        future = self._pool.submit(copy_context().run, work, *arguments)
        self._pending.add(future)
        return future

    def finish(self) -> None:
        """Wait for all of them, and raise what one of them raised."""
        while self._pending:
            self._settle()

    def _settle(self) -> None:
        done, self._pending = wait(self._pending, return_when=FIRST_COMPLETED)
        for each in done:
            each.result()


@contextmanager
def crew_of(workers: int, *, ahead: int = 0) -> Iterator[Crew]:
    """
    Yield a few threads; when the block fails, what none of them has begun is left undone.

    Args:
        workers: How many.
        ahead: How much more may be handed to them than they have in hand.

    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="keynet-transfer")
    try:
        yield Crew(pool, workers + ahead)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
