"""Write, rename and copy so that a crash leaves the old or the new, never half of either."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PART = ".part"
"""How the name of a file that is being written ends; it begins with a dot."""

_STAGED = re.compile(r"\..{1,40}\.[0-9a-f]{12}" + re.escape(PART), re.DOTALL)
_CHUNK_BYTES = 256 << 10


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Ask the disk to keep what a file holds."""
    _sync(path)


def sync_directory(path: Path) -> None:
    """Ask the disk to keep which names a directory holds."""
    _sync(path)


def sync_tree(root: Path) -> None:
    """Ask the disk to keep every file below `root`, every directory, and `root` itself."""
    for directory, _, files in os.walk(root, topdown=False):
        for name in files:
            sync_file(Path(directory, name))
        sync_directory(Path(directory))


def make_directory(path: Path) -> Path:
    """Create a directory with those above it, ask the disk to keep each new name, and return it."""
    created = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in reversed(created):
        sync_directory(each.parent)
    return path


def write_durably(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Replace `path` by `data`; a reader, and a crash, sees the old bytes or the new."""
    with replacing(path, mode=mode) as staged:
        staged.write_bytes(data)


def copy_durably(source: Path, target: Path) -> str:
    """Replace `target` by a copy of `source`, and return the SHA-256 of the bytes that were copied."""
    with replacing(target) as staged:
        return copy_bytes(source, staged)


def copy_bytes(source: Path, target: Path, advance: Callable[[int], None] = lambda _count: None) -> str:
    """Fill `target` with the bytes of `source`, tell `advance` of each few, and return the SHA-256 of them."""
    import hashlib

    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
            advance(len(chunk))
    return digest.hexdigest()


@contextmanager
def replacing(path: Path, *, mode: int | None = None) -> Iterator[Path]:
    """
    Yield a file beside `path` to write into; it takes the place of `path` when the block ends without an error.

    Args:
        path: What is replaced.
        mode: The permissions it gets, and until then it is nobody else's. Default: what the umask leaves.

    """
    make_directory(path.parent)
    staged, handle = _stage(path, mode)
    try:
        yield staged
        if mode is not None:
            staged.chmod(mode)
        sync_file(staged)
        staged.replace(path)
        sync_directory(path.parent)
    finally:
        staged.unlink(missing_ok=True)
        os.close(handle)


def sweep_parts(directory: Path) -> None:
    """Remove the unfinished files of writers that were killed; what a living one writes is locked, and stays."""
    parts: list[Path] = []
    with suppress(OSError):  # it is not there, or may be written into and not be listed
        parts = [each for each in directory.iterdir() if _STAGED.fullmatch(each.name)]
    for part in parts:
        # Another sweeper was faster, it belongs to somebody else, or the file system has no locks: let it be.
        with suppress(OSError):
            handle = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()
            finally:
                os.close(handle)


def _stage(path: Path, mode: int | None) -> tuple[Path, int]:
    """Create an empty file beside `path`, and hold its lock: as long as its writer lives, nobody sweeps it away."""
    while True:
        # Part of the name only: a long one, in letters of several bytes, would leave no room for the rest.
        staged = path.with_name(f".{path.name[:40]}.{os.urandom(6).hex()}{PART}")
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        handle = os.open(staged, flags, 0o666 if mode is None else 0o600)
        try:
            with suppress(OSError):  # a file system without locks: it is never swept either
                fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink:
                return staged, handle
        except BaseException:
            staged.unlink(missing_ok=True)
            os.close(handle)
            raise
        os.close(handle)  # swept between its creation and its lock


def make_private_directory(path: Path) -> Path:
    """Create a directory that only its owner can enter, and return it; one that is there keeps the mode it has."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def remove_tree(path: Path) -> None:
    """Remove a directory and everything in it; one that is not there is removed already."""
    import shutil

    while path.exists():
        # Another process that removes the same tree takes names away under our hands: look again.
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
