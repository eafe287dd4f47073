"""An ONNX file read: is it one, what does it take and give, which other files belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from keynet_core import DataType, KeynetError, Signature, TensorMismatch, TensorSpec
from keynet_train._errors import GraphInvalid
from keynet_train._sample import to_own_symbol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keynet_core import Dim

_CONTAINER_HINTS = {
    "sequence_type": "skl2onnx makes one for a classifier: convert with options={'zipmap': False}",
    "map_type": "skl2onnx makes one for a classifier: convert with options={'zipmap': False}",
    "sparse_tensor_type": "give a dense tensor instead",
    "optional_type": "give a plain tensor instead",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """What an ONNX file says of itself. `external` are the files its weights are in, relative to its folder."""

    path: Path
    signature: Signature
    opset: int
    ir_version: int
    external: tuple[str, ...]


def read_signature(path: Path) -> Signature:
    """
    Return what an ONNX file takes and gives.

    Raises:
        GraphInvalid: It is no ONNX model, or has an input or output that cannot be served.
    """
    return read_onnx(path).signature


def read_onnx(path: Path) -> OnnxFile:
    """
    Read an ONNX file of any framework, without the weights it keeps in other files.

    Raises:
        GraphInvalid: It is no ONNX model, has an input or output that cannot be served, or names a file for its
            weights that is outside its folder, not there or too short.
    """
    return describe(path, load_graph(path))


def describe(path: Path, model: Any) -> OnnxFile:
    """Return what a loaded ONNX file says of itself; raises as `read_onnx` does."""
    external = tuple(_check_external(path, model))
    signature = _signature(path, model)
    opset = next((each.version for each in model.opset_import if each.domain in {"", "ai.onnx"}), 0)
    return OnnxFile(path=path, signature=signature, opset=opset, ir_version=model.ir_version, external=external)


def validate(path: Path) -> OnnxFile:
    """
    Read an ONNX file as `read_onnx` does, and let ONNX's own checker look at it.

    Raises:
        GraphInvalid: As `read_onnx`, or the checker refuses it.
    """
    import onnx

    told = read_onnx(path)
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise GraphInvalid(
            f"{path.name} is no valid ONNX model: {error}", hint=f"python -m onnx.checker {path}"
        ) from error
    return told


def load_graph(path: Path) -> Any:
    """
    Return an ONNX file as `onnx.ModelProto`; weights in other files stay there.

    Raises:
        GraphInvalid: There is no such file, or it is no ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise GraphInvalid(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise GraphInvalid(f"{path} is no ONNX file: {error}") from error
    if not model.graph.output:
        raise GraphInvalid(f"{path} is no ONNX model: it has no outputs")
    return model


def tensors_of(graph: Any) -> Iterator[Any]:
    """Return every `TensorProto` of a graph or function: initializers, constants, and those of nested graphs."""
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for nested in (attribute.g, *attribute.graphs):
                yield from tensors_of(nested)


def is_external(tensor: Any) -> bool:
    """Whether a `TensorProto` keeps its values in another file."""
    import onnx

    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def external_entry(tensor: Any) -> dict[str, str]:
    """Return where an external `TensorProto` keeps its values: `location`, `offset`, `length`."""
    return {each.key: each.value for each in tensor.external_data}


def _check_external(path: Path, model: Any) -> list[str]:
    scopes = (model.graph, *model.functions)
    entries = (
        (tensor.name, external_entry(tensor)) for scope in scopes for tensor in tensors_of(scope) if is_external(tensor)
    )
    sizes: dict[str, int] = {}
    for name, entry in entries:
        location = entry.get("location", "")
        if location not in sizes:
            sizes[location] = _size_of(path, location)
        end = _number(path, entry, "offset") + _number(path, entry, "length")
        if end > sizes[location]:
            raise GraphInvalid(
                f"{path.name}: {location!r} has {sizes[location]} bytes, weight {name!r} ends at byte {end}",
                hint="the file was copied incompletely; export the model again",
            )
    return sorted(sizes)


def _size_of(path: Path, location: str) -> int:
    parts = PurePosixPath(location).parts
    if not parts or ".." in parts or PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor:
        raise GraphInvalid(f"{path.name} names the file {location!r} for its weights, which is outside its folder")
    file = path.parent / location
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise GraphInvalid(f"{path.name} names the file {location!r} for its weights, a link out of its folder")
    if not file.is_file():
        raise GraphInvalid(
            f"{path.name} keeps weights in {location!r}, which is not beside it",
            hint=f"put {location} into {path.parent}",
        )
    return file.stat().st_size


def _number(path: Path, entry: dict[str, str], key: str) -> int:
    told = entry.get(key, "0")
    if told.isascii() and told.isdigit():
        return int(told)
    raise GraphInvalid(f"{path.name} gives {told!r:.40} as the {key} of a weight")


def _signature(path: Path, model: Any) -> Signature:
    if any(not each.type.tensor_type.HasField("shape") for each in model.graph.output):
        model = _with_shapes(path, model)
    weights = {each.name for each in model.graph.initializer}
    weights |= {each.values.name for each in model.graph.sparse_initializer}
    inputs = [each for each in model.graph.input if each.name not in weights]
    return Signature(
        inputs=tuple(_spec(path, "input", each) for each in inputs),
        outputs=tuple(_spec(path, "output", each) for each in model.graph.output),
    )


def _with_shapes(path: Path, model: Any) -> Any:
    import onnx

    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        # Cannot be inferred in memory; the missing shape is refused by name.
        return model
    try:
        return onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        raise GraphInvalid(f"{path.name} has outputs without shape, and they cannot be inferred: {error}") from error


def _spec(path: Path, kind: str, value: Any) -> TensorSpec:
    container = value.type.WhichOneof("value")
    if container != "tensor_type":
        told = (container or "none").removesuffix("_type").replace("_", " ")
        raise GraphInvalid(
            f"{kind} {value.name!r} of {path.name} has type {told}, and only tensors can be served",
            hint=_CONTAINER_HINTS.get(container or ""),
        )
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise GraphInvalid(
            f"{kind} {value.name!r} of {path.name} has no shape",
            hint="onnx.shape_inference.infer_shapes(model), or export it with fixed ranks",
        )
    try:
        dims = tuple(_dim(value.name, axis, dim) for axis, dim in enumerate(tensor.shape.dim))
        return TensorSpec(name=value.name, dtype=DataType.from_onnx(tensor.elem_type), shape=dims)
    except TensorMismatch as error:
        raise GraphInvalid(
            f"{kind} {value.name!r} of {path.name} has ONNX element type {tensor.elem_type}: {error.message}"
        ) from error
    except KeynetError as error:
        raise GraphInvalid(f"{kind} of {path.name}: {error.message}", hint=error.hint) from error


def _dim(name: str, axis: int, dim: Any) -> Dim:
    # Some exporters write 0 or -1 where a size may vary.
    if dim.WhichOneof("value") == "dim_value" and dim.dim_value > 0:
        return int(dim.dim_value)
    return dim.dim_param or to_own_symbol(name, axis)
