"""What a model server's refusal means: a status and a sentence, of HTTP or of gRPC, to one of our errors."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from keynet_inference._errors import (
    InferenceFailed,
    InputRefused,
    ModelNotServed,
    TritonTimeout,
    TritonUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keynet_inference._errors import InferenceError

_OF_HTTP: Mapping[int, type[InferenceError]] = {
    HTTPStatus.BAD_REQUEST: InputRefused,
    HTTPStatus.NOT_FOUND: ModelNotServed,
    HTTPStatus.REQUEST_TIMEOUT: TritonTimeout,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: InputRefused,
    HTTPStatus.UNPROCESSABLE_ENTITY: InputRefused,
    HTTPStatus.TOO_MANY_REQUESTS: TritonUnavailable,
    HTTPStatus.BAD_GATEWAY: TritonUnavailable,
    HTTPStatus.SERVICE_UNAVAILABLE: TritonUnavailable,
    HTTPStatus.GATEWAY_TIMEOUT: TritonTimeout,
}

_OF_GRPC: Mapping[str, type[InferenceError]] = {
    "CANCELLED": InferenceFailed,
    "INVALID_ARGUMENT": InputRefused,
    "OUT_OF_RANGE": InputRefused,
    "NOT_FOUND": ModelNotServed,
    "DEADLINE_EXCEEDED": TritonTimeout,
    "RESOURCE_EXHAUSTED": InputRefused,
    "UNAVAILABLE": TritonUnavailable,
}
"""RESOURCE_EXHAUSTED is how gRPC says that a message is too large."""

# Triton answers 400 both to inputs that do not fit and to a model that is not loaded.
_NOT_SERVED = re.compile(r"unknown model|not ready|no available versions|is not found", re.IGNORECASE)


def from_http(status: int, message: str, where: str) -> InferenceError:
    """Return the error for an HTTP status."""
    return _error(_OF_HTTP.get(status, InferenceFailed), f"{message} (HTTP {status})", where)


def from_grpc(status: str, message: str, where: str) -> InferenceError:
    """Return the error for a gRPC status, such as `StatusCode.NOT_FOUND`."""
    name = status.removeprefix("StatusCode.")
    return _error(_OF_GRPC.get(name, InferenceFailed), f"{message} ({name})", where)


def _error(kind: type[InferenceError], told: str, where: str) -> InferenceError:
    if kind is InputRefused and _NOT_SERVED.search(told):
        kind = ModelNotServed
    return kind(f"{where} answered: {told}")
