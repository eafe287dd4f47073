"""What is to become of a message: written down, never to be taken, or to be held until something is back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keynet_core import (
    MAX_EVENT_BYTES,
    Event,
    EventInvalid,
    EventRefused,
    LockTimeout,
    NameRefused,
    PackageInvalid,
    StoreUnavailable,
)
from keynet_server._errors import JournalUnavailable, PackageElsewhere

if TYPE_CHECKING:
    from collections.abc import Callable

    from keynet_core import KeynetError

_NEVER = (EventInvalid, EventRefused, PackageElsewhere, PackageInvalid, NameRefused)
_NOT_NOW = (JournalUnavailable, StoreUnavailable, LockTimeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """It is in the journal."""

    id: str
    is_fresh: bool
    """Whether it was not there before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dead:
    """It can never be taken, for this reason."""

    code: str
    reason: str
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotNow:
    """What it needs is away."""

    reason: str


Verdict = Taken | Dead | NotNow


def judge(body: bytes, receive: Callable[[Event], bool]) -> Verdict:
    """
    Read a message and hand its event to `receive`.

    Args:
        body: The message, whatever anybody sent.
        receive: `Deployer.receive`; what it raises and is not known here is raised on.

    """
    try:
        event = _read(body)
        return Taken(id=event.id, is_fresh=receive(event))
    except _NOT_NOW as error:
        return NotNow(reason=error.message)
    except _NEVER as error:
        return died_of(error)


def died_of(error: KeynetError) -> Dead:
    """Return the verdict that an error stands for."""
    return Dead(code=error.code, reason=error.message, hint=error.hint)


def _read(body: bytes) -> Event:
    try:
        return Event.from_json(body)
    except EventInvalid as error:
        if len(body) <= MAX_EVENT_BYTES and _is_predecessors(body):
            raise EventInvalid(
                "this is a message of an earlier keynet-train, with 'train_id' and 'full_path', and no CloudEvent: "
                "it names no package that could be verified",
                hint="train again with keynet-train 0.9 or later, or publish the file with log_onnx_model",
            ) from error
        raise


def _is_predecessors(body: bytes) -> bool:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(told, dict) and {"train_id", "full_path"} <= set(told)
