"""Events: CloudEvents 1.0 as structured JSON, and the one type the way of a model needs."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self

from keynet_core._errors import EventInvalid
from keynet_core._names import to_model_name

if TYPE_CHECKING:
    from keynet_core._names import ModelName

CONTENT_TYPE = "application/cloudevents+json"
MAX_EVENT_BYTES = 256 * 1024

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """
    Something that happened, as CloudEvents 1.0 describes it (https://cloudevents.io).

    The `id` belongs to the happening: sent twice, it has the same id, and a receiver acts on it once.
    """

    id: str
    source: str
    type: str
    subject: str | None = None
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    data: dict[str, Any]

    def to_json(self) -> bytes:
        """
        Return the event in structured mode.

        Raises:
            EventInvalid: `from_json` would not read it back: it is too large, or its data is no JSON.

        """
        told = {
            "specversion": "1.0",
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "time": self.time.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "datacontenttype": "application/json",
            "data": self.data,
        }
        if self.subject is not None:
            told["subject"] = self.subject
        try:
            text = json.dumps(told, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise EventInvalid(f"event {self.id} cannot be written as JSON: {error}") from error
        if len(text) > MAX_EVENT_BYTES:
            raise EventInvalid(f"an event has at most {MAX_EVENT_BYTES} bytes, {self.id} has {len(text)}")
        return text

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """
        Read an event; attributes this version does not know are ignored.

        Raises:
            EventInvalid: It is no JSON object, a required attribute is missing or empty, the version is not 1.0, or
                it is larger than MAX_EVENT_BYTES.

        """
        if len(text) > MAX_EVENT_BYTES:
            raise EventInvalid(f"an event has at most {MAX_EVENT_BYTES} bytes, got {len(text)}")
        try:
            told = json.loads(text, parse_constant=_refuse_constant)
            json.dumps(told, ensure_ascii=False).encode()  # refuses halves of surrogate pairs, which no one can store
        except (ValueError, RecursionError) as error:
            raise EventInvalid(f"the event is no JSON: {error}") from error
        if not isinstance(told, dict):
            raise EventInvalid("the event is no JSON object")
        if told.get("specversion") != "1.0":
            raise EventInvalid(f"the event has specversion {told.get('specversion')!r:.80}, keynet reads '1.0'")
        return cls(
            id=_text(told, "id"),
            source=_text(told, "source"),
            type=_text(told, "type"),
            subject=_text(told, "subject") if "subject" in told else None,
            time=_time(told.get("time")),
            data=_object(told.get("data")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPublished:
    """
    The data of `io.keynet.model.published.v1`: a package is in the store, whole.

    `store` and `key` say where the publisher put it. A receiver looks into the store it is configured with, under
    the key it computes from name and digest, and never follows an address out of an event.
    """

    TYPE: ClassVar[str] = "io.keynet.model.published.v1"

    model: ModelName
    digest: str
    store: str
    model_version: str | None = None
    version_series: str | None = None
    """Which count `model_version` is a number of: only two versions of one series are older and newer."""
    run_id: str | None = None
    experiment: str | None = None

    def to_event(self) -> Event:
        """
        Return the event; one run publishing one package twice has the same id.

        Without a run every call announces anew, because a package that is published again is to be deployed again:
        what is to be sent again, as from an outbox, is the event.
        """
        origin = f"/mlflow/runs/{self.run_id}" if self.run_id else "/keynet"
        return Event(
            id=f"{self.run_id or _own_number()}/{self.model}/{self.digest.removeprefix('sha256:')}",
            source=origin,
            type=self.TYPE,
            subject=self.model,
            data={name: getattr(self, name) for name in self.__slots__},
        )

    @classmethod
    def from_event(cls, event: Event) -> Self:
        """
        Read the data of an event of this type; what this version does not know is ignored.

        Raises:
            EventInvalid: The type is another, or a value is missing or has the wrong form.

        """
        if event.type != cls.TYPE:
            raise EventInvalid(f"event {event.id} is of type {event.type!r}, not {cls.TYPE!r}")
        try:
            model = to_model_name(event.data.get("model"))
        except ValueError as error:
            raise EventInvalid(f"event {event.id}: {error}") from error
        return cls(
            model=model,
            digest=to_digest(event.data.get("digest")),
            store=_text(event.data, "store"),
            model_version=_optional_text(event.data, "model_version"),
            version_series=_optional_text(event.data, "version_series"),
            run_id=_optional_text(event.data, "run_id"),
            experiment=_optional_text(event.data, "experiment"),
        )


def to_digest(text: object) -> str:
    """
    Return `text` as a digest, `sha256:` and 64 hexadecimal digits.

    Raises:
        EventInvalid: It is not one.

    """
    if isinstance(text, str) and text.startswith("sha256:"):
        digits = text.removeprefix("sha256:")
        if len(digits) == 64 and not set(digits) - set("0123456789abcdef"):
            return text
    raise EventInvalid(f"{text!r:.80} is no digest: sha256: and 64 hexadecimal digits")


def _own_number() -> str:
    return f"publication-{os.urandom(16).hex()}"


def _text(told: dict[str, Any], name: str) -> str:
    value = told.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 2048 or _CONTROL.search(value):
        raise EventInvalid(
            f"the event's {name!r} must be text of 1 to 2048 characters, none of them a control, got {value!r:.80}"
        )
    return value


def _optional_text(told: dict[str, Any], name: str) -> str | None:
    return None if told.get(name) is None else _text(told, name)


def _time(value: object) -> datetime:
    if value is None:
        return datetime.now(UTC)
    text = value if isinstance(value, str) and _TIME.match(value) else ""
    try:
        time = datetime.fromisoformat(text.upper())
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise EventInvalid(f"the event's 'time' is no RFC 3339 time: {value!r:.80}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EventInvalid("the event's 'data' must be a JSON object")
    return value
