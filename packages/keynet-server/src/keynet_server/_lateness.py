"""Whether a version comes too late: a broker delivers again what a killed server held, behind what was sent later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keynet_core import Event, EventInvalid, ModelPublished
from keynet_server._replay import is_replay

if TYPE_CHECKING:
    from keynet_server._journal import Journal
    from keynet_server._records import ReceivedEvent

_LOOKED_AT = 50
"""How many earlier deployments are looked at; what is delivered again is not older than that."""


def too_late(received: ReceivedEvent, journal: Journal) -> str | None:
    """
    Return why a published version is not to replace what is live, or None.

    Only numbers of one series are compared: two registries count from 1 both. A replay was asked for by someone who
    knows.
    """
    mine = _published(received)
    if mine is None or is_replay(received.id) or (number := _number(mine)) is None:
        return None
    earlier = (_published(each) for each in journal.events_that_went_live(mine.model, limit=_LOOKED_AT))
    numbers = [_number(each) or 0 for each in earlier if each and each.version_series == mine.version_series]
    newest = max(numbers, default=0)
    if number >= newest:
        return None
    return f"version {number} arrived after version {newest} of the same registered model had been deployed"


def _published(received: ReceivedEvent) -> ModelPublished | None:
    if received.type != ModelPublished.TYPE:
        return None
    try:
        return ModelPublished.from_event(Event.from_json(received.body.encode()))
    except EventInvalid:  # written down by a keynet that knew more
        return None


def _number(published: ModelPublished) -> int | None:
    text = published.model_version
    return int(text) if published.version_series and text and text.isascii() and text.isdigit() else None
