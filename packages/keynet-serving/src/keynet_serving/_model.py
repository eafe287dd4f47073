"""One loaded version of a model: a session, its contract, its statistics and, where it may, its batcher."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from keynet_core import DataType
from keynet_serving._admission import admit, admit_arrays
from keynet_serving._batching import Batcher, BatchPolicy, Work, merge, split
from keynet_serving._classification import classify
from keynet_serving._errors import ModelFailed, ServerBusy
from keynet_serving._requests import InferInput, InferRequest, InferResponse, OutputTensor, RequestedOutput
from keynet_serving._statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future

    import numpy.typing as npt

    from keynet_serving._contract import Contract
    from keynet_serving._session import Session

    Array = npt.NDArray[Any]

QUICK_NS = 1_000_000
TINY_NS = 100_000


class Pace:
    """
    How fast a model has been, to tell whether a run may block an event loop.

    A request larger than twice the largest one that was quick is not believed to be quick.
    """

    def __init__(self) -> None:
        self._mean_ns = math.inf
        self._quick_bytes = -1

    def is_quick(self, size_bytes: int) -> bool:
        """Whether a run on so much data is likely to take less than a millisecond."""
        return self._mean_ns < QUICK_NS and size_bytes <= 2 * self._quick_bytes

    def is_tiny(self) -> bool:
        """Whether a run costs less than merging it with others would save."""
        return self._mean_ns < TINY_NS

    def note(self, size_bytes: int, ns: int) -> None:
        """Learn from one run."""
        self._mean_ns = ns if self._mean_ns == math.inf else self._mean_ns + 0.2 * (ns - self._mean_ns)
        if ns < QUICK_NS and size_bytes > self._quick_bytes:
            self._quick_bytes = size_bytes


class ServedVersion:
    """
    A version that answers requests, from any thread.

    Args:
        version: Its number.
        config: Its complete `ModelConfig`.
        contract: The same, as the checks read it.
        session: The graph.
        max_queue: How many requests may be in it at once.
    """

    def __init__(self, *, version: int, config: Any, contract: Contract, session: Session, max_queue: int) -> None:
        self.name: str = config.name
        self.version = str(version)
        self.config = config
        self.contract = contract
        self.statistics = Statistics()
        self.pace = Pace()
        self.note = ""
        self._session = session
        self._names = tuple(contract.outputs)
        self._is_plain = all(
            row.graph_dims is None and row.dtype is not DataType.STRING
            for row in (*contract.inputs.values(), *contract.outputs.values())
        )
        self._max_queue = max_queue
        self._pending = 0
        self._lock = threading.Lock()
        self.batcher = self._make_batcher()

    @property
    def pending(self) -> int:
        """How many requests are in it now."""
        return self._pending

    def infer(self, arrays: Mapping[str, Array], outputs: Sequence[str] | None) -> dict[str, Array]:
        """
        Answer a call in process; STRING outputs are arrays of `bytes`.

        Raises:
            RequestRefused: The arrays do not fit the model.
            ModelFailed: ONNX Runtime failed.
        """
        arrived_ns = time.perf_counter_ns()
        feeds = admit_arrays(self.contract, arrays)
        if feeds is None or (outputs is not None and not self.contract.outputs.keys() >= set(outputs)):
            feeds = admit(self.contract, _to_request(self.name, arrays, outputs))
        names = self._names if outputs is None else tuple(outputs)
        if self.batcher is None:
            answers = self._run(names, feeds, arrived_ns)
        elif self.pace.is_tiny() and not self.batcher.has_delay:
            answers = self._run(names, feeds, arrived_ns, _size_of(feeds))
        else:
            answers = self.batcher.run(self._to_work(names, feeds, arrived_ns))
        if self._is_plain:
            return dict(zip(names, answers, strict=True))
        rows = self.contract.outputs
        return {name: _as_bytes(rows[name].from_graph(answer)) for name, answer in zip(names, answers, strict=True)}

    def start(self, request: InferRequest) -> Call:
        """
        Check a request of a client and return it, ready to run.

        Raises:
            RequestRefused: The request does not fit the model.
        """
        arrived_ns = time.perf_counter_ns()
        feeds = admit(self.contract, request)
        wanted = {output.name for output in request.outputs}
        names = tuple(name for name in self._names if name in wanted) if wanted else self._names
        return Call(self, request, self._to_work(names, feeds, arrived_ns))

    def run(self, work: Work) -> list[Array]:
        """Run one request to its end on this thread, through the batcher where there is one."""
        if self.batcher is None:
            return self.run_alone(work)
        return self.batcher.run(work)

    def run_alone(self, work: Work) -> list[Array]:
        """Run one request to its end on this thread, past the batcher."""
        return self._run(work.outputs, work.feeds, work.arrived_ns, work.size_bytes)

    def enter(self, request_id: str) -> None:
        """
        Count a request in.

        Raises:
            ServerBusy: Too many are in already.
        """
        with self._lock:
            if self._pending < self._max_queue:
                self._pending += 1
                return
        self.statistics.add_failure("REJECTED", 0)
        raise ServerBusy(f"[request id: {request_id or '<id_unknown>'}] Exceeds maximum queue size")

    def leave(self) -> None:
        """Count a request out."""
        with self._lock:
            self._pending -= 1

    def retire(self) -> None:
        """Stop queueing; what is queued is answered, and the session is freed with the last request that uses it."""
        if self.batcher is not None:
            self.batcher.close()

    def _make_batcher(self) -> Batcher | None:
        if self.config.max_batch_size < 1 or not self.config.HasField("dynamic_batching"):
            return None
        if self._session.batch_symbol is None:
            self.note = (
                "requests are not merged: the first axis is not the same symbol in every input and output of the graph"
            )
            return None
        return Batcher(self._execute, BatchPolicy.from_config(self.config))

    def _to_work(self, names: Sequence[str], feeds: Mapping[str, Array], arrived_ns: int) -> Work:
        rows, size_bytes = self._rows(feeds), _size_of(feeds)
        return Work(feeds=feeds, outputs=names, rows=rows, size_bytes=size_bytes, arrived_ns=arrived_ns)

    def _rows(self, feeds: Mapping[str, Array]) -> int:
        return next(iter(feeds.values())).shape[0] if self.contract.max_batch_size > 0 and feeds else 1

    def _run(
        self, names: Sequence[str], feeds: Mapping[str, Array], arrived_ns: int, size_bytes: int = 0
    ) -> list[Array]:
        statistics = self.statistics
        begun_ns = time.perf_counter_ns()
        try:
            outputs = self._session.run(names, feeds)
        except ModelFailed:
            statistics.add_failure("BACKEND", time.perf_counter_ns() - arrived_ns)
            raise
        ended_ns = time.perf_counter_ns()
        ns = ended_ns - begun_ns
        rows = self._rows(feeds)
        if size_bytes:
            self.pace.note(size_bytes, ns)
        statistics.add_alone(total_ns=ended_ns - arrived_ns, infer_ns=ns, rows=rows)
        return outputs

    def _execute(self, works: Sequence[Work]) -> list[list[Array] | Exception]:
        """Run queued requests as one; where that fails, each for itself, so that one's failure is its own."""
        if len(works) > 1:
            merged = self._run_merged(works)
            if merged is not None:
                return list(merged)
        return [self._outcome(work) for work in works]

    def _run_merged(self, works: Sequence[Work]) -> list[list[Array]] | None:
        wanted = {name for work in works for name in work.outputs}
        names = [name for name in self._names if name in wanted]
        begun_ns = time.perf_counter_ns()
        try:
            outputs = self._session.run(names, merge(works))
        except ModelFailed:
            return None
        ended_ns = time.perf_counter_ns()
        answers = split(works, dict(zip(names, outputs, strict=True)))
        if answers is None:
            return None
        self._count_merged(works, begun_ns, ended_ns)
        return answers

    def _count_merged(self, works: Sequence[Work], begun_ns: int, ended_ns: int) -> None:
        ns = ended_ns - begun_ns
        self.pace.note(sum(work.size_bytes for work in works), ns)
        self.statistics.add_execution(sum(work.rows for work in works), ns)
        for work in works:
            self.statistics.add_success(
                total_ns=ended_ns - work.arrived_ns,
                queue_ns=begun_ns - work.arrived_ns,
                infer_ns=ns,
                rows=work.rows,
            )

    def _outcome(self, work: Work) -> list[Array] | Exception:
        try:
            return self.run_alone(work)
        except ModelFailed as error:
            return error


