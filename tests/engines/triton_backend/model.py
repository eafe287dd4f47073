"""
Triton's backend `onnxruntime`, in Python: `1/model.onnx` answered by the onnxruntime package.

Stands in for libtriton_onnxruntime.so, which is in no package index, and says what that one says when a configuration
does not fit a model. Runs inside tritonserver's stub process, in the environment `.venv-triton`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DEFAULT_MAX_BATCH_SIZE = 4
DEFAULT_FILENAME = "model.onnx"
BFLOAT16 = "tensor(bfloat16)"
STRING = "tensor(string)"

TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    BFLOAT16: "TYPE_BF16",
    STRING: "TYPE_STRING",
}

GRAPH_LEVELS = {
    "-1": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "1": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "2": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def refuse(message: str) -> Any:
    """Return what Triton shows as the reason of a failed load."""
    return pb_utils.TritonModelException(message)


# --- The graph and the configuration


def sizes(node: Any) -> list[int]:
    """Return a tensor's shape in the graph, -1 where it is open."""
    return [size if isinstance(size, int) and size >= 0 else -1 for size in node.shape or []]


def find_model(config: Mapping[str, Any], version_directory: Path) -> Path:
    """Return the file of a version; a model in several files may be a directory of the name."""
    path = version_directory / (config.get("default_model_filename") or DEFAULT_FILENAME)
    return path / DEFAULT_FILENAME if path.is_dir() else path


def open_session(config: Mapping[str, Any], path: Path) -> ort.InferenceSession:
    """Open the model with what the configuration says about running it."""
    if not path.exists():
        raise refuse(f"unable to find '{path}' for model '{config['name']}'")
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    for accelerator in accelerators.get("cpu_execution_accelerator", []):
        raise refuse(f"unknown Execution Accelerator '{accelerator['name']}' is requested")
    try:
        return ort.InferenceSession(str(path), session_options(config), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise refuse(f"onnx runtime error: {error}") from error


def session_options(config: Mapping[str, Any]) -> ort.SessionOptions:
    """Translate `parameters` and `optimization` as the backend in C++ reads them."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Threads that spin between requests would take the processors from the other instances.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = str(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = GRAPH_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    given = {name: value.get("string_value", "") for name, value in config.get("parameters", {}).items()}
    options.intra_op_num_threads = int(given.get("intra_op_thread_count") or 0)
    options.inter_op_num_threads = int(given.get("inter_op_thread_count") or 0)
    if given.get("execution_mode") == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = given.get("enable_mem_arena") != "0"
    options.enable_mem_pattern = given.get("enable_mem_pattern") != "0"
    return options


def check(config: Mapping[str, Any], inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Compare the configuration with the graph, and refuse what does not fit."""
    name, told = config["name"], config.get("input", [])
    if len(told) != len(inputs):
        raise refuse(
            f"unable to load model '{name}', configuration expects {len(told)} inputs, model provides {len(inputs)}"
        )
    for kind, rows, nodes in (("input", told, inputs), ("output", config.get("output", []), outputs)):
        for row in rows:
            node = nodes.get(row["name"])
            if node is None:
                allowed = ", ".join(sorted(nodes))
                raise refuse(f"unexpected inference {kind} '{row['name']}', allowed {kind}s are: {allowed}")
            if TYPES[node.type] != row["data_type"]:
                raise refuse(
                    f"unable to load model '{name}', configuration expects datatype {row['data_type']} for {kind} "
                    f"'{row['name']}', model provides {TYPES[node.type]}"
                )
            check_shape(config, row, sizes(node), is_exact=kind == "output")


def check_shape(config: Mapping[str, Any], row: Mapping[str, Any], shape: list[int], *, is_exact: bool) -> None:
    """Compare one tensor's shape; inputs may be narrower than the graph, outputs must be the same."""
    if not shape:
        return
    where = f"model '{config['name']}', tensor '{row['name']}'"
    dims = [int(size) for size in row.get("reshape", row).get("shape", [] if "reshape" in row else row["dims"])]
    is_batched = int(config.get("max_batch_size", 0)) > 0
    if is_batched and shape[0] != -1:
        raise refuse(
            f"{where}: for the model to support batching the shape should have at least 1 dimension and the first "
            f"dimension must be -1; but shape expected by the model is {compact(shape)}"
        )
    full = [-1, *dims] if is_batched else dims
    if len(full) == len(shape) and all(
        graph == told or (graph == -1 and not is_exact) for graph, told in zip(shape, full, strict=True)
    ):
        return
    how = (
        "an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making complete "
        f"shape {compact(full)}"
        if is_batched
        else f"shape {compact(full)}"
    )
    raise refuse(
        f"{where}: the model expects {len(shape)} dimensions (shape {compact(shape)}) but the model configuration "
        f"specifies {len(full)} dimensions ({how})"
    )


def compact(shape: Sequence[int]) -> str:
    """Write a shape as Triton does."""
    return f"[{','.join(map(str, shape))}]"


def complete(answer: Any) -> Any:
    """Fill in what a configuration leaves out, by the rules of the backend in C++."""
    config = answer.as_dict()
    if config.get("input") and config.get("output"):
        return answer
    session = open_session(config, find_model(config, Path(str(pb_utils.get_model_dir()))))
    nodes = [*session.get_inputs(), *session.get_outputs()]
    can_batch = all(sizes(node)[:1] == [-1] for node in nodes)
    max_batch_size = config.get("max_batch_size", 0)
    if max_batch_size and not can_batch:
        raise refuse(
            f"autofill failed for model '{config['name']}': model does not support batching while non-zero "
            "max_batch_size is specified"
        )
    if can_batch and not max_batch_size:
        max_batch_size = DEFAULT_MAX_BATCH_SIZE
        answer.set_max_batch_size(max_batch_size)
    if max_batch_size > 1 and "sequence_batching" not in config:
        answer.set_dynamic_batching()
    for add, rows, told in (
        (answer.add_input, session.get_inputs(), config.get("input")),
        (answer.add_output, session.get_outputs(), config.get("output")),
    ):
        for node in rows if not told else []:
            dims = sizes(node)[1 if max_batch_size > 0 else 0 :]
            add({"name": node.name, "data_type": TYPES[node.type], "dims": dims or [1]})
    return answer


# --- Tensors in and out


def to_onnx(tensor: Any, node: Any) -> Any:
    """Take a tensor of a request as ONNX Runtime wants it."""
    if node.type == BFLOAT16:
        return ort.OrtValue.from_dlpack(tensor)  # numpy has no such type
    array = tensor.as_numpy()
    if node.type == STRING:
        texts = [text.decode() if isinstance(text, bytes) else str(text) for text in array.ravel()]
        array = np.array(texts, dtype=object).reshape(array.shape)
    return array.reshape(()) if not node.shape and array.size == 1 else array


def run(session: ort.InferenceSession, names: list[str], feeds: Mapping[str, Any]) -> list[Any]:
    """Run the model; answers are arrays, or ONNX Runtime's own values where numpy has no such type."""
    if all(node.type != BFLOAT16 for node in (*session.get_inputs(), *session.get_outputs())):
        return list(session.run(names, feeds))
    values = {
        name: value
        if isinstance(value, ort.OrtValue)
        else ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))
        for name, value in feeds.items()
    }
    answers = session.run_with_ort_values(names, values)
    return [answer if answer.data_type() == BFLOAT16 else answer.numpy() for answer in answers]


