"""Answers as HTTP: status, headers and body; an `InferResponse` as JSON with its binary tensors behind it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from keynet_core import DataType
from keynet_serving._errors import RequestRefused
from keynet_serving._wire import to_bytes

if TYPE_CHECKING:
    from keynet_serving._errors import ServingError
    from keynet_serving._requests import InferRequest, InferResponse, OutputTensor

JSON_TYPE = (b"content-type", b"application/json")
BINARY_TYPE = (b"content-type", b"application/octet-stream")
_STATUS_LINES = {each.value: b"HTTP/1.1 %d %b\r\n" % (each.value, each.phrase.encode()) for each in HTTPStatus}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What goes back to an HTTP client."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = (JSON_TYPE,)


def to_json_reply(value: Any, *, status: int = 200) -> Reply:
    """Return a JSON answer."""
    import orjson

    return Reply(status=status, body=orjson.dumps(value))


def to_error_reply(error: ServingError) -> Reply:
    """Return an error as Triton writes it."""
    return to_json_reply({"error": error.message}, status=error.http_status)


def to_wire(reply: Reply, *, keeps_alive: bool = True, has_body: bool = True) -> bytes:
    """Return an answer as the bytes that go out; the answer to HEAD tells of a body and has none."""
    headers = b"".join([b"%b: %b\r\n" % header for header in reply.headers])
    end = b"" if keeps_alive else b"connection: close\r\n"
    head = b"%b%b%bcontent-length: %d\r\n\r\n" % (_STATUS_LINES[reply.status], headers, end, len(reply.body))
    return head + reply.body if has_body else head


def to_infer_reply(request: InferRequest, response: InferResponse) -> Reply:
    """
    Return an inference answer, each output as the client asked for it.

    Raises:
        RequestRefused: An output's type has no JSON form.
    """
    import orjson

    asked = {output.name: output.is_binary for output in request.outputs}
    told: dict[str, Any] = {"id": response.id} if response.id else {}
    told |= {"model_name": response.model, "model_version": response.version, "outputs": []}
    blobs: list[bytes] = []
    is_finite = True
    for output in response.outputs:
        row: dict[str, Any] = {"name": output.name, "datatype": output.dtype.kserve, "shape": output.array.shape}
        if asked.get(output.name, request.is_binary):
            blobs.append(to_bytes(output))
            row["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            row["data"] = _to_values(output)
            is_finite = is_finite and _is_finite(output)
        told["outputs"].append(row)
    head = orjson.dumps(told) if is_finite else json.dumps(told, separators=(",", ":")).encode()
    if not blobs:
        return Reply(body=head)
    length = (b"inference-header-content-length", b"%d" % len(head))
    return Reply(body=b"".join((head, *blobs)), headers=(BINARY_TYPE, length))


def _to_values(output: OutputTensor) -> list[Any]:
    if output.dtype in {DataType.FP16, DataType.BF16}:
        raise RequestRefused(
            f"sending {output.dtype.name} data via JSON is not supported. Please use the binary data format for output"
        )
    values: list[Any] = output.array.ravel().tolist()
    if output.dtype is DataType.STRING:
        return [value.decode() if isinstance(value, bytes) else value for value in values]
    return values


def _is_finite(output: OutputTensor) -> bool:
    import numpy as np

    return not output.dtype.is_float or bool(np.isfinite(output.array).all())
