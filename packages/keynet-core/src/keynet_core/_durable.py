"""Write, rename and copy so that a crash leaves the old or the new, never half of either."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PART = ".part"
"""How the name of a file that is being written ends; it begins with a dot."""

_CHUNK_BYTES = 1 << 20


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


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data`; a reader, and a crash, sees the old bytes or the new."""
    with replacing(path, mode=mode) as staged:
        staged.write_bytes(data)


def copy_durably(source: Path, target: Path) -> str:
    """Replace `target` by a copy of `source`, and return the SHA-256 of the bytes that were copied."""
    import hashlib

    digest = hashlib.sha256()
    with replacing(target) as staged, source.open("rb") as reader, staged.open("wb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Yield a file beside `path` to write into; it takes the place of `path` when the block ends without an error."""
    make_directory(path.parent)
    # Part of the name only: a long one, in letters of several bytes, would leave no room for the rest.
    staged = path.with_name(f".{path.name[:40]}.{os.urandom(6).hex()}{PART}")
    os.close(os.open(staged, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    try:
        yield staged
        staged.chmod(mode)
        sync_file(staged)
        staged.replace(path)
        sync_directory(path.parent)
    finally:
        staged.unlink(missing_ok=True)


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
