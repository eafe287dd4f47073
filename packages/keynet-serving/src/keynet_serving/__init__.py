"""A model server: KServe v2 and Triton's model repository, on ONNX Runtime."""

from keynet_serving._errors import (
    ControlRefused,
    LoadFailed,
    ModelFailed,
    ModelUnknown,
    ModelUnloadable,
    RequestIncomplete,
    RequestRefused,
    RequestTooLarge,
    RequestUnreadable,
    ServerBusy,
    ServingError,
    Unsupported,
)
from keynet_serving._loading import LoadOptions
from keynet_serving._server import IndexEntry, ModelServer

__all__ = [
    "ControlRefused",
    "IndexEntry",
    "LoadFailed",
    "LoadOptions",
    "ModelFailed",
    "ModelServer",
    "ModelUnknown",
    "ModelUnloadable",
    "RequestIncomplete",
    "RequestRefused",
    "RequestTooLarge",
    "RequestUnreadable",
    "ServerBusy",
    "ServingError",
    "Unsupported",
]
