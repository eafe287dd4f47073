"""One ONNX Runtime session: what the graph takes and gives, and a run that knows every element type."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keynet_core import DataType
from keynet_serving._errors import ModelFailed, VersionRefused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]

_ONNX_TYPES = {
    "tensor(bool)": DataType.BOOL,
    "tensor(uint8)": DataType.UINT8,
    "tensor(uint16)": DataType.UINT16,
    "tensor(uint32)": DataType.UINT32,
    "tensor(uint64)": DataType.UINT64,
    "tensor(int8)": DataType.INT8,
    "tensor(int16)": DataType.INT16,
    "tensor(int32)": DataType.INT32,
    "tensor(int64)": DataType.INT64,
    "tensor(float16)": DataType.FP16,
    "tensor(bfloat16)": DataType.BF16,
    "tensor(float)": DataType.FP32,
    "tensor(double)": DataType.FP64,
    "tensor(string)": DataType.STRING,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTensor:
    """An input or output of a graph; an axis is a size, a symbol, or None where the graph leaves it open."""

    name: str
    dtype: DataType
    shape: tuple[int | str | None, ...]

    @property
    def sizes(self) -> list[int]:
        """The shape as Triton writes it: -1 for each axis that may vary."""
        return [axis if isinstance(axis, int) and axis >= 0 else -1 for axis in self.shape]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How ONNX Runtime runs a graph; 0 threads means that ONNX Runtime decides."""

    intra_op_threads: int = 0
    inter_op_threads: int = 0
    parallel: bool = False
    memory_arena: bool = True
    graph_level: int = 0
    use_cuda: bool = False


class Session:
    """
    An ONNX Runtime session.

    Args:
        path: The model file; its external data must lie in the same real directory, which ONNX Runtime checks.
        options: How to run it.

    Raises:
        VersionRefused: ONNX Runtime cannot load the file, or it has tensors that no client could send.
    """

    def __init__(self, path: Path, options: SessionOptions) -> None:
        import onnxruntime

        providers = ["CUDAExecutionProvider"] * options.use_cuda + ["CPUExecutionProvider"]
        self._failures = run_failures()
        try:
            session = onnxruntime.InferenceSession(str(path), _to_ort(options), providers=providers)
        except self._failures as error:
            raise VersionRefused(f"onnx runtime error: {error}") from error
        self._session = session
        self._ort_value = onnxruntime.OrtValue
        self.inputs = tuple(map(_to_tensor, session.get_inputs()))
        self.outputs = tuple(map(_to_tensor, session.get_outputs()))
        _refuse_mixture(self.inputs, self.outputs)
        self._takes_bf16 = _first(self.inputs, DataType.BF16) is not None
        self._gives_bf16 = _first(self.outputs, DataType.BF16) is not None

    @property
    def batch_symbol(self) -> str | None:
        """The symbol that is the first axis of every input and every output, or None."""
        firsts = {tensor.shape[0] if tensor.shape else None for tensor in (*self.inputs, *self.outputs)}
        only = firsts.pop() if len(firsts) == 1 else None
        return only if isinstance(only, str) else None

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """
        Run the graph; STRING tensors are arrays of `str`, the only text ONNX Runtime's binding takes.

        Raises:
            ModelFailed: ONNX Runtime refused or failed.
        """
        try:
            if self._gives_bf16:
                return self._run_values(names, feeds)
            given = {name: self._to_feed(feed) for name, feed in feeds.items()} if self._takes_bf16 else feeds
            outputs: list[Array] = self._session.run(names, given)
        except self._failures as error:
            raise ModelFailed(f"onnx runtime error: {error}") from error
        return outputs

    def _run_values(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        import numpy as np

        given = {name: self._to_feed(feed) for name, feed in feeds.items()}
        values = {
            name: self._ort_value.ortvalue_from_numpy(feed) if isinstance(feed, np.ndarray) else feed
            for name, feed in given.items()
        }
        return [_from_value(value) for value in self._session.run_with_ort_values(names, values)]

    def _to_feed(self, feed: Array) -> Any:
        import numpy as np

        feed = np.ascontiguousarray(feed)
        if feed.dtype.name != DataType.BF16.numpy_name:
            return feed
        # ONNX Runtime's Python binding has no bfloat16: it is handed the same bits as uint16, with ONNX's type number.
        return self._ort_value.ortvalue_from_numpy_with_onnx_type(feed.view(np.uint16), DataType.BF16.onnx)


def run_failures() -> tuple[type[Exception], ...]:
    """Return every exception ONNX Runtime's binding raises: its own classes, and Python's for values it cannot take."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = [each for each in vars(state).values() if isinstance(each, type) and issubclass(each, Exception)]
    return (*found, RuntimeError, TypeError, ValueError)


def _refuse_mixture(inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor]) -> None:
    """Refuse what the binding cannot run: it makes values, which alone can be bfloat16, of no text."""
    text, bf16 = _first(inputs, DataType.STRING), _first(outputs, DataType.BF16)
    if text is not None and bf16 is not None:
        raise VersionRefused(
            f"input '{text.name}' is STRING and output '{bf16.name}' is BF16, "
            "which ONNX Runtime cannot have in one run from Python; add a Cast to FP32 in front of the output",
            label="Unsupported",
        )


def _first(tensors: Sequence[GraphTensor], dtype: DataType) -> GraphTensor | None:
    return next((tensor for tensor in tensors if tensor.dtype is dtype), None)


def _from_value(value: Any) -> Array:
    import numpy as np

    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    held = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(held, DataType.BF16.to_numpy()).reshape(value.shape())


def _to_tensor(node: Any) -> GraphTensor:
    dtype = _ONNX_TYPES.get(node.type)
    if dtype is None:
        raise VersionRefused(f"unsupported datatype {node.type} for tensor '{node.name}'")
    return GraphTensor(name=node.name, dtype=dtype, shape=tuple(node.shape or ()))


def _to_ort(options: SessionOptions) -> Any:
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    told = onnxruntime.SessionOptions()
    told.log_severity_level = 4
    told.graph_optimization_level = {
        -1: levels.ORT_ENABLE_BASIC,
        1: levels.ORT_ENABLE_EXTENDED,
        2: levels.ORT_DISABLE_ALL,
    }.get(options.graph_level, levels.ORT_ENABLE_ALL)
    told.intra_op_num_threads = options.intra_op_threads
    told.inter_op_num_threads = options.inter_op_threads
    told.enable_cpu_mem_arena = options.memory_arena
    if options.parallel:
        told.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    # A spinning pool would take the processor from the event loop that feeds it.
    told.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return told
