"""Dynamic batching: requests that wait together run together, and each is answered for itself."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keynet_serving._errors import ServerBusy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Outcome = list[Array] | Exception

_WORKERS_MAX = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """One admitted request: what to feed, and which outputs to compute."""

    feeds: Mapping[str, Array]
    outputs: Sequence[str]
    rows: int
    size_bytes: int
    arrived_ns: int

    @property
    def key(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """What two requests must share to be merged: every shape beyond the batch axis."""
        return tuple((name, self.feeds[name].shape[1:]) for name in sorted(self.feeds))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Queued:
    """A request in the queue, and where its answer goes."""

    work: Work
    future: Future[list[Array]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """What `dynamic_batching` in a configuration says."""

    max_rows: int
    preferred_rows: tuple[int, ...] = ()
    delay_ns: int = 0
    max_queue: int = 0
    instances: int = 1

    @classmethod
    def from_config(cls, config: Any) -> BatchPolicy:
        """Read a `ModelConfig` that has `dynamic_batching`."""
        told = config.dynamic_batching
        preferred = sorted(rows for rows in told.preferred_batch_size if 0 < rows <= config.max_batch_size)
        return cls(
            max_rows=config.max_batch_size,
            preferred_rows=tuple(preferred),
            delay_ns=told.max_queue_delay_microseconds * 1000,
            max_queue=told.default_queue_policy.max_queue_size,
            instances=max(1, sum(group.count for group in config.instance_group)),
        )


class Batcher:
    """
    A queue in front of one session.

    A request that finds the session idle runs at once on the thread that brought it. One that finds it busy waits,
    and a worker runs all that fit together when the session is free or the queue delay is over.

    Args:
        execute: Runs works together and returns for each its outputs or its error, in order.
        policy: When to run, and how many rows together.
    """

    def __init__(self, execute: Callable[[Sequence[Work]], list[Outcome]], policy: BatchPolicy) -> None:
        self._execute = execute
        self._policy = policy
        self._ready_rows = policy.preferred_rows[0] if policy.preferred_rows else policy.max_rows
        self._queue: deque[_Queued] = deque()
        self._changed = threading.Condition()
        self._running = 0
        self._is_closed = False
        for _ in range(min(policy.instances, _WORKERS_MAX)):
            threading.Thread(target=self._work, name="keynet-serving-batch", daemon=True).start()

    @property
    def has_delay(self) -> bool:
        """Whether a request waits for others even when the session is idle."""
        return self._policy.delay_ns > 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits; true for this moment only."""
        return not self._running and not self._queue

    def run(self, work: Work) -> list[Array]:
        """Run a request, alone when the session is idle, and return its outputs."""
        if not self.has_delay and self._claim_idle():
            try:
                return _or_raise(self._execute([work])[0])
            finally:
                self._release()
        return self.submit(work).result()

    def submit(self, work: Work, *, is_deferred: bool = False) -> Future[list[Array]]:
        """
        Queue a request and return the future of its outputs.

        Args:
            work: The request.
            is_deferred: The caller will call `drain` next, after others had the chance to submit.

        Raises:
            ServerBusy: The queue is full.
        """
        queued = _Queued(work=work, future=Future())
        with self._changed:
            if not self._is_closed:
                if 0 < self._policy.max_queue <= len(self._queue):
                    raise ServerBusy("Exceeds maximum queue size")
                self._queue.append(queued)
                if not is_deferred:
                    self._changed.notify()
                return queued.future
        self._serve([queued])
        return queued.future

    def drain(self) -> None:
        """Run what is queued on this thread if the session is idle; leave it to a worker otherwise."""
        with self._changed:
            batch = [] if self._running >= self._policy.instances or not self._queue else self._take()
            if not batch:
                self._changed.notify()
                return
            self._running += 1
        try:
            self._serve(batch)
        finally:
            self._release()

    def close(self) -> None:
        """Let the workers finish what is queued and end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _claim_idle(self) -> bool:
        with self._changed:
            if self._queue or self._running >= self._policy.instances:
                return False
            self._running += 1
            return True

    def _release(self) -> None:
        with self._changed:
            self._running -= 1
            if self._queue:
                self._changed.notify()

    def _work(self) -> None:
        while batch := self._next():
            try:
                self._serve(batch)
            finally:
                self._release()

    def _next(self) -> list[_Queued]:
        """Wait for requests that may run now and claim the session for them; empty when closed and done."""
        with self._changed:
            while True:
                if self._is_closed and not self._queue:
                    return []
                wait_ns = self._wait_ns()
                if wait_ns == 0:
                    self._running += 1
                    return self._take()
                self._changed.wait(None if wait_ns is None else wait_ns / 1e9)

    def _wait_ns(self) -> int | None:
        if not self._queue or self._running >= self._policy.instances:
            return None
        if self._is_closed or not self.has_delay or self._waiting_rows() >= self._ready_rows:
            return 0
        return max(0, self._queue[0].work.arrived_ns + self._policy.delay_ns - time.perf_counter_ns())

    def _waiting_rows(self) -> int:
        key = self._queue[0].work.key
        return sum(queued.work.rows for queued in self._queue if queued.work.key == key)

    def _take(self) -> list[_Queued]:
        waiting = self._waiting_rows()
        limit = max((rows for rows in self._policy.preferred_rows if rows <= waiting), default=self._policy.max_rows)
        head = self._queue.popleft()
        taken, left, rows = [head], deque[_Queued](), head.work.rows
        for queued in self._queue:
            if rows + queued.work.rows <= limit and queued.work.key == head.work.key:
                taken.append(queued)
                rows += queued.work.rows
            else:
                left.append(queued)
        self._queue = left
        return taken

    def _serve(self, batch: Sequence[_Queued]) -> None:
        try:
            outcomes = self._execute([queued.work for queued in batch])
        except Exception as error:  # noqa: BLE001 -- the callers wait on their futures: an error must reach them there
            outcomes = [error] * len(batch)
        for queued, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                queued.future.set_exception(outcome)
            else:
                queued.future.set_result(outcome)


def merge(works: Sequence[Work]) -> dict[str, Array]:
    """Return the feeds of several requests, one below the other."""
    import numpy as np

    return {name: np.concatenate([work.feeds[name] for work in works]) for name in works[0].feeds}


def split(works: Sequence[Work], outputs: Mapping[str, Array]) -> list[list[Array]] | None:
    """Return each request's rows of its outputs, or None where an output does not have the rows of the inputs."""
    total = sum(work.rows for work in works)
    if any(array.ndim == 0 or array.shape[0] != total for array in outputs.values()):
        return None
    answers = []
    at = 0
    for work in works:
        answers.append([outputs[name][at : at + work.rows] for name in work.outputs])
        at += work.rows
    return answers


def _or_raise(outcome: Outcome) -> list[Array]:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
