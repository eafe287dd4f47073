"""An http or https URL to its bytes, where it, and every address it leads on to, may be read."""

from __future__ import annotations

import socket
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urljoin

from keynet_core import ObjectMissing, ObjectTooLarge, StoreUnavailable
from keynet_inference._addresses import resolve
from keynet_inference._deadlines import AnswerTooLarge, Deadline, Source, read_body, send
from keynet_inference._errors import SourceRefused

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from keynet_core import StoreError
    from keynet_inference._addresses import Lookup
    from keynet_inference._web import WebUrl

MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S = 5.0

_REDIRECTS = {301, 302, 303, 307, 308}
_MISSING = {404, 410}
_REFUSED = {400, 401, 403}
_BUSY = {408, 425, 429}
_REASON_CHARS = 200


class Trust(NamedTuple):
    """Which certificates are believed: those that `authorities` signed, a file; else what the machine believes."""

    checks: bool = True
    authorities: str | None = None


class Target(NamedTuple):
    """A URL that may be fetched; its host may be at a private address where the configuration named it."""

    url: WebUrl
    may_be_private: bool
    trust: Trust = Trust()


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """
    Fetches with GET, without credentials, cookies or a proxy, and without expanding what is compressed.

    A host is looked up once per request, and the address that was judged is the one connected to.
    """

    timeout_s: float
    max_bytes: int
    lookup: Lookup = socket.getaddrinfo

    def fetch(self, target: Target, admit: Callable[[str], Target]) -> memoryview:
        """
        Return the bytes at a URL; `admit` judges where it leads on to.

        Raises:
            SourceRefused: The server refuses it, or it leads to what may not be read.
            ObjectMissing: Nothing is there.
            StoreUnavailable: The server does not answer, or not in time.
            ObjectTooLarge: There are more than `max_bytes`.

        """
        deadline = Deadline(self.timeout_s, StoreUnavailable, "Storage(timeout_s=...)")
        for _ in range(MAX_REDIRECTS + 1):
            with (
                _translating(target.url, self.max_bytes, deadline),
                self._connected(target, deadline) as connection,
                # One that is left open is not closed quietly later, since Python 3.13.
                closing(_ask(connection, target.url, deadline)) as response,
            ):
                response.begin()
                if response.status == 200:
                    return read_body(response, self.max_bytes)
                location = response.getheader("Location")
                if response.status not in _REDIRECTS or location is None:
                    raise _refusal(response, target.url)
            target = admit(_joined(target.url, location))
        raise SourceRefused(f"{target.url} was led on to more than {MAX_REDIRECTS} times")

    @contextmanager
    def _connected(self, target: Target, deadline: Deadline) -> Iterator[socket.socket]:
        url = target.url
        peers = resolve(url.host, url.port, may_be_private=target.may_be_private, lookup=self.lookup)
        with _connect(peers, deadline) as plain:
            if url.scheme == "http":
                yield plain
                return
            plain.settimeout(deadline.left_s())
            with _context(target.trust).wrap_socket(plain, server_hostname=url.host) as secured:
                yield secured


def _context(trust: Trust) -> ssl.SSLContext:
    import ssl

    if trust.checks:
        return ssl.create_default_context(cafile=trust.authorities)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _connect(peers: list[Any], deadline: Deadline) -> socket.socket:
    """Connect to the first of the addresses that answers."""
    lost: OSError | None = None
    for peer in peers:
        connection = socket.socket(peer.family, socket.SOCK_STREAM)
        try:
            connection.settimeout(min(CONNECT_TIMEOUT_S, deadline.left_s()))
            connection.connect(peer.address)
        except OSError as error:
            connection.close()
            lost = error
        else:
            return connection
    raise lost or OSError("it has no address")


def _joined(url: WebUrl, location: str) -> str:
    try:
        return urljoin(f"{url.scheme}://{url.authority}{url.target}", location)
    except ValueError:
        # Not from it: it may quote what the server said.
        raise SourceRefused(f"{url} leads on to what is no URL") from None


def _ask(connection: socket.socket, url: WebUrl, deadline: Deadline) -> HTTPResponse:
    lines = (
        f"GET {url.target} HTTP/1.1",
        f"Host: {url.authority}",
        "Accept: */*",
        "Accept-Encoding: identity",
        "User-Agent: keynet",
        "Connection: close",
    )
    send(connection, "\r\n".join((*lines, "\r\n")).encode("ascii"), (), deadline)
    return HTTPResponse(cast("Any", Source(connection, deadline)), method="GET")


def _refusal(response: HTTPResponse, url: WebUrl) -> StoreError:
    told = f"{url} answered {response.status} {response.reason}"
    if response.status in _MISSING:
        return ObjectMissing(told)
    if response.status in _BUSY or response.status >= 500:
        return StoreUnavailable(told, hint="try again later")
    if response.status in _REFUSED:
        why = response.read(_REASON_CHARS * 4).decode(errors="replace")
        reason = "".join(each for each in why if each.isprintable())[:_REASON_CHARS]
        return SourceRefused(f"{told}: {reason}", hint="was the URL signed for this, and is it still valid?")
    return SourceRefused(told)


@contextmanager
def _translating(url: WebUrl, max_bytes: int, deadline: Deadline) -> Iterator[None]:
    try:
        yield
    except AnswerTooLarge as error:
        raise ObjectTooLarge(
            f"{url} is larger than the {max_bytes} bytes this storage holds in memory", hint="Storage(max_bytes=...)"
        ) from error
    except TimeoutError as error:
        raise deadline.passed(f" from {url}") from error
    except (OSError, EOFError, IncompleteRead) as error:
        raise StoreUnavailable(f"{url} cannot be fetched: {error}") from error
    except HTTPException as error:
        raise StoreUnavailable(f"{url} answered something that is no HTTP: {error!r:.200}") from error