def to_triton(name: str, answer: Any) -> Any:
    """Give an answer back; a scalar has one axis on the wire."""
    if isinstance(answer, ort.OrtValue):
        return pb_utils.Tensor.from_dlpack(name, answer._ortvalue)  # noqa: SLF001 - the public one has no DLPack
    array = np.atleast_1d(answer)
    if array.dtype.kind in "OUS":
        array = np.array([str(text).encode() for text in array.ravel()], dtype=object).reshape(array.shape)
    return pb_utils.Tensor(name, np.ascontiguousarray(array))


class TritonPythonModel:
    """One instance of one version of a model; the names are those Triton calls."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Return the configuration, completed; not called in strict mode."""
        return complete(auto_complete_model_config)

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the model and compare it with its configuration."""
        config = json.loads(args["model_config"])
        path = find_model(config, Path(args["model_repository"]) / args["model_version"])
        self.session = open_session(config, path)
        self.inputs = {node.name: node for node in self.session.get_inputs()}
        self.outputs = {node.name: node for node in self.session.get_outputs()}
        check(config, self.inputs, self.outputs)
        self.can_merge = int(config.get("max_batch_size", 0)) > 0 and self._has_one_batch_axis()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests, as one when that is sure to be the same."""
        if len(requests) > 1 and self.can_merge:
            try:
                return self._answer_together(requests)
            except Exception as error:  # each for itself then: the one that is at fault shall fail alone
                pb_utils.Logger.log_verbose(f"requests are not merged: {error}")
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Let go of the model."""
        del self.session

    def _has_one_batch_axis(self) -> bool:
        """Whether the first axis is the same symbol everywhere: [3*batch, 4] is no batch of answers."""
        nodes = [*self.inputs.values(), *self.outputs.values()]
        first = {str(node.shape[0]) if node.shape else "" for node in nodes}
        return len(first) == 1 and not any(node.type == BFLOAT16 for node in nodes)

    def _wanted(self, request: Any) -> list[str]:
        asked = set(request.requested_output_names())
        return [name for name in self.outputs if name in asked or not asked]

    def _feeds(self, request: Any) -> dict[str, Any]:
        return {each.name(): to_onnx(each, self.inputs[each.name()]) for each in request.inputs()}

    def _answer(self, request: Any) -> Any:
        names = self._wanted(request)
        try:
            answers = run(self.session, names, self._feeds(request))
            return pb_utils.InferenceResponse([to_triton(*pair) for pair in zip(names, answers, strict=True)])
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"onnx runtime error: {error}"))

    def _answer_together(self, requests: Sequence[Any]) -> list[Any]:
        feeds = [self._feeds(request) for request in requests]
        rows = [next(iter(feed.values())).shape[0] for feed in feeds]
        merged = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        names = list(self.outputs)
        arrays = self.session.run(names, merged)
        if any(array.shape[:1] != (sum(rows),) for array in arrays):
            raise ValueError("an output has other rows than the inputs")
        cuts = np.cumsum(rows)[:-1]
        pieces: Iterable[tuple[Any, ...]] = zip(*(np.split(array, cuts) for array in arrays), strict=True)
        return [
            pb_utils.InferenceResponse(
                [
                    to_triton(name, piece)
                    for name, piece in zip(names, mine, strict=True)
                    if name in self._wanted(request)
                ]
            )
            for request, mine in zip(requests, pieces, strict=True)
        ]
