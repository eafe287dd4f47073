"""
The serving branch of the error tree; each class carries how HTTP and gRPC say it.

    KeynetError
    └── ServingError
        ├── RequestRefused       400  INVALID_ARGUMENT
        ├── RequestUnreadable    500  INTERNAL
        ├── RequestTooLarge      413  RESOURCE_EXHAUSTED
        ├── RequestIncomplete    408  DEADLINE_EXCEEDED
        ├── ModelUnknown         404  NOT_FOUND
        ├── ModelFailed          500  INTERNAL
        ├── ServerBusy           503  UNAVAILABLE
        ├── ControlRefused       503  UNAVAILABLE
        ├── Unsupported          501  UNIMPLEMENTED
        ├── LoadFailed           400  INVALID_ARGUMENT
        ├── ModelUnloadable      500  INTERNAL
        └── VersionRefused       (inside a load: why one version cannot serve)
"""

from __future__ import annotations

from typing import ClassVar

from keynet_core import KeynetError


class ServingError(KeynetError):
    """Anything the model server refuses or fails to do."""

    code = "serving.error"
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    label: ClassVar[str] = "Internal"


class RequestRefused(ServingError):
    """Raised when a request does not fit the model it asks."""

    code = "serving.request_refused"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    label = "Invalid argument"


class RequestUnreadable(ServingError):
    """Raised when a request is not the JSON or the binary extension it says it is; Triton answers 500 to these."""

    code = "serving.request_unreadable"


class RequestTooLarge(ServingError):
    """Raised when a request is, or says it is, larger than the server takes."""

    code = "serving.request_too_large"
    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"


class RequestIncomplete(ServingError):
    """Raised when a client takes too long to send the body it announced."""

    code = "serving.request_incomplete"
    http_status = 408
    grpc_status = "DEADLINE_EXCEEDED"


class ModelUnknown(ServingError):
    """Raised when no served model has the name and version asked for."""

    code = "serving.model_unknown"
    http_status = 404
    grpc_status = "NOT_FOUND"
    label = "Not found"


class ModelFailed(ServingError):
    """Raised when ONNX Runtime fails on a request that was accepted."""

    code = "serving.model_failed"


class ServerBusy(ServingError):
    """Raised when a model's queue is full."""

    code = "serving.busy"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    label = "Unavailable"


class ControlRefused(ServingError):
    """Raised when models may not be loaded or unloaded by request."""

    code = "serving.control_refused"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    label = "Unavailable"


class Unsupported(ServingError):
    """Raised when Triton can do what is asked and this server cannot."""

    code = "serving.unsupported"
    http_status = 501
    grpc_status = "UNIMPLEMENTED"
    label = "Unsupported"


class LoadFailed(ServingError):
    """Raised when a model's folder was read and one of its versions cannot serve."""

    code = "serving.load_failed"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    label = "Invalid argument"


class ModelUnloadable(ServingError):
    """Raised when a model's folder is missing, or its configuration cannot be read at all."""

    code = "serving.model_unloadable"


class VersionRefused(ServingError):
    """Raised inside a load when one version's file, configuration or graph cannot serve."""

    code = "serving.version_refused"

    def __init__(self, message: str, *, label: str = "Internal", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = f"{label}: {message}"
