"""The body of an HTTP request to an `InferRequest`: JSON, and behind it the bytes of the binary tensor extension."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from keynet_core import DataType
from keynet_serving._errors import RequestRefused, RequestUnreadable
from keynet_serving._requests import InferInput, InferRequest, RequestedOutput
from keynet_serving._wire import BY_KSERVE_NAME

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_REMEMBERED = 256
_REMEMBERED_BYTES = 1024

_KINDS: dict[type, tuple[str, str]] = {
    str: ("non-string", "string"),
    list: ("non-array", "array"),
    bool: ("non-boolean", "boolean"),
    dict: ("non-object", "object"),
}
_ONE_SOURCE = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'. But "
)
_BAD_SHAPE = "Unable to parse 'data': Shape does not match true shape of 'data' field"
_BAD_UNSIGNED = "attempt to access JSON non-unsigned-integer as unsigned-integer"


def parse_json(text: memoryview | bytes) -> Any:
    """
    Return the value of a JSON text; NaN and Infinity are numbers here, as they are to Triton.

    Raises:
        RequestUnreadable: It is no JSON.
    """
    import orjson

    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason = f"{error.msg} at {error.pos}"
    try:
        return json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise RequestUnreadable(f"failed to parse the request JSON buffer: {reason}") from error


def parse_infer(model: str, version: str, header_length: str | None, body: memoryview) -> InferRequest:
    """
    Return what a client asks.

    Args:
        model: The model's name, from the address.
        version: Its version, or nothing.
        header_length: The value of `Inference-Header-Content-Length`, or None where the body is only JSON.
        body: The body, its compression undone.

    Raises:
        RequestUnreadable: The JSON is not a request.
        RequestRefused: The sizes do not add up.
    """
    length = len(body) if header_length is None else _to_length(header_length, len(body))
    text = body[:length]
    head = _remembered_head(bytes(text)) if length <= _REMEMBERED_BYTES else _read_head(text)
    taker = _Taker(model, body[length:])
    inputs = tuple([_to_input(told, taker) for told in head.inputs])
    taker.finish()
    return InferRequest(
        model=model, version=version, id=head.id, inputs=inputs, outputs=head.outputs, is_binary=head.is_binary
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _HeadInput:
    """One input as the JSON tells it: an array, or the size of its bytes behind the JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int
    array: Array | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """The JSON of a request."""

    id: str
    inputs: tuple[_HeadInput, ...]
    outputs: tuple[RequestedOutput, ...]
    is_binary: bool


def _read_head(text: memoryview | bytes) -> _Head:
    told = parse_json(text)
    inputs = tuple([_to_head_input(each) for each in _member(told, "inputs", list)])
    is_binary = _flag(_parameters(told), "binary_data_output", default=False)
    asked = _member(told, "outputs", list) if "outputs" in told else ()
    return _Head(
        id=_member(told, "id", str) if "id" in told else "",
        inputs=inputs,
        outputs=tuple([_to_output(each, is_binary=is_binary) for each in asked]),
        is_binary=is_binary,
    )


@lru_cache(maxsize=_REMEMBERED)
def _remembered_head(text: bytes) -> _Head:
    """Read a short head; a client that sends binary tensors of one shape sends the same one every time."""
    return _read_head(text)


def _to_head_input(told: Any) -> _HeadInput:
    parameters = _parameters(told)
    sources: list[str] = [key for key in ("binary_data_size", "shared_memory_region") if key in parameters]
    if isinstance(told, dict) and "data" in told:
        sources.insert(0, "data")
    if len(sources) != 1:
        found = "set " + " ".join(f"'{key}'" for key in sources) if sources else "no field is set"
        raise RequestRefused(_ONE_SOURCE + found)
    name = _member(told, "name", str)
    datatype = _member(told, "datatype", str)
    dtype = BY_KSERVE_NAME.get(datatype)
    if dtype is None:
        raise RequestRefused(f"invalid datatype for input {name}")
    shape = tuple([_unsigned(size, "shape") for size in _member(told, "shape", list)])
    if "shared_memory_region" in parameters:
        raise RequestRefused(f"Unable to find shared memory region: '{parameters['shared_memory_region']}'")
    array = _to_array(name, dtype, shape, _member(told, "data", list)) if sources == ["data"] else None
    size = 0 if array is not None else _unsigned(parameters["binary_data_size"], "binary_data_size")
    return _HeadInput(name=name, datatype=datatype, shape=shape, size=size, array=array)


def _to_input(told: _HeadInput, taker: _Taker) -> InferInput:
    data = taker.take(told.name, told.size) if told.array is None else told.array
    return InferInput(name=told.name, datatype=told.datatype, shape=told.shape, data=data)


