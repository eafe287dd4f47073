"""The body of an answer of S3, read so that one that hardly comes is given up."""

from __future__ import annotations

import os
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from keynet_core._errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAST_BYTES = 16 << 10
"""What a body has to bring in each time-out, or its rest: a socket's own time-out begins again with every byte."""

_PIECE_BYTES = 1 << 20
_REST_BYTES = 128 << 10
"""What is read as it comes; more than `LEAST_BYTES` and what lies in buffers above the socket."""


def pieces_of(response: Any, key: str, *, timeout_s: float) -> Iterator[bytes]:
    """
    Yield the bytes of a body; they may be fewer than the answer told of.

    Args:
        response: What boto3 answers, with its `Body` and `ContentLength`.
        key: The object, as it is named when they do not come.
        timeout_s: In how many seconds 16 KiB must come, or the rest.

    Raises:
        StoreUnavailable: They did not, at the end; before, boto3 says that the time is over.

    """
    body, left = response["Body"], response["ContentLength"] - _REST_BYTES
    # boto3 has no other way to the connection, nor to the bytes that have come.
    stream = body._raw_stream  # noqa: SLF001
    while left > 0:
        with _waiting_for(LEAST_BYTES, stream.fileno()):
            piece: bytes = body.read(min(left, _PIECE_BYTES))
        if not piece:
            return
        left -= len(piece)
        yield piece
    yield from _as_they_come(stream, key, timeout_s)


@contextmanager
def _waiting_for(count: int, descriptor: int) -> Iterator[None]:
    """Have a connection wait for so many bytes, and not for one; it must be sure that they will come."""
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
        try:
            yield
        finally:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def _as_they_come(stream: Any, key: str, timeout_s: float) -> Iterator[bytes]:
    came, waited_s = 0, 0.0
    while True:
        begun_s = time.monotonic()
        piece: bytes = stream.read1(_REST_BYTES)
        waited_s += time.monotonic() - begun_s
        if not piece:
            return
        yield piece
        came += len(piece)
        if came >= LEAST_BYTES:
            came, waited_s = 0, 0.0
        elif waited_s > timeout_s:
            told = f"only {came} bytes of {key} came in {waited_s:.1f} s"
            raise StoreUnavailable(told, hint="raise KEYNET_STORE_TIMEOUT_S")
