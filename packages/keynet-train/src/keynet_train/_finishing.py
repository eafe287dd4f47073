"""An exported ONNX file made final: the names of its axes, nothing in it that changes from export to export."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from keynet_train._errors import GraphInvalid
from keynet_train._graph import describe, external_entry, is_external, load_graph, tensors_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from keynet_core import Dim, TensorSpec
    from keynet_train._graph import OnnxFile

_ALIGNMENT = 4096
_IR_OF_OLD_SERVERS = 8


def finish(
    source: Path, target: Path, inputs: Sequence[TensorSpec], outputs: Sequence[Sequence[Dim]]
) -> tuple[OnnxFile, tuple[str, ...]]:
    """
    Write `source` to `target` with these inputs and these output shapes.

    Returns what the file is now, and the inputs nothing in it depends on.

    An input that an exporter dropped because nothing depends on it is put back: what a caller sends does not change
    with what a model ignores. Weights in other files end up in one, `<target>.data`.

    Raises:
        GraphInvalid: The file has other inputs or another number of outputs.
    """
    model = load_graph(source)
    unused = _set_inputs(model.graph, inputs)
    _set_outputs(model.graph, outputs)
    for scope in (model.graph, *model.functions):
        _strip(scope)
    model.doc_string = model.producer_version = ""
    del model.metadata_props[:]
    model.ir_version = _oldest_ir(model)
    _gather_weights(model, source, target)
    target.write_bytes(model.SerializeToString(deterministic=True))
    return describe(target, model), unused


def _set_inputs(graph: Any, inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    import onnx

    weights = {each.name for each in graph.initializer}
    given = {each.name: each.type.tensor_type.elem_type for each in graph.input if each.name not in weights}
    types = {each.name: each.dtype.onnx for each in inputs}
    if stray := sorted(name for name, kind in given.items() if types.get(name) != kind):
        raise GraphInvalid(f"the exported graph has an input {stray[0]!r} that the sample does not have like this")
    values = [onnx.helper.make_tensor_value_info(each.name, each.dtype.onnx, each.shape) for each in inputs]
    del graph.input[:]
    graph.input.extend(values)
    used = set(_names_used(graph))
    return tuple(name for name in types if name not in used)


def _names_used(graph: Any) -> list[str]:
    names = [each.name for each in graph.output]
    for node in graph.node:
        names += node.input
        for attribute in node.attribute:
            for nested in (attribute.g, *attribute.graphs):
                names += _names_used(nested)
    return names


def _set_outputs(graph: Any, outputs: Sequence[Sequence[Dim]]) -> None:
    import onnx

    if len(graph.output) != len(outputs):
        raise GraphInvalid(f"the exported graph has {len(graph.output)} outputs, the model has {len(outputs)}")
    kinds = [each.type.tensor_type.elem_type for each in graph.output]
    names = [each.name for each in graph.output]
    values = [onnx.helper.make_tensor_value_info(*each) for each in zip(names, kinds, outputs, strict=True)]
    del graph.output[:]
    graph.output.extend(values)


def _strip(scope: Any) -> None:
    # Exporters leave paths of the user's files, and names of sizes that are ours now.
    scope.doc_string = ""
    del scope.value_info[:]
    for each in (scope, *scope.node, *getattr(scope, "initializer", ())):
        each.doc_string = ""
        del each.metadata_props[:]
    for node in scope.node:
        for attribute in node.attribute:
            attribute.doc_string = ""
            nested = [attribute.g] if attribute.HasField("g") else []
            for graph in (*nested, *attribute.graphs):
                _strip(graph)


def _oldest_ir(model: Any) -> int:
    import onnx

    # Servers in use refuse a format newer than their runtime even when nothing in the file needs it.
    if any(each.overload for each in model.functions):
        return int(model.ir_version)
    needed = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    return min(int(model.ir_version), max(int(needed), _IR_OF_OLD_SERVERS))


def _gather_weights(model: Any, source: Path, target: Path) -> None:
    scopes = (model.graph, *model.functions)
    tensors = [each for scope in scopes for each in tensors_of(scope) if is_external(each)]
    if not tensors:
        return
    data = target.with_name(f"{target.name}.data")
    with data.open("wb") as writer:
        for tensor in tensors:
            entry = external_entry(tensor)
            writer.write(bytes(-writer.tell() % _ALIGNMENT))
            offset = writer.tell()
            _append(writer, source.parent / entry["location"], entry)
            _set_entry(tensor, location=data.name, offset=offset, length=writer.tell() - offset)


def _append(writer: Any, path: Path, entry: dict[str, str]) -> None:
    with path.open("rb") as reader:
        reader.seek(int(entry.get("offset", 0)))
        if "length" not in entry:
            shutil.copyfileobj(reader, writer, 1 << 20)
            return
        left = int(entry["length"])
        while left:
            chunk = reader.read(min(left, 1 << 20))
            if not chunk:
                raise GraphInvalid(f"{path.name} ends {left} bytes before its weight does")
            writer.write(chunk)
            left -= len(chunk)


def _set_entry(tensor: Any, **entry: object) -> None:
    del tensor.external_data[:]
    for key, value in entry.items():
        tensor.external_data.add(key=key, value=str(value))
