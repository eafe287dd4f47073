"""
Messages of protobuf with their large fields beside them, not inside.

protobuf copies a field of bytes into a message, and out of it, and again where it is written or read. Joined to the
written message, and cut out of the one that came, a tensor of some megabytes is copied once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


def join(message: bytes, number: int, values: Sequence[bytes | memoryview]) -> bytes:
    """Return a written message with the repeated field of bytes `number` added."""
    tag = _to_varint(number << 3 | _BYTES)
    pieces: list[bytes | memoryview] = [message]
    for value in values:
        pieces += (tag, _to_varint(len(value)), value)
    return b"".join(pieces)


def split(message: bytes, number: int) -> tuple[bytes, list[memoryview]]:
    """
    Return a message without its field of bytes `number`, and that field's values.

    It costs some microseconds per field, which is more than copying what is small.

    Raises:
        ValueError: It is no message of protobuf.

    """
    view = memoryview(message)
    others: list[memoryview] = []
    values: list[memoryview] = []
    at = 0
    while at < len(view):
        tag, start = _read_varint(view, at)
        end = _end_of(view, tag & 7, start)
        if tag == (number << 3 | _BYTES):
            values.append(view[_read_varint(view, start)[1] : end])
        else:
            others.append(view[at:end])
        at = end
    return b"".join(others), values


def _end_of(view: memoryview, kind: int, start: int) -> int:
    """Return where the field ends whose value begins at `start`."""
    if kind == _VARINT:
        end = _read_varint(view, start)[1]
    elif kind == _BYTES:
        length, begin = _read_varint(view, start)
        end = begin + length
    elif kind in {_FIXED_64, _FIXED_32}:
        end = start + (8 if kind == _FIXED_64 else 4)
    else:
        raise ValueError(f"protobuf has no field of kind {kind}")
    if end > len(view):
        raise ValueError("the message ends inside a field")
    return end


def _to_varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return a number, and where it ends."""
    number = 0
    for place, byte in enumerate(view[at : at + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise ValueError("the message ends inside a number")
