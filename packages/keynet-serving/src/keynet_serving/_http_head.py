"""The head of an HTTP request: from bytes to a method, a path and what is known of the body, or to a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from keynet_serving._http_response import to_json_reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keynet_serving._http_response import Reply

HEAD_BYTES = 16 << 10
"""The longest head, request line included."""
_URL_BYTES = 8 << 10
_HEADERS = 100
_LENGTH_DIGITS = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a client says before the body."""

    method: str
    path: tuple[str, ...]
    headers: Mapping[bytes, bytes]
    """By name in small letters; a name that came twice has its values joined by commas."""
    length: int | None
    """Of the body; None where it comes in chunks."""
    keeps_alive: bool
    expects_continue: bool

    @property
    def binary_at(self) -> int:
        """Where the binary part of the body begins, as far as the client tells a number."""
        told = self.headers.get(b"inference-header-content-length", b"")
        return int(told) if told.isdigit() and len(told) <= _LENGTH_DIGITS else 0


def read_head(text: bytes) -> Head | Reply:
    """Return what a head says, its blank line included, or the refusal of one that leaves a doubt where it ends."""
    import httptools

    told = _Collector()
    parser = httptools.HttpRequestParser(told)
    try:
        parser.feed_data(text)
    except httptools.HttpParserUpgrade:
        # An offer to speak another protocol, which a server may leave unanswered.
        told.is_offer = True
    except httptools.HttpParserError as error:
        return _refusal(400, f"the request is not HTTP/1.1: {error}")
    if not told.is_complete or told.messages != 1 or told.has_body:
        return _refusal(400, "the request is not HTTP/1.1: its head does not end at the first blank line")
    return _refuse_size(told) or _to_head(text, told, parser.get_method().decode())


class _Collector:
    """What the parser calls."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.lines = 0
        self.messages = 0
        self.is_complete = False
        self.is_offer = False
        self.has_body = False

    def on_message_begin(self) -> None:
        self.messages += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.lines += 1
        key = name.lower()
        before = self.headers.get(key)
        self.headers[key] = value if before is None else before + b", " + value

    def on_headers_complete(self) -> None:
        self.is_complete = True

    def on_body(self, _: bytes) -> None:
        self.has_body = True


def _refuse_size(told: _Collector) -> Reply | None:
    if len(told.url) > _URL_BYTES:
        return _refusal(414, f"the address is longer than {_URL_BYTES} bytes")
    if told.lines > _HEADERS:
        return _refusal(431, f"the request has more than {_HEADERS} headers")
    return None


def _to_head(text: bytes, told: _Collector, method: str) -> Head | Reply:
    headers = told.headers
    line = text.lstrip(b"\r\n").partition(b"\r\n")[0]
    is_latest = line.endswith(b" HTTP/1.1")
    if line.count(b" ") != 2 or not (is_latest or line.endswith(b" HTTP/1.0")):
        return _refusal(400, "the request is neither HTTP/1.1 nor HTTP/1.0")
    length = headers.get(b"content-length", b"0")
    encoding = headers.get(b"transfer-encoding")
    is_plain = is_latest and not told.is_offer and b"content-length" not in headers
    if encoding is not None and not (is_plain and encoding.lower() == b"chunked"):
        return _refusal(400, "the request leaves a doubt where its body ends")
    if not length.isdigit() or len(length) > _LENGTH_DIGITS:
        return _refusal(400, "the content-length of the request is not a number")
    path = _to_path(told.url)
    if path is None:
        return _refusal(400, "the address of the request is not one")
    return Head(
        method=method,
        path=path,
        headers=headers,
        length=int(length) if encoding is None else None,
        keeps_alive=is_latest and b"close" not in headers.get(b"connection", b"").lower(),
        expects_continue=is_latest and headers.get(b"expect", b"").lower() == b"100-continue",
    )


def _to_path(url: bytes) -> tuple[str, ...] | None:
    import httptools

    try:
        path = httptools.parse_url(url).path or b""
    except httptools.HttpParserInvalidURLError:
        return None
    return tuple(unquote_to_bytes(path).decode("utf-8", "replace").split("/")[1:])


def _refusal(status: int, message: str) -> Reply:
    return to_json_reply({"error": message}, status=status)
