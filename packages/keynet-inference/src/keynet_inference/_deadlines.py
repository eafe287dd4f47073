"""
When a request must be answered, and HTTP/1.1 whose every wait ends there.

The standard library's client bounds each read; a server that sends one byte now and then would hold it for ever. Here
every wait, from the connection to the last byte, ends at the request's deadline.
"""

from __future__ import annotations

import io
import time
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from keynet_inference._errors import TritonTimeout

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from http.client import HTTPResponse

    from keynet_core import KeynetError

_JOINED_BYTES = 64 * 1024
"""Up to here one copy is cheaper than one more packet."""


class Deadline:
    """When a request must be answered, whatever it consists of, and what is raised then."""

    __slots__ = ("_at", "_late", "_setting", "timeout_s")

    def __init__(
        self, timeout_s: float, late: type[KeynetError] = TritonTimeout, setting: str = "TritonPlugin(timeout_s=...)"
    ) -> None:
        self.timeout_s = timeout_s
        self._at = time.monotonic() + timeout_s
        self._late = late
        self._setting = setting

    def left_s(self) -> float:
        """
        Return the seconds that are left, which are more than none.

        Raises:
            KeynetError: There are none; of the class that was chosen.

        """
        left = self._at - time.monotonic()
        if left <= 0:
            raise self.passed()
        return left

    @property
    def is_open(self) -> bool:
        """Whether any are left."""
        return time.monotonic() < self._at

    def passed(self, where: str = "") -> KeynetError:
        """Return the error that says so."""
        return self._late(f"no answer{where} within {self.timeout_s:g} s", hint=self._setting)


class AnswerTooLarge(HTTPException):
    """Raised where a body is larger than it may be."""


class Source(io.RawIOBase):
    """What an HTTPResponse reads from: a socket whose every read ends at the deadline."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        super().__init__()
        self._connection = connection
        self._deadline = deadline
        self.has_given = False

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._connection.settimeout(self._deadline.left_s())
        count = self._connection.recv_into(buffer)
        self.has_given = self.has_given or count > 0
        return count


def send(connection: socket.socket, head: bytes, body: Sequence[bytes | memoryview], deadline: Deadline) -> None:
    """Send a request; what is small goes in one packet."""
    pieces: Sequence[bytes | memoryview] = (head, *body)
    if sum(map(len, pieces)) <= _JOINED_BYTES:
        pieces = (b"".join(pieces),)
    for piece in pieces:
        connection.settimeout(deadline.left_s())
        connection.sendall(piece)


def read_body(response: HTTPResponse, max_bytes: int) -> memoryview:
    """
    Return the whole of a body, which may be written to.

    Raises:
        AnswerTooLarge: It is, or says it is, more than `max_bytes`.
        EOFError: It breaks off.
        IncompleteRead: It breaks off inside a chunk.

    """
    if response.length is None:  # chunked, or until the server closes
        data = response.read(max_bytes + 1)
        _refuse_more(len(data), max_bytes)
        return memoryview(bytearray(data))
    _refuse_more(response.length, max_bytes)
    body = memoryview(bytearray(response.length))
    at = 0
    while at < len(body):
        count = response.readinto(body[at:])
        if not count:
            raise EOFError(f"{at} of {len(body)} bytes came")
        at += count
    response.close()
    return body


def _refuse_more(length: int, max_bytes: int) -> None:
    if length > max_bytes:
        raise AnswerTooLarge(f"more than {max_bytes} bytes")
