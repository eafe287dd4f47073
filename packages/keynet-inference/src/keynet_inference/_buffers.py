"""What is handed over to be stored, as bytes: the whole of it, wherever it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keynet_inference._errors import SourceRefused


def read_buffer(buffer: Any, max_bytes: int) -> bytes:
    """
    Return the whole of a buffer, or a little more than `max_bytes` of it.

    Raises:
        SourceRefused: It is a path that cannot be read, or nothing that holds bytes.

    """
    if isinstance(buffer, str):
        return buffer.encode()
    if isinstance(buffer, bytes):
        return buffer
    if isinstance(buffer, bytearray | memoryview):
        return bytes(buffer)
    if isinstance(buffer, Path):
        return _read_path(buffer, max_bytes)
    if not hasattr(buffer, "read"):
        raise SourceRefused(
            f"storage puts bytes, text, a file or a path, not {type(buffer).__qualname__}",
            hint="write it into a BytesIO first: image.save(buffer, format='PNG'), numpy.save(buffer, array)",
        )
    return _read_file(buffer, max_bytes)


def _read_path(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise SourceRefused(f"storage cannot put {path}: {error.strerror or error}") from error


def _read_file(file: Any, max_bytes: int) -> bytes:
    if not _can_seek(file):
        return _read_to_end(file, max_bytes)
    stood = file.tell()
    file.seek(0)
    try:
        return _read_to_end(file, max_bytes)
    finally:
        file.seek(stood)


def _can_seek(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if seekable is not None else hasattr(file, "seek") and hasattr(file, "tell")


def _read_to_end(file: Any, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    left = max_bytes + 1
    # A pipe or socket without a buffer returns what is there now, and the end is where nothing comes any more.
    while left > 0 and (piece := _read_piece(file, left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _read_piece(file: Any, size: int) -> bytes:
    data: bytes | str | None = file.read(size)
    if data is None:
        raise SourceRefused("storage puts a file to its end, and this one does not wait for it: it is non-blocking")
    return data.encode() if isinstance(data, str) else data