class Call:
    """A checked request on its way through one version; use it as a context while it runs."""

    __slots__ = ("_version", "_work", "request")

    def __init__(self, version: ServedVersion, request: InferRequest, work: Work) -> None:
        self.request = request
        self._version = version
        self._work = work

    def __enter__(self) -> Self:
        self._version.enter(self.request.id)
        return self

    def __exit__(self, *_: object) -> None:
        self._version.leave()

    @property
    def is_quick(self) -> bool:
        """Whether the run is short enough for an event loop to wait for it."""
        return self._version.pace.is_quick(self._work.size_bytes)

    def is_inline(self, *, is_only_client: bool) -> bool:
        """Whether an event loop does best to run it at once, on its own thread and alone."""
        version = self._version
        if not version.pace.is_quick(self._work.size_bytes):
            return False
        batcher = version.batcher
        if batcher is None:
            return True
        return not batcher.has_delay and (version.pace.is_tiny() or (is_only_client and batcher.is_idle))

    @property
    def batcher(self) -> Batcher | None:
        """The queue in front of the version, if it has one."""
        return self._version.batcher

    def run(self) -> list[Array]:
        """Run to the end on this thread."""
        return self._version.run(self._work)

    def run_alone(self) -> list[Array]:
        """Run to the end on this thread, past the queue: the model is so quick that nobody waits in it."""
        return self._version.run_alone(self._work)

    def submit(self, batcher: Batcher, *, is_deferred: bool) -> Future[list[Array]]:
        """Queue the request."""
        return batcher.submit(self._work, is_deferred=is_deferred)

    def answer(self, outputs: Sequence[Array]) -> InferResponse:
        """Return the outputs as the client is to see them."""
        classes = {output.name: output.class_count for output in self.request.outputs if output.class_count}
        rows = self._version.contract.outputs
        tensors = []
        for name, output in zip(self._work.outputs, outputs, strict=True):
            row = rows[name]
            array = row.from_graph(output)
            tensors.append(
                classify(row, array, classes[name])
                if name in classes
                else OutputTensor(name=name, dtype=row.dtype, array=array)
            )
        return InferResponse(
            model=self._version.name, version=self._version.version, id=self.request.id, outputs=tuple(tensors)
        )


def _size_of(feeds: Mapping[str, Array]) -> int:
    return sum(feed.nbytes for feed in feeds.values())


def _to_request(name: str, arrays: Mapping[str, Array], outputs: Sequence[str] | None) -> InferRequest:
    inputs = tuple(
        InferInput(name=each, datatype=DataType.from_numpy(array.dtype).kserve, shape=tuple(array.shape), data=array)
        for each, array in arrays.items()
    )
    wanted = tuple(RequestedOutput(name=each) for each in outputs or ())
    return InferRequest(model=name, inputs=inputs, outputs=wanted)


def _as_bytes(array: Array) -> Array:
    import numpy as np

    if array.dtype.kind != "O":
        return array
    result = np.empty(array.size, dtype=np.object_)
    result[:] = [each.encode() if isinstance(each, str) else each for each in array.ravel().tolist()]
    return result.reshape(array.shape)
