"""Events leave here: the seam, the embedded engine, and what publishing an outbox entry means."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from keynet_core._errors import EventRefused, EventUndelivered, SettingsInvalid
from keynet_core._events import CONTENT_TYPE
from keynet_core._package_store import upload_package
from keynet_core._settings import to_http_url
from keynet_core._watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from http.client import HTTPConnection

    from keynet_core._events import Event
    from keynet_core._objects import ObjectStore
    from keynet_core._outbox import Entry
    from keynet_core._secrets import Secret

EVENTS_PATH = "/v1/events"
_MAX_ANSWER_BYTES = 64 * 1024
_TAKEN = {200, 201, 202, 204}
_REFUSED = {400, 409, 410, 413, 415, 422}
"""Answers about the event itself. A token, a path or some patience can mend every other: the event waits."""


class EventPublisher(Protocol):
    """
    Hands events over.

    `publish` returns when the receiver has the event on disk. It raises EventUndelivered when that is not certain
    (sending again is safe: the id is the same), SettingsInvalid when it never will be with these settings, and
    EventRefused when the receiver understood the event and will not have it.
    """

    def publish(self, event: Event) -> None:
        """Hand one event over."""

    def opened(self) -> AbstractContextManager[EventPublisher]:
        """Return a block in which several events are handed over: an engine may keep one connection for them all."""


@dataclass(frozen=True, kw_only=True)
class HttpPublisher:
    """Events to the keynet server, each in one bounded request; proxies of the environment are not used."""

    url: str
    token: Secret | None = None
    timeout_s: float = 5.0
    """For the connection, and again for the request with its whole answer."""

    def publish(self, event: Event) -> None:
        """Post one event."""
        import http.client

        body, headers = event.to_json(), self._headers()
        try:
            status, answer = self._post(body, headers)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise EventUndelivered(
                f"the keynet server at {self.url} does not answer: {printable(str(error)) or type(error).__name__}",
                hint="keynet up",
            ) from error
        if status in _TAKEN:
            return
        reason = f"the keynet server at {self.url} answered {status}: {_reason(answer)}"
        if status in _REFUSED:
            raise EventRefused(reason)
        raise EventUndelivered(reason, hint="keynet doctor")

    def opened(self) -> AbstractContextManager[EventPublisher]:
        """Return itself: every event has a request of its own."""
        return nullcontext(self)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": CONTENT_TYPE}
        if self.token is not None:
            text = self.token.reveal()
            # Refused here, because the refusal of http.client would quote it.
            if not (text.isascii() and text.isprintable()):
                raise SettingsInvalid("the token for the keynet server has characters that a header cannot carry")
            headers["Authorization"] = f"Bearer {text}"
        return headers

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        from urllib.parse import urlsplit

        connection = self._connection()
        try:
            connection.connect()
            with Watchdog() as watchdog, watchdog.bounding(connection.sock, self.timeout_s):
                connection.request("POST", urlsplit(self.url).path + EVENTS_PATH, body, headers)
                response = connection.getresponse()
                return response.status, response.read(_MAX_ANSWER_BYTES)
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        import http.client
        import ssl
        from urllib.parse import urlsplit

        parts = urlsplit(to_http_url(self.url))
        host = str(parts.hostname)
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, parts.port or 80, timeout=self.timeout_s)
        return http.client.HTTPSConnection(
            host, parts.port or 443, timeout=self.timeout_s, context=ssl.create_default_context()
        )


@dataclass(frozen=True, kw_only=True)
class Nowhere:
    """What publishes when no server is known: nothing, and says so, so that events wait in the outbox."""

    def publish(self, event: Event) -> None:
        """Refuse for now."""
        raise EventUndelivered(f"no keynet server is known to announce {event.subject} to", hint="keynet up")

    def opened(self) -> AbstractContextManager[EventPublisher]:
        """Return itself."""
        return nullcontext(self)


def publish_entry(entry: Entry, store: ObjectStore, events: EventPublisher, stored: Callable[[str], None]) -> None:
    """
    Put an outbox entry's package into the store, then announce it.

    Args:
        entry: What waits.
        store: Where packages go.
        events: Who is told.
        stored: Called with the package's address once it is in the store, before it is announced.

    """
    if (package := entry.package()) is not None:
        stored(upload_package(package, store))
    events.publish(entry.event)


def _reason(answer: bytes) -> str:
    try:
        told = json.loads(answer)
    except (ValueError, RecursionError):
        told = answer[:200].decode(errors="replace")
    if isinstance(told, dict):
        told = told.get("detail") or told.get("message") or told
    return printable(str(told)[:500])


def printable(text: str) -> str:
    """Return a server's words for a terminal: none of them may move its cursor."""
    return "".join(each if each.isprintable() else " " for each in text).strip()
