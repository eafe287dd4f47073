"""From a training function to a verified, published model."""

from keynet_train._decorator import TracedFunction, trace_pytorch
from keynet_train._errors import (
    AxisRefused,
    ExportFailed,
    GraphInvalid,
    HomeFull,
    ModelRefused,
    ParityFailed,
    PublicationRefused,
    PublicationWaiting,
    SampleRefused,
    ServingOptionsRefused,
    TrackingFailed,
    TrackingUnreachable,
    Unpublished,
)
from keynet_train._onnx_model import log_onnx_model
from keynet_train._result import Degradation, DegradationWarning, Publication, TraceResult
from keynet_train._triton import ServingOptions

__all__ = [
    "AxisRefused",
    "Degradation",
    "DegradationWarning",
    "ExportFailed",
    "GraphInvalid",
    "HomeFull",
    "ModelRefused",
    "ParityFailed",
    "Publication",
    "PublicationRefused",
    "PublicationWaiting",
    "SampleRefused",
    "ServingOptions",
    "ServingOptionsRefused",
    "TraceResult",
    "TracedFunction",
    "TrackingFailed",
    "TrackingUnreachable",
    "Unpublished",
    "log_onnx_model",
    "trace_pytorch",
]
