"""What every request goes through before a route sees it: host, token, type and size of the body; problems as JSON."""

from __future__ import annotations

import json
import re
import uuid
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.responses import Response

from keynet_core import EventInvalid, EventRefused, NameRefused, SettingsInvalid, StoreError
from keynet_server._errors import (
    BodyTooLarge,
    BrokerMissing,
    BrokerUnavailable,
    ContentTypeRefused,
    DeploymentConflict,
    DeploymentUnknown,
    EventConflict,
    EventUnknown,
    HostRefused,
    JournalUnavailable,
    PackageElsewhere,
    RequestRefused,
    TokenRefused,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from keynet_core import KeynetError, Secret

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})

_STATUS: tuple[tuple[type[KeynetError], int], ...] = (
    (EventUnknown, 404),
    (DeploymentUnknown, 404),
    (PackageElsewhere, 404),  # a publisher waits and tries again: stores can be mended
    (BrokerMissing, 404),
    (DeploymentConflict, 409),
    (EventConflict, 409),
    (EventInvalid, 422),
    (EventRefused, 422),
    (NameRefused, 422),
    (SettingsInvalid, 422),
    (StoreError, 503),
    (JournalUnavailable, 503),
    (BrokerUnavailable, 503),
)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
_HOST = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?", re.ASCII)


class Guard:
    """
    Middleware: refuses hosts this server does not answer for, and names every request.

    A page on another site can make a browser send requests to loopback under a name of its own; the Host header
    still carries that name, so it is refused here.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str] = LOOPBACK_HOSTS) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = {**_HEADERS, "x-request-id": request_id}
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in extra.items())]
            await send(message)

        host = Headers(scope=scope).get("host", "")
        if self._answers_for(host):
            await self._app(scope, receive, sending)
        else:
            refused = HostRefused(
                f"this server does not answer for the host {host!r:.100}",
                hint="when it is a name of this server, add it to KEYNET_ALLOWED_HOSTS where the server runs",
            )
            await to_problem(refused, request_id)(scope, receive, sending)

    def _answers_for(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        return found is not None and found[1].lower() in self._hosts


def to_problem(error: KeynetError, request_id: str) -> Response:
    """Return an error as problem details (RFC 9457)."""
    return problem(_status_of(error), error.message, request_id, code=error.code, hint=error.hint)


def problem(status: int, detail: str, request_id: str, *, code: str, hint: str | None = None) -> Response:
    """Return problem details; the address of a problem's type is not resolvable, its code is stable."""
    import http

    told: dict[str, Any] = {
        "type": "about:blank",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
    if hint:
        told["hint"] = hint
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return Response(json.dumps(told), status, headers, media_type="application/problem+json")


def require_token(request: Request, token: Secret) -> None:
    """
    Let a request pass that carries the token.

    Raises:
        TokenRefused: It carries none, or another.

    """
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given:
        raise TokenRefused("this request needs a token", hint="send 'Authorization: Bearer <token>' (KEYNET_TOKEN)")
    if not token.matches(given.strip()):
        raise TokenRefused("this token is not the server's", hint="set KEYNET_TOKEN to the token of this server")


async def read_body(request: Request, *, content_type: str, max_bytes: int) -> bytes:
    """
    Return a request's body, of exactly this type and at most this many bytes.

    Raises:
        ContentTypeRefused: It is of another type; a form on another site can only send those.
        BodyTooLarge: It has more bytes; no more than the limit are read.

    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != content_type:
        raise ContentTypeRefused(f"the body must be {content_type}, not {given or 'untyped'!r:.80}")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise BodyTooLarge(f"the body has {announced[:20]} bytes, at most {max_bytes} are read")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLarge(f"the body has more than {max_bytes} bytes")
    return bytes(body)


def _status_of(error: KeynetError) -> int:
    if isinstance(error, RequestRefused):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
