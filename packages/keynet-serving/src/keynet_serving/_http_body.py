"""The body of an HTTP request while it arrives: of a known length, or in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keynet_serving._errors import RequestRefused, RequestTooLarge

if TYPE_CHECKING:
    from keynet_serving._http_head import Head

_ALIGNMENT = 16
_FIRST_BYTES = 1 << 20


class SizedBody:
    """
    A body of a known length, which the socket fills without a copy.

    The buffer grows with what arrives, so that a length alone costs no memory. It is used for this one request:
    tensors are views of it, and its binary part is placed so that they can be.
    """

    __slots__ = ("_buffer", "_filled", "_length", "_offset")

    def __init__(self, head: Head, first: memoryview) -> None:
        assert head.length is not None
        self._length = head.length
        self._offset = head.binary_at
        self._filled = len(first)
        self._buffer = _to_buffer(min(self._length, max(_FIRST_BYTES, len(first))), self._offset)
        self._buffer[: self._filled] = first

    @property
    def is_complete(self) -> bool:
        """Whether all of it is here."""
        return self._filled == self._length

    def room(self) -> memoryview:
        """Return where the next bytes belong: never empty while the body is not complete, never beyond its end."""
        if self._filled == len(self._buffer):
            grown = _to_buffer(min(self._length, 2 * self._filled), self._offset)
            grown[: self._filled] = self._buffer
            self._buffer = grown
        return self._buffer[self._filled :]

    def add(self, count: int) -> None:
        """Note that so many bytes were written where `room` said."""
        self._filled += count

    def take(self) -> memoryview:
        """Return the body."""
        return self._buffer


class ChunkedBody:
    """
    A body in chunks.

    Args:
        head: The bytes of the head, from which the parser learns that there are chunks.
        limit: The most bytes to take.
    """

    __slots__ = ("_chunks", "_limit", "_parser", "_size", "has_more", "is_complete")

    def __init__(self, head: bytes, limit: int) -> None:
        import httptools

        self._chunks: list[bytes] = []
        self._size = 0
        self._limit = limit
        self.is_complete = False
        self.has_more = False
        """Whether something follows the body, which cannot be read any more: the connection has to end."""
        self._parser: Any = httptools.HttpRequestParser(self)
        self._parser.feed_data(head)

    def feed(self, data: memoryview) -> None:
        """
        Take what arrived.

        Raises:
            RequestRefused: It is not a chunk.
            RequestTooLarge: The body is larger than the limit.
        """
        import httptools

        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self.is_complete and self._size <= self._limit:
                raise RequestRefused(f"the request body is not in chunks: {error}") from error
            self.has_more = True
        if self._size > self._limit:
            raise too_large(self._limit)

    def take(self) -> memoryview:
        """Return the body."""
        return memoryview(b"".join(self._chunks))

    def on_message_begin(self) -> None:
        """Refuse to read what follows the body."""
        if self.is_complete:
            raise RequestRefused("there is more behind the body")

    def on_body(self, chunk: bytes) -> None:
        """Keep a part of the body."""
        self._size += len(chunk)
        if self._size > self._limit:
            raise too_large(self._limit)
        self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        """Note the end."""
        self.is_complete = True


def too_large(limit: int) -> RequestTooLarge:
    """Return the refusal of a body that is larger than the limit."""
    return RequestTooLarge(f"the request body is larger than the {limit} bytes this server takes")


def _to_buffer(size: int, offset: int) -> memoryview:
    """Return memory in which the byte at `offset` is aligned; its pages cost nothing until bytes arrive."""
    import numpy as np

    # numpy's own memory begins at such an address, which is dear to ask for. Where it does not, tensors are copied.
    pad = -offset % _ALIGNMENT
    return np.empty(pad + size, np.uint8).data[pad:]