class _Taker:
    """Takes the inputs' bytes, in order, from behind the JSON."""

    def __init__(self, model: str, data: memoryview) -> None:
        self._model = model
        self._data = data
        self._at = 0

    def take(self, name: str, size: int) -> memoryview:
        taken = self._data[self._at : self._at + size]
        if len(taken) != size:
            raise RequestRefused(
                f"unexpected size for input '{name}', expecting {size - len(taken)} additional bytes "
                f"for model '{self._model}'"
            )
        self._at += size
        return taken

    def finish(self) -> None:
        if self._at != len(self._data):
            raise RequestRefused(f"unexpected additional input data for model '{self._model}'")


def _to_length(text: str, available: int) -> int:
    length = int(text) if text.isascii() and text.isdigit() and len(text) < len("9" * 19) else 0
    if not 0 < length <= available:
        raise RequestRefused(f"inference header size should be in range (0, {available}), got: {text}")
    return length


def _member(told: Any, key: str, kind: type) -> Any:
    if not isinstance(told, dict) or key not in told:
        raise RequestUnreadable(f"Unable to parse '{key}': attempt to access non-existing object member '{key}'")
    value = told[key]
    if not isinstance(value, kind):
        other, wanted = _KINDS[kind]
        raise RequestUnreadable(f"Unable to parse '{key}': attempt to access JSON {other} as {wanted}")
    return value


def _parameters(told: Any) -> dict[str, Any]:
    if not isinstance(told, dict) or "parameters" not in told:
        return {}
    parameters: dict[str, Any] = _member(told, "parameters", dict)
    return parameters


def _flag(parameters: dict[str, Any], key: str, *, default: bool) -> bool:
    return bool(_member(parameters, key, bool)) if key in parameters else default


def _unsigned(value: object, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RequestUnreadable(f"Unable to parse '{key}': {_BAD_UNSIGNED}")
    return value


def _to_output(told: Any, *, is_binary: bool) -> RequestedOutput:
    parameters = _parameters(told)
    if "shared_memory_region" in parameters:
        raise RequestRefused(f"Unable to find shared memory region: '{parameters['shared_memory_region']}'")
    return RequestedOutput(
        name=_member(told, "name", str),
        class_count=_unsigned(parameters.get("classification", 0), "classification"),
        is_binary=_flag(parameters, "binary_data", default=is_binary),
    )


def _to_array(name: str, dtype: DataType, shape: tuple[int, ...], data: list[Any]) -> Array:
    import numpy as np

    if dtype in {DataType.FP16, DataType.BF16}:
        raise RequestRefused(
            f"receiving {dtype.name} data via JSON is not supported. Please use the binary data format for input {name}"
        )
    if dtype is DataType.STRING:
        texts = _flatten(data)
        array = np.empty(len(texts), dtype=np.object_)
        array[:] = texts
        return array
    try:
        values = np.array(data) if data else np.empty(0, dtype.to_numpy())
        if values.dtype.kind == "f" and not dtype.is_float:
            # numpy makes floats of integers that fit no one type, such as 0 and 2**64 - 1 together.
            values = np.array(data, np.object_)
    except (ValueError, OverflowError) as error:
        raise RequestUnreadable(_BAD_SHAPE) from error
    _check_kind(dtype, values)
    # Without a shape the model's contract says better what is wrong.
    if shape and values.size != math.prod(shape):
        raise RequestUnreadable(_BAD_SHAPE)
    with np.errstate(over="ignore"):
        return values.astype(dtype.to_numpy(), copy=False)


def _check_kind(dtype: DataType, values: Array) -> None:
    if not values.size:
        return
    if dtype is DataType.BOOL:
        is_right, told = values.dtype.kind == "b", "non-boolean as boolean"
    elif dtype.is_float:
        is_right, told = values.dtype.kind in "iuf", "non-number as double"
    else:
        is_right = _are_integers(dtype, values)
        sign = "unsigned" if dtype.name.startswith("U") else "signed"
        told = f"non-{sign}-integer as {sign}-integer"
    if not is_right:
        raise RequestUnreadable(f"Unable to parse 'data': attempt to access JSON {told}")


def _are_integers(dtype: DataType, values: Array) -> bool:
    import numpy as np

    if values.dtype.kind == "O" and not all(type(value) is int for value in values.flat):
        return False
    limits = np.iinfo(dtype.to_numpy())
    return values.dtype.kind in "iuO" and limits.min <= int(values.min()) and int(values.max()) <= limits.max


def _flatten(data: list[Any]) -> list[str]:
    texts: list[str] = []
    waiting = data[::-1]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value[::-1])
        elif isinstance(value, str):
            texts.append(value)
        else:
            raise RequestUnreadable("Unable to parse JSON bytes array: attempt to access JSON non-string as string")
    return texts
