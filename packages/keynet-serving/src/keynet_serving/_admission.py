"""A request against a model's contract: Triton's checks in Triton's order and words, then arrays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from keynet_core import DataType
from keynet_serving._contract import to_text
from keynet_serving._errors import RequestRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from keynet_serving._contract import Contract, TensorContract
    from keynet_serving._requests import InferInput, InferRequest

    Array = npt.NDArray[Any]

_LENGTH_BYTES = 4
_BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try "
    "setting max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


def admit(contract: Contract, request: InferRequest) -> dict[str, Array]:
    """
    Return what to feed the graph, by input.

    Raises:
        RequestRefused: The request does not fit the model.
    """
    _check_names(contract, request)
    if contract.max_batch_size > 0:
        _check_batch(contract, request)
    return {each.name: _to_array(contract, request, each) for each in request.inputs}


def admit_arrays(contract: Contract, arrays: Mapping[str, Array]) -> dict[str, Array] | None:
    """Return what to feed the graph when every array fits as it stands, or None when `admit` must say why not."""
    inputs = contract.inputs
    if len(arrays) != len(inputs):
        return None
    feeds = {}
    rows = -1
    for name, array in arrays.items():
        tensor = inputs.get(name)
        if tensor is None or array.dtype != tensor.numpy_dtype or not tensor.has_shape(array.shape):
            return None
        if tensor.dtype is DataType.STRING:
            return None
        if tensor.is_batched and array.shape[0] != rows:
            if rows != -1 or not 0 < array.shape[0] <= contract.max_batch_size:
                return None
            rows = array.shape[0]
        feeds[name] = array if tensor.graph_dims is None else tensor.to_graph(array)
    return feeds


def _refuse(request: InferRequest, message: str) -> RequestRefused:
    return RequestRefused(f"[request id: {request.id or '<id_unknown>'}] {message}")


def _check_names(contract: Contract, request: InferRequest) -> None:
    model = contract.model
    names = [each.name for each in request.inputs]
    for name in names:
        if names.count(name) > 1:
            raise _refuse(request, f"input '{name}' already exists in request")
    for output in request.outputs:
        if output.name not in contract.outputs:
            raise RequestRefused(f"unexpected inference output '{output.name}' for model '{model}'")
    if len(names) != len(contract.inputs):
        missing = [name for name in contract.inputs if name not in names]
        raise _refuse(
            request,
            f"expected {len(contract.inputs)} inputs but got {len(names)} inputs for model '{model}'. Got input(s) "
            f"{_listed(names)}, but missing required input(s) {_listed(missing)}. "
            "Please provide all required input(s).",
        )
    for name in names:
        if name not in contract.inputs:
            raise RequestRefused(f"unexpected inference input '{name}' for model '{model}'")


def _check_batch(contract: Contract, request: InferRequest) -> None:
    rows = None
    for each in request.inputs:
        if not each.shape:
            raise _refuse(
                request, f"input '{each.name}' has no shape but model requires batch dimension for '{contract.model}'"
            )
        if rows is not None and each.shape[0] != rows:
            raise _refuse(request, f"input '{each.name}' batch size does not match other inputs for '{contract.model}'")
        rows = each.shape[0]
    if rows is not None and rows > contract.max_batch_size:
        limit = contract.max_batch_size
        raise _refuse(request, f"inference request batch-size must be <= {limit} for '{contract.model}'")


def _to_array(contract: Contract, request: InferRequest, given: InferInput) -> Array:
    tensor = contract.inputs[given.name]
    if given.datatype != tensor.dtype.kserve:
        raise _refuse(
            request,
            f"inference input '{given.name}' data-type is '{given.datatype}', but model '{contract.model}' "
            f"expects '{tensor.dtype.kserve}'",
        )
    if min(given.shape, default=0) < 0 or not tensor.has_shape(given.shape):
        note = _BATCH_NOTE if tensor.is_batched else ""
        raise _refuse(
            request,
            f"unexpected shape for input '{given.name}' for model '{contract.model}'. "
            f"Expected {to_text(tensor.shape)}, got {to_text(given.shape)}. {note}",
        )
    return tensor.to_graph(_decode(contract, request, given, tensor))


def _decode(contract: Contract, request: InferRequest, given: InferInput, tensor: TensorContract) -> Array:
    import numpy as np

    if tensor.dtype is DataType.STRING:
        return _decode_texts(contract, request, given)
    data = given.data
    expected = _expected_bytes(given, tensor)
    size = len(data) if isinstance(data, bytes) else data.nbytes
    if size != expected:
        raise _refuse(
            request,
            f"input byte size mismatch for input '{given.name}' for model '{contract.model}'. "
            f"Expected {expected}, got {size}",
        )
    if isinstance(data, np.ndarray):
        held: Array = data.astype(tensor.numpy_dtype, copy=False).reshape(given.shape)
        return held
    if tensor.dtype is DataType.BOOL:
        truths: Array = np.not_equal(np.frombuffer(data, np.uint8), 0).reshape(given.shape)
        return truths
    array = np.frombuffer(data, tensor.numpy_dtype).reshape(given.shape)
    return array if array.flags.aligned else array.copy()


def _expected_bytes(given: InferInput, tensor: TensorContract) -> int:
    # Triton counts a batch of no rows as one row, which is how it comes to refuse it here.
    rows = (max(1, given.shape[0]), *given.shape[1:]) if tensor.is_batched else given.shape
    return math.prod(rows) * tensor.dtype.size_bytes


def _decode_texts(contract: Contract, request: InferRequest, given: InferInput) -> Array:
    import numpy as np

    count = math.prod(given.shape)
    texts = given.data.ravel().tolist() if isinstance(given.data, np.ndarray) else _split(contract, request, given)
    where = f"for inference input '{given.name}' for model '{contract.model}'"
    if len(texts) < count:
        raise _refuse(request, f"expected {count} string elements {where}, got {len(texts)}")
    if len(texts) > count:
        raise _refuse(request, f"unexpected number of string elements {len(texts)} {where}, expecting {count}")
    array = np.empty(count, dtype=np.object_)
    try:
        array[:] = [text.decode() if isinstance(text, bytes) else str(text) for text in texts]
    except UnicodeDecodeError as error:
        raise _refuse(request, f"ONNX Runtime takes text as UTF-8, and {where} got other bytes: {error}") from error
    return array.reshape(given.shape)


def _split(contract: Contract, request: InferRequest, given: InferInput) -> list[bytes]:
    assert isinstance(given.data, memoryview | bytes)
    data = memoryview(given.data)
    texts: list[bytes] = []
    at = 0
    while at < len(data):
        if at + _LENGTH_BYTES > len(data):
            raise _refuse(
                request,
                f"incomplete string length indicator for inference input '{given.name}' for model "
                f"'{contract.model}', expecting 4 bytes but only {len(data) - at} bytes available. "
                "Please make sure the string length indicator is in one buffer.",
            )
        length = int.from_bytes(data[at : at + _LENGTH_BYTES], "little")
        at += _LENGTH_BYTES
        if at + length > len(data):
            raise RequestRefused(
                f"incomplete string data for inference input '{given.name}', "
                f"expecting string of length {length} but only {len(data) - at} bytes available"
            )
        texts.append(bytes(data[at : at + length]))
        at += length
    return texts


def _listed(names: list[str]) -> str:
    return f"[{','.join(repr(name) for name in names)}]"
