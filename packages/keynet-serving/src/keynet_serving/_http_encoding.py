"""`Content-Encoding`: bodies decompressed within limits, answers compressed as a client prefers."""

from __future__ import annotations

import zlib

from keynet_serving._errors import RequestRefused, Unsupported
from keynet_serving._http_body import too_large

_ZLIB_WINDOW = {"gzip": 31, "deflate": 15}
_LEVEL = 1


def decompress(body: memoryview, encoding: str, limit: int) -> memoryview:
    """
    Return a body with its `Content-Encoding` undone.

    Raises:
        Unsupported: The encoding is neither gzip nor deflate.
        RequestTooLarge: It grows beyond `limit`.
        RequestRefused: It is not what it says.
    """
    window = _ZLIB_WINDOW.get(encoding)
    if window is None:
        raise Unsupported("Unsupported compression type")
    stream = zlib.decompressobj(window)
    try:
        data = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestRefused(f"failed to decompress the request body: {error}") from error
    if len(data) > limit:
        raise too_large(limit)
    if not stream.eof:
        raise RequestRefused("failed to decompress the request body: it ends too early")
    return memoryview(data)


def compress(body: bytes, encoding: str) -> bytes:
    """Return a body compressed as `gzip` or `deflate`."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _ZLIB_WINDOW[encoding])
    return stream.compress(body) + stream.flush()


def choose_encoding(accepted: str) -> str | None:
    """Return the compression a client prefers of those it accepts, or None to send the body as it is."""
    best, best_weight = None, 0.0
    for part in accepted.split(","):
        name, _, parameters = part.strip().partition(";")
        weight = _to_weight(parameters)
        if name.strip().lower() in _ZLIB_WINDOW and weight > best_weight:
            best, best_weight = name.strip().lower(), weight
    return best


def _to_weight(parameters: str) -> float:
    text = parameters.strip().removeprefix("q=")
    try:
        return float(text) if text else 1.0
    except ValueError:
        return 0.0
