"""Connections of HTTP/1.1 to a model server that keep to a deadline, and are kept for the next request."""

from __future__ import annotations

import select
import socket
from collections import deque
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from keynet_inference._deadlines import Source, read_body, send
from keynet_inference._errors import InferenceFailed, TritonTimeout, TritonUnavailable, TritonUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from http.client import HTTPMessage

    from keynet_inference._deadlines import Deadline

MAX_ANSWER_BYTES = 2**31 - 1
"""As much as gRPC carries."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, headers, and a body that may be written to."""

    status: int
    headers: HTTPMessage
    body: memoryview
    keeps_open: bool


class ConnectionPool:
    """Connections to one address; each is used by one thread at a time."""

    def __init__(self, url: str, connect_timeout_s: float, *, max_answer_bytes: int = MAX_ANSWER_BYTES) -> None:
        parts = urlsplit(url)
        self._url = url
        self._max_answer_bytes = max_answer_bytes
        self._netloc = parts.netloc
        self._address = (str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80))
        self._is_tls = parts.scheme == "https"
        self._connect_timeout_s = connect_timeout_s
        self._idle: deque[socket.socket] = deque()
        self._is_closed = False

    def ask(
        self, method: str, path: str, headers: Mapping[str, str], body: Sequence[bytes | memoryview], deadline: Deadline
    ) -> Answer:
        """
        Send a request and return its answer, whatever its status.

        Raises:
            TritonTimeout: The deadline passed.
            TritonUnreachable: No connection came about, or it was lost before an answer.
            TritonUnavailable: It was lost in the middle of an answer.
            InferenceFailed: The answer is not HTTP, or too large.

        """
        try:
            return self._exchange(method, path, headers, body, deadline)
        except TimeoutError as error:
            if isinstance(error, TritonTimeout):
                raise
            raise TritonTimeout(
                f"{self._url} did not answer within {deadline.timeout_s:g} s", hint="TritonPlugin(timeout_s=...)"
            ) from error
        except OSError as error:
            raise TritonUnreachable(f"the connection to {self._url} was lost: {error}") from error
        except HTTPException as error:
            raise InferenceFailed(f"{self._url} answered something that cannot be read: {error!r}") from error

    def close(self) -> None:
        """Close the connections that are idle now, and the others when they become so."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    def __del__(self) -> None:
        self.close()

    def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: Sequence[bytes | memoryview], deadline: Deadline
    ) -> Answer:
        connection = self._take() or self._connect(deadline)
        is_kept = False
        try:
            # A server that refuses a request early closes before it is all sent; its answer is there to be read.
            with suppress(BrokenPipeError, ConnectionResetError):
                send(connection, self._head(method, path, headers, sum(map(len, body))), body, deadline)
            answer = self._receive(Source(connection, deadline), method)
            is_kept = answer.keeps_open and not self._is_closed
        finally:
            if is_kept:
                self._idle.append(connection)
            else:
                connection.close()
        return answer

    def _receive(self, source: Source, method: str) -> Answer:
        response = HTTPResponse(cast("Any", source), method=method)
        try:
            # One that is left open is not closed quietly later, since Python 3.13.
            with closing(response):
                response.begin()
                body = read_body(response, self._max_answer_bytes)
        except TimeoutError:
            raise
        except (OSError, EOFError, IncompleteRead) as error:
            if not source.has_given:
                raise
            raise TritonUnavailable(f"the answer of {self._url} broke off: {error}") from error
        return Answer(response.status, response.msg, body, not response.will_close)

    def _head(self, method: str, path: str, headers: Mapping[str, str], length: int) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._netloc}", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join((*lines, "\r\n")).encode("latin-1")

    def _take(self) -> socket.socket | None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if not _is_readable(connection):
                return connection
            connection.close()

    def _connect(self, deadline: Deadline) -> socket.socket:
        timeout_s = min(self._connect_timeout_s, deadline.left_s())
        try:
            connection = socket.create_connection(self._address, timeout=timeout_s)
        except TimeoutError as error:
            raise TritonTimeout(f"{self._url} accepted no connection within {timeout_s:g} s") from error
        except OSError as error:
            raise TritonUnreachable(
                f"no model server answers at {self._url}: {error.strerror or error}",
                hint="start one with `keynet up`, or set TRITON_URL to where one runs",
            ) from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._wrapped(connection) if self._is_tls else connection

    def _wrapped(self, connection: socket.socket) -> socket.socket:
        import ssl

        try:
            return ssl.create_default_context().wrap_socket(connection, server_hostname=self._address[0])
        except OSError as error:
            connection.close()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise InferenceFailed(
                    f"the certificate of {self._url} is not trusted: {error.verify_message}",
                    hint="set SSL_CERT_FILE to the authority that signed it",
                ) from error
            raise


def _is_readable(connection: socket.socket) -> bool:
    """Whether an idle connection was closed by the server, or says something nobody asked for."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
