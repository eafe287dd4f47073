"""What happened on the way of a model, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from keynet_core import Manifest


class DegradationWarning(UserWarning):
    """Says that something ended less well than was asked for; the same is a value in the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Degradation:
    """Something the user may have expected and did not get: a stable code, and one sentence."""

    code: str
    message: str

    def to_dict(self) -> dict[str, str]:
        """Return plain values for JSON."""
        return {"code": self.code, "message": self.message}

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """
    How far a package came, and why not further.

    `announced`: in the store, and the server has the event. `stored`: in the store, the event waits in the outbox.
    `waiting`: everything waits in the outbox. `refused`: the server will not have it.
    """

    state: Literal["announced", "stored", "waiting", "refused"]
    url: str
    """Where the package is, or will be once the outbox was handed over."""
    event_id: str
    reason: str | None = None
    """Why it is not announced, with the next command; None when it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceResult:
    """Everything that happened to a model between its training function and its publication."""

    model: torch.nn.Module
    run_id: str
    experiment: str
    model_version: str
    """The version in MLflow's registry; it carries the package's digest as the tag `keynet.digest`."""
    package: Manifest
    """What was packaged: digest, files, signature, parity, lineage."""
    publication: Publication
    degradations: tuple[Degradation, ...]
    timings_s: Mapping[str, float]
    """Seconds of each step after the training function returned: export, package, track, publish."""


def shortfalls(name: str, degradations: tuple[Degradation, ...], publication: Publication | None) -> list[str]:
    """Return in sentences what ended less well than was asked for; what is raised as an error is told by that."""
    told = [each.message for each in degradations]
    if publication is not None and publication.state != "announced":
        told.append(f"model {name!r} is {publication.state}, not announced: {publication.reason}")
    return told
