"""A configuration against the real graph, in Triton's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keynet_serving._contract import to_text
from keynet_serving._errors import VersionRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keynet_serving._session import GraphTensor, Session


def validate(config: Any, session: Session) -> None:
    """
    Refuse a configuration that does not describe the graph.

    Raises:
        VersionRefused: In the words of Triton's ONNX Runtime backend.
    """
    if config.max_batch_size < 0:
        raise VersionRefused(f"'max_batch_size' must be non-negative value in model configuration for {config.name}")
    if len(config.input) != len(session.inputs):
        raise VersionRefused(
            f"unable to load model '{config.name}', configuration expects {len(config.input)} inputs, "
            f"model provides {len(session.inputs)}"
        )
    _check_tensors(config, "input", config.input, session.inputs)
    _check_tensors(config, "output", config.output, session.outputs)


def _check_tensors(config: Any, kind: str, rows: Any, tensors: Sequence[GraphTensor]) -> None:
    known = {tensor.name: tensor for tensor in tensors}
    for row in rows:
        if row.name not in known:
            allowed = ", ".join(sorted(known))
            raise VersionRefused(f"unexpected inference {kind} '{row.name}', allowed {kind}s are: {allowed}")
        _check_type(config, kind, row, known[row.name])
        _check_shape(config, row, known[row.name], is_exact=kind == "output")


def _check_type(config: Any, kind: str, row: Any, tensor: GraphTensor) -> None:
    from tritonclient.grpc import model_config_pb2

    told = model_config_pb2.DataType.Name(row.data_type)
    if told != tensor.dtype.triton:
        raise VersionRefused(
            f"unable to load model '{config.name}', configuration expects datatype {told} for "
            f"{kind} '{row.name}', model provides {tensor.dtype.triton}"
        )


def _check_shape(config: Any, row: Any, tensor: GraphTensor, *, is_exact: bool) -> None:
    dims = list(row.reshape.shape) if row.HasField("reshape") else list(row.dims)
    is_batched = config.max_batch_size > 0
    sizes = tensor.sizes
    where = f"model '{config.name}', tensor '{row.name}'"
    if is_batched and sizes[:1] != [-1]:
        raise VersionRefused(
            f"{where}: for the model to support batching the shape should have at least 1 dimension and the first "
            f"dimension must be -1; but shape expected by the model is {to_text(sizes)}"
        )
    full = [-1, *dims] if is_batched else dims
    if not sizes and full in ([], [1]):
        return
    if len(full) == len(sizes) and all(_fits(a, b, is_exact) for a, b in zip(sizes, full, strict=True)):
        return
    note = (
        " (an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, "
        f"making complete shape {to_text(full)})"
        if is_batched
        else f" (shape {to_text(full)})"
    )
    raise VersionRefused(
        f"{where}: the model expects {len(sizes)} dimensions (shape {to_text(sizes)}) "
        f"but the model configuration specifies {len(full)} dimensions{note}"
    )


def _fits(of_graph: int, of_config: int, is_exact: bool) -> bool:
    return of_graph == of_config or (of_graph == -1 and not is_exact)
