"""
The branch of the error tree that belongs to training.

    KeynetError
    ├── SampleRefused            (also TypeError)
    ├── AxisRefused              (also ValueError)
    ├── ServingOptionsRefused    (also ValueError)
    ├── ModelRefused             (also TypeError)
    ├── ExportFailed
    ├── ParityFailed
    ├── GraphInvalid             (also ValueError)
    ├── TrackingFailed
    │   ├── TrackingUnreachable
    │   └── ModuleNotStored
    ├── HomeFull
    ├── Unpublished
    │   ├── PublicationWaiting
    │   └── PublicationRefused
    └── EntryUnknown
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keynet_core import KeynetError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from keynet_train._export import Attempt
    from keynet_train._parity import ParityReport
    from keynet_train._result import Publication, TraceResult


class SampleRefused(KeynetError, TypeError):
    """Raised when `sample_input` is neither a tensor nor a dict of tensors, or holds one that cannot be served."""

    code = "sample.refused"


class AxisRefused(KeynetError, ValueError):
    """Raised when `dynamic_axes` names a tensor or an axis that is not there, or contradicts itself."""

    code = "axes.refused"


class ServingOptionsRefused(KeynetError, ValueError):
    """Raised when serving options contradict one another, or the model they are for."""

    code = "serving_options.refused"


class ModelRefused(KeynetError, TypeError):
    """Raised when what a training function returned is no module, or cannot answer the sample with tensors."""

    code = "model.refused"


class ExportFailed(KeynetError):
    """Raised when no exporter could turn a module into an ONNX file that runs; `attempts` says what each answered."""

    code = "export.failed"

    def __init__(self, message: str, *, attempts: tuple[Attempt, ...], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.attempts = attempts


class ParityFailed(KeynetError):
    """
    Raised when the exported model answers, but not what the original answers.

    It is at `path` while it is handled; `trace_pytorch` keeps it in the run as `rejected/`, and then removes `path`.
    """

    code = "parity.failed"

    def __init__(
        self,
        message: str,
        *,
        report: ParityReport,
        path: Path,
        attempts: tuple[Attempt, ...] = (),
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.report = report
        self.path = path
        self.attempts = attempts


class GraphInvalid(KeynetError, ValueError):
    """Raised when a file is no ONNX model, is damaged, or has tensors that cannot be served."""

    code = "onnx.invalid"


class TrackingFailed(KeynetError):
    """Raised when MLflow refuses, or cannot do, what the way of a model needs of it."""

    code = "tracking.failed"


class TrackingUnreachable(TrackingFailed):
    """Raised when the tracking server does not answer within seconds."""

    code = "tracking.unreachable"


class ModuleNotStored(TrackingFailed):
    """Raised when a module cannot be pickled, so that MLflow cannot store it."""

    code = "tracking.module_not_stored"


class HomeFull(KeynetError):
    """
    Raised when the disk of the home has no room for a package that was to wait there.

    Nothing of it is on disk: `model` is the trained module, when there is one.
    """

    code = "home.full"

    def __init__(self, message: str, *, model: torch.nn.Module | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.model = model


class Unpublished(KeynetError):
    """
    Raised when a model was trained, recorded and packaged, but nobody was told of it.

    `result` is what the call would have returned: a `TraceResult`, with the model; after `log_onnx_model` the
    `Publication`.
    """

    code = "publication.missing"

    def __init__(self, message: str, *, result: TraceResult | Publication, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.result = result


class PublicationWaiting(Unpublished):
    """Raised when a package waits in the outbox: the store, the broker or the server could not take it in time."""

    code = "publication.waiting"


class PublicationRefused(Unpublished):
    """Raised when the store or the server understood what it was sent and will not have it."""

    code = "publication.refused"


class EntryUnknown(KeynetError):
    """Raised when the outbox has no entry that is called so, or more than one."""

    code = "outbox.entry_unknown"
