"""A rollback as an event: it goes the way of every deployment, in order, journaled before it is acted on."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from keynet_core import Event, EventInvalid, to_digest, to_model_name
from keynet_server._errors import DeploymentConflict, DeploymentUnknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keynet_core import ModelName
    from keynet_server._records import Deployment


_WAS_LIVE = {"superseded", "unloaded"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackRequested:
    """The data of `io.keynet.model.rollback.requested.v1`: an older package is to be deployed again."""

    TYPE: ClassVar[str] = "io.keynet.model.rollback.requested.v1"

    model: ModelName
    digest: str
    model_version: str | None
    run_id: str | None
    restores: int
    who: str
    why: str | None

    def to_event(self) -> Event:
        """Return the event; every request is a happening of its own."""
        return Event(
            id=f"rollback/{self.model}/{uuid.uuid4().hex}",
            source="/keynet/operator",
            type=self.TYPE,
            subject=self.model,
            data={name: getattr(self, name) for name in self.__slots__},
        )

    @classmethod
    def of(cls, target: Deployment, *, who: str, why: str | None) -> Self:
        """Return the request to deploy again what `target` deployed."""
        return cls(
            model=target.model,
            digest=target.digest,
            model_version=target.model_version,
            run_id=target.run_id,
            restores=target.number,
            who=who,
            why=why,
        )

    @classmethod
    def from_event(cls, event: Event) -> Self:
        """Read what `to_event` wrote."""
        data = event.data
        if event.type != cls.TYPE or not isinstance(data.get("restores"), int):
            raise EventInvalid(f"event {event.id} is no request for a rollback")
        return cls(
            model=to_model_name(data.get("model")),
            digest=to_digest(data.get("digest")),
            model_version=data.get("model_version"),
            run_id=data.get("run_id"),
            restores=data["restores"],
            who=str(data.get("who")),
            why=data.get("why"),
        )


def choose_target(history: Sequence[Deployment], number: int | None) -> Deployment:
    """
    Return the deployment to bring back: the one asked for, else the one that was live before with another package.

    Args:
        history: A model's deployments, newest first.
        number: What the operator asked for; also a failed one, whose package is then tried again.

    Raises:
        DeploymentUnknown: There is no such deployment.
        DeploymentConflict: Its package is live already, or nothing older was ever live.

    """
    live = next((each for each in history if each.state == "deployed"), None)
    model = history[0].model
    hint = f"keynet models history {model}"
    if number is None:
        target = next((each for each in history if each.state in _WAS_LIVE and not _same(each, live)), None)
        if target is None:
            raise DeploymentConflict(f"{model} has no earlier package to go back to", hint=hint)
        return target
    target = next((each for each in history if each.number == number), None)
    if target is None:
        raise DeploymentUnknown(f"{model} has no deployment {number}", hint=hint)
    if _same(target, live):
        assert live is not None
        raise DeploymentConflict(f"the package of deployment {number} of {model} is live, as {live.number}", hint=hint)
    return target


def _same(deployment: Deployment, live: Deployment | None) -> bool:
    return live is not None and deployment.digest == live.digest
