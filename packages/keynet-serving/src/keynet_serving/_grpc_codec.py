"""Triton's gRPC messages to `InferRequest`, and `InferResponse` back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keynet_core import DataType
from keynet_serving._errors import RequestRefused
from keynet_serving._requests import InferInput, InferRequest, RequestedOutput
from keynet_serving._wire import BY_KSERVE_NAME, to_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

    from keynet_serving._requests import InferResponse

    Array = npt.NDArray[Any]

_FIELDS = {
    "bool_contents": "BOOL",
    "int_contents": "INT32",
    "int64_contents": "INT64",
    "uint_contents": "UINT32",
    "uint64_contents": "UINT64",
    "fp32_contents": "FP32",
    "fp64_contents": "FP64",
    "bytes_contents": "BYTES",
}
_CARRIED_BY = {
    DataType.BOOL: "bool_contents",
    DataType.INT8: "int_contents",
    DataType.INT16: "int_contents",
    DataType.INT32: "int_contents",
    DataType.INT64: "int64_contents",
    DataType.UINT8: "uint_contents",
    DataType.UINT16: "uint_contents",
    DataType.UINT32: "uint_contents",
    DataType.UINT64: "uint64_contents",
    DataType.FP32: "fp32_contents",
    DataType.FP64: "fp64_contents",
    DataType.STRING: "bytes_contents",
}
INVALID_TYPE = "<invalid>"


def to_version(text: str) -> str:
    """
    Return a version a client named, or nothing.

    Raises:
        RequestRefused: It is no positive number.
    """
    if text and not (text.isascii() and text.isdigit()):
        raise RequestRefused(
            f"failed to get model version from specified version string '{text}' (details: stol), "
            "version should be an integral value > 0"
        )
    return text


def from_message(message: Any) -> InferRequest:
    """
    Return what a `ModelInferRequest` asks.

    Raises:
        RequestRefused: An input has no data, data twice, or data of another type than it says.
    """
    raw = list(message.raw_input_contents)
    inputs = tuple([_to_input(message, number, told, raw) for number, told in enumerate(message.inputs)])
    return InferRequest(
        model=message.model_name,
        version=to_version(message.model_version),
        id=message.id,
        inputs=inputs,
        outputs=tuple([_to_output(told) for told in message.outputs]),
    )


def to_message(response: InferResponse) -> Any:
    """Return a `ModelInferResponse`."""
    from tritonclient.grpc import service_pb2

    message = service_pb2.ModelInferResponse(model_name=response.model, model_version=response.version, id=response.id)
    for output in response.outputs:
        message.outputs.add(name=output.name, datatype=output.dtype.kserve, shape=output.array.shape)
        message.raw_output_contents.append(to_bytes(output))
    return message


def _to_input(message: Any, number: int, told: Any, raw: list[bytes]) -> InferInput:
    where = f"'{told.name}' for model '{message.model_name}'"
    if "shared_memory_region" in told.parameters:
        region = told.parameters["shared_memory_region"].string_param
        raise RequestRefused(f"Unable to find shared memory region: '{region}'")
    dtype = BY_KSERVE_NAME.get(told.datatype)
    fields = [field.name for field, _ in told.contents.ListFields()]
    data: Array | bytes
    if raw and fields:
        raise RequestRefused(f"contents field must not be specified when using raw_input_contents for {where}")
    if number < len(raw):
        data = raw[number]
    elif fields:
        data = _to_array(where, dtype, fields[0], told)
    else:
        raise RequestRefused(f"unable to find data for input tensor {where} in request.")
    datatype = told.datatype if dtype is not None else INVALID_TYPE
    return InferInput(name=told.name, datatype=datatype, shape=tuple(told.shape), data=data)


def _to_array(where: str, dtype: DataType | None, field: str, told: Any) -> Array:
    import numpy as np

    if dtype is None or _CARRIED_BY.get(dtype) != field:
        raise RequestRefused(
            f"unexpected explicit tensor data for input tensor {where} of type '{_FIELDS[field]}', "
            f"expected datatype '{told.datatype}'"
        )
    values = list(getattr(told.contents, field))
    if dtype is DataType.STRING:
        texts = np.empty(len(values), dtype=np.object_)
        texts[:] = values
        return texts
    try:
        return np.array(values, dtype.to_numpy())
    except OverflowError as error:
        raise RequestRefused(f"a value for input tensor {where} does not fit {told.datatype}") from error


def _to_output(told: Any) -> RequestedOutput:
    count = told.parameters["classification"].int64_param if "classification" in told.parameters else 0
    if "shared_memory_region" in told.parameters:
        region = told.parameters["shared_memory_region"].string_param
        raise RequestRefused(f"Unable to find shared memory region: '{region}'")
    return RequestedOutput(name=told.name, class_count=max(0, count), is_binary=True)
