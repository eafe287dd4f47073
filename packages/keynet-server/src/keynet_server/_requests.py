"""What a received event asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keynet_core import Event, ModelPublished
from keynet_server._records import Request
from keynet_server._rollback import RollbackRequested
from keynet_server._unload import UnloadRequested

if TYPE_CHECKING:
    from keynet_server._records import ReceivedEvent


def to_request(received: ReceivedEvent) -> Request | UnloadRequested:
    """
    Return what a received event asks for.

    Raises:
        EventInvalid: It cannot be read; a keynet that knew more wrote it down.

    """
    event = Event.from_json(received.body.encode())
    if event.type == UnloadRequested.TYPE:
        return UnloadRequested.from_event(event)
    if event.type == RollbackRequested.TYPE:
        asked = RollbackRequested.from_event(event)
        return Request(
            event_id=event.id,
            model=asked.model,
            digest=asked.digest,
            model_version=asked.model_version,
            run_id=asked.run_id,
            requested_by=asked.who,
            why=asked.why or f"rollback to deployment {asked.restores}",
            restores=asked.restores,
        )
    published = ModelPublished.from_event(event)
    return Request(
        event_id=event.id,
        model=published.model,
        digest=published.digest,
        model_version=published.model_version,
        run_id=published.run_id,
        requested_by=received.source,
        why="published",
    )
