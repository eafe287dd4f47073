"""An event that failed, acted on once more: a new event that names the old one, because the journal forgets nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from keynet_core import Event, ModelPublished
from keynet_server._errors import EventConflict

if TYPE_CHECKING:
    from keynet_server._deployer import Deployer
    from keynet_server._journal import Journal
    from keynet_server._records import ReceivedEvent

_MARK = "/replay/"


def replay_failed(deployer: Deployer, event_id: str) -> Event:
    """
    Receive a failed event again under the id `<first id>/replay/<number>`, and return it.

    Two who ask at the same time get the same replay. Like every event that is received, it is the newest of its model:
    what it announces becomes live when it can be served.

    Raises:
        EventUnknown: There is no such event.
        EventConflict: It did not fail, or is still acted on, or it asked for a rollback.
        PackageElsewhere: Its package is not in this server's store.

    """
    received = deployer.journal.event(event_id)
    if received.type != ModelPublished.TYPE:
        raise EventConflict(
            f"event {event_id} asked for {received.type}, and is not replayed",
            hint=f"keynet models history {received.subject}",
        )
    _require_failed(received)
    first = event_id.partition(_MARK)[0]
    replayed = replace(Event.from_json(received.body.encode()), id=_next_id(deployer.journal, first))
    deployer.receive(replayed)
    return replayed


def is_replay(event_id: str) -> bool:
    """Return whether an event was received again because someone asked for it."""
    return _MARK in event_id


def _next_id(journal: Journal, first: str) -> str:
    """
    Return the first id of a replay that was not received.

    Raises:
        EventConflict: The newest replay did not fail.

    """
    number = 1
    while journal.knows(f"{first}{_MARK}{number}"):
        number += 1
    if number > 1:
        _require_failed(journal.event(f"{first}{_MARK}{number - 1}"))
    return f"{first}{_MARK}{number}"


def _require_failed(received: ReceivedEvent) -> None:
    if received.outcome == "failed":
        return
    if received.outcome is None:
        raise EventConflict(f"event {received.id} is still acted on", hint=f"keynet events show {received.id}")
    raise EventConflict(
        f"event {received.id} did not fail: {received.outcome}", hint=f"keynet models show {received.subject}"
    )
