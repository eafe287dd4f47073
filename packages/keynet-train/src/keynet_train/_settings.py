"""What a training process reads from its environment, and the store that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from keynet_core import CoreSettings, Outbox, SettingsInvalid, open_store, setting

if TYPE_CHECKING:
    from keynet_core import ObjectStore

FAIL, CONTINUE = "fail", "continue"
_LONGEST_S = 86400.0


def to_choice(text: str) -> str:
    """
    Read what is to happen when a package is not announced.

    Raises:
        SettingsInvalid: It is neither `fail` nor `continue`.
    """
    if text.lower() not in {FAIL, CONTINUE}:
        raise SettingsInvalid(f"{text!r} is neither {FAIL!r} nor {CONTINUE!r}")
    return text.lower()


def to_patience_s(text: str) -> float:
    """
    Read how long something is tried again; 0 is once.

    Raises:
        SettingsInvalid: It is no number of seconds between 0 and a day.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= _LONGEST_S:
        raise SettingsInvalid(f"{text!r} is no number of seconds from 0 to {_LONGEST_S:.0f}")
    return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings(CoreSettings):
    """What `trace_pytorch` and `log_onnx_model` read, when they are called."""

    store: str | None = setting("KEYNET_STORE", "Where packages go, a URL or a directory.")
    """Default: `AWS_BUCKET_NAME`, else the bucket of MLflow's artifacts, else `$KEYNET_HOME/store`."""

    bucket: str | None = setting("AWS_BUCKET_NAME", "An S3 bucket for packages, when KEYNET_STORE is not set.")

    model_id: str | None = setting("MODEL_ID", "Prefix of the experiment: `{MODEL_ID}_{model_name}`.")

    on_unpublished: str = setting(
        "KEYNET_ON_UNPUBLISHED",
        "`fail` or `continue`: whether a package that is not announced, although it could be, ends the call with an "
        "error, or with a warning.",
        parse=to_choice,
        default=FAIL,
    )

    publish_timeout_s: float = setting(
        "KEYNET_PUBLISH_TIMEOUT_S",
        "How long a training process tries again to store and announce its package, in seconds; 0 is once.",
        parse=to_patience_s,
        default=60.0,
    )

    @property
    def outbox(self) -> Outbox:
        """The spool of the home."""
        return Outbox(self.state_directory / "outbox")


def to_experiment_name(settings: TrainSettings, name: str) -> str:
    """Return the experiment of a model: `{MODEL_ID}_{name}`, or `name` when no MODEL_ID is set."""
    return f"{settings.model_id}_{name}" if settings.model_id else name


def open_package_store(settings: TrainSettings, artifact_root: str) -> ObjectStore:
    """
    Return the store packages go to.

    Args:
        settings: What was read.
        artifact_root: Where MLflow keeps the artifacts of the experiment; its bucket is used when it has one.

    Raises:
        StoreUnsupported: No engine is known for the store's scheme.
    """
    bucket = _bucket_url(settings, artifact_root)
    return open_store(settings.store or bucket or (settings.state_directory / "store").as_uri())


def _bucket_url(settings: TrainSettings, artifact_root: str) -> str | None:
    if settings.bucket:
        return f"s3://{settings.bucket}"
    parts = urlsplit(artifact_root)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme in {"s3", "gs", "abfs", "abfss", "wasbs"} else None
