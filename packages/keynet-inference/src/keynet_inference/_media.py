"""What bytes are, by how they begin: the ending of a generated key, and with it the content type a store gives them."""

from __future__ import annotations

import json
from codecs import getincrementaldecoder

_BEGINNINGS = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"%PDF-", "pdf"),
    (b"\x93NUMPY", "npy"),
    (b"PK\x03\x04", "zip"),
    (b"\x1f\x8b", "gz"),
    (b"PAR1", "parquet"),
    (b"II*\x00", "tif"),
    (b"MM\x00*", "tif"),
)
_RIFF = {b"WEBP": "webp", b"WAVE": "wav", b"AVI ": "avi"}
_TEXT_BYTES = 1 << 20
"""Longer ones are called text by their beginning, and not parsed."""


def guess_ending(data: bytes) -> str:
    """Return the usual ending of a file with these bytes, without the dot; `bin` where they tell nothing."""
    for beginning, ending in _BEGINNINGS:
        if data.startswith(beginning):
            return ending
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12], "bin")
    if data[4:8] == b"ftyp":
        return "mp4"
    return _guess_text(data)


def _guess_text(data: bytes) -> str:
    is_whole = len(data) <= _TEXT_BYTES
    try:
        text = data.decode() if is_whole else _cut(data)
    except UnicodeDecodeError:
        return "bin"
    if "\x00" in text:
        return "bin"
    return "json" if is_whole and _is_json(text) else "txt"


def _cut(data: bytes) -> str:
    """Return the beginning of a text; its last letter may have been cut apart, anything before it may not."""
    return getincrementaldecoder("utf-8")().decode(data[:_TEXT_BYTES])


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
