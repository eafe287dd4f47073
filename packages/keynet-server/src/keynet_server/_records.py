"""What the journal remembers, as values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datetime import datetime

    from keynet_core import ModelName

State = Literal["deploying", "deployed", "failed", "superseded", "unloaded"]
Outcome = Literal["deployed", "already deployed", "unloaded", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedEvent:
    """An event as it was received, and what became of it; without an outcome it is still to be acted on."""

    id: str
    type: str
    subject: str | None
    source: str
    received_at: datetime
    body: str
    outcome: Outcome | None = None
    reason: str | None = None
    finished_at: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the body."""
        return _plain(self, without=frozenset({"body"}))

    def to_whole(self) -> dict[str, Any]:
        """Return plain values for JSON, with the event as it came."""
        return {**self.to_dict(), "event": json.loads(self.body)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One package brought to the model server, or the attempt: who, when, why, and what came of it."""

    model: ModelName
    number: int
    digest: str
    model_version: str | None
    """The version in MLflow's registry, where there is one."""
    served_version: str
    """The version a client asks the model server for."""
    run_id: str | None
    event_id: str
    restores: int | None
    """The number of the deployment a rollback brings back."""
    state: State
    reason: str | None
    requested_by: str
    why: str | None
    started_at: datetime
    finished_at: datetime | None
    engine_answer: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return _plain(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What an event asks for: this package of this model, for this reason."""

    event_id: str
    model: ModelName
    digest: str
    model_version: str | None
    run_id: str | None
    requested_by: str
    why: str | None = None
    restores: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """A model at a glance: what is live, and the newest deployment, which may have failed."""

    name: ModelName
    live: Deployment | None
    last: Deployment

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"name": self.name, "live": self.live.to_dict() if self.live else None, "last": self.last.to_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The events of one model that wait, by their place in the order of receipt."""

    subject: str | None
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A model's deployments, newest first."""

    deployments: tuple[Deployment, ...]
    is_truncated: bool
    """Whether there are older ones."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"deployments": [each.to_dict() for each in self.deployments], "truncated": self.is_truncated}


def _plain(record: ReceivedEvent | Deployment, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in record.__slots__ if name not in without}
    return {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in values.items()}
