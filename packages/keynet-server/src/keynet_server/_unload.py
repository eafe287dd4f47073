"""Unloading a model as an event: it goes the way of every deployment, in order, journaled before it is acted on."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from keynet_core import Event, EventInvalid, to_model_name

if TYPE_CHECKING:
    from keynet_core import ModelName


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadRequested:
    """The data of `io.keynet.model.unload.requested.v1`: a model is to be served no more."""

    TYPE: ClassVar[str] = "io.keynet.model.unload.requested.v1"

    model: ModelName
    who: str
    why: str | None

    def to_event(self) -> Event:
        """Return the event; every request is a happening of its own."""
        return Event(
            id=f"unload/{self.model}/{uuid.uuid4().hex}",
            source="/keynet/operator",
            type=self.TYPE,
            subject=self.model,
            data={name: getattr(self, name) for name in self.__slots__},
        )

    @classmethod
    def from_event(cls, event: Event) -> Self:
        """
        Read what `to_event` wrote.

        Raises:
            EventInvalid: It is something else.

        """
        if event.type != cls.TYPE:
            raise EventInvalid(f"event {event.id} is no request to unload a model")
        return cls(
            model=to_model_name(event.data.get("model")), who=str(event.data.get("who")), why=event.data.get("why")
        )

    @property
    def told(self) -> str:
        """What the journal keeps, in one sentence."""
        return f"unloaded by {self.who}" + (f": {self.why}" if self.why else "")
