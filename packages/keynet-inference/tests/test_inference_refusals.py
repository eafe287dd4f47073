"""Every status a model server can answer with, and every error its clients can raise, has one of our errors."""

from __future__ import annotations

import inspect
from http import HTTPStatus
from http.client import HTTPException

import grpc
import pytest
import tritonclient.grpc
import tritonclient.utils

import keynet_inference
from keynet_core import KeynetError
from keynet_inference import (
    InferenceError,
    InferenceFailed,
    InputRefused,
    ModelNotServed,
    TritonTimeout,
    TritonUnavailable,
)
from keynet_inference._refusals import from_grpc, from_http

HTTP = {
    400: InputRefused,
    404: ModelNotServed,
    408: TritonTimeout,
    413: InputRefused,
    422: InputRefused,
    429: TritonUnavailable,
    502: TritonUnavailable,
    503: TritonUnavailable,
    504: TritonTimeout,
}

GRPC = {
    "CANCELLED": InferenceFailed,
    "UNKNOWN": InferenceFailed,
    "INVALID_ARGUMENT": InputRefused,
    "DEADLINE_EXCEEDED": TritonTimeout,
    "NOT_FOUND": ModelNotServed,
    "ALREADY_EXISTS": InferenceFailed,
    "PERMISSION_DENIED": InferenceFailed,
    "UNAUTHENTICATED": InferenceFailed,
    "RESOURCE_EXHAUSTED": InputRefused,
    "FAILED_PRECONDITION": InferenceFailed,
    "ABORTED": InferenceFailed,
    "UNIMPLEMENTED": InferenceFailed,
    "INTERNAL": InferenceFailed,
    "UNAVAILABLE": TritonUnavailable,
    "DATA_LOSS": InferenceFailed,
    "OUT_OF_RANGE": InputRefused,
}


@pytest.mark.parametrize("status", [each for each in HTTPStatus if each >= 300])
def test_every_http_status_is_one_error(status: HTTPStatus) -> None:
    error = from_http(status, "reason", "http://here")

    assert type(error) is HTTP.get(status, InferenceFailed)
    assert error.message == f"http://here answered: reason (HTTP {int(status)})"


@pytest.mark.parametrize("status", list(grpc.StatusCode))
def test_every_grpc_status_is_one_error(status: grpc.StatusCode) -> None:
    if status is not grpc.StatusCode.OK:
        assert type(from_grpc(str(status), "reason", "grpc://here")) is GRPC[status.name]


@pytest.mark.parametrize(
    "told",
    [
        "Request for unknown model: 'm' is not found",
        "Request for unknown model: 'm' has no available versions",
        "Model version not ready",
    ],
)
def test_a_bad_request_that_means_the_model_is_not_served(told: str) -> None:
    assert type(from_http(400, told, "http://here")) is ModelNotServed
    assert type(from_grpc("StatusCode.INVALID_ARGUMENT", told, "grpc://here")) is ModelNotServed


def test_triton_s_client_raises_nothing_that_is_not_known_here() -> None:
    """Only its messages are used; an exception it adds may come with a new version and would have to be looked at."""
    found = {
        each.__name__
        for module in (tritonclient.grpc, tritonclient.utils)
        for each in vars(module).values()
        if inspect.isclass(each) and issubclass(each, BaseException)
    }

    assert found == {"InferenceServerException"}


def test_what_grpc_and_http_raise_is_caught_by_its_root() -> None:
    channel_errors = {
        each.__name__
        for each in vars(grpc).values()
        if inspect.isclass(each) and issubclass(each, Exception) and not issubclass(each, grpc.RpcError)
    }

    assert channel_errors == {"FutureTimeoutError", "FutureCancelledError"}  # of futures, which are not used
    assert issubclass(HTTPException, Exception)


def test_every_error_has_a_code_of_its_own_and_one_root() -> None:
    errors = [
        each
        for each in (getattr(keynet_inference, name) for name in keynet_inference.__all__)
        if inspect.isclass(each) and issubclass(each, Exception) and not issubclass(each, Warning)
    ]

    assert len({each.code for each in errors}) == len(errors) >= 16
    assert all(
        issubclass(each, KeynetError) and each.__doc__.startswith("Raised ")
        for each in errors
        if each is not InferenceError
    )
