"""
Regions of shared memory in `/dev/shm`, which a server of this machine maps by their name.

A region is readable by its owner alone and has a name nobody can guess. Whoever made it holds its lock for as long as
it lives: a region whose lock is free was left by a process that was killed.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from keynet_inference._client import Slice

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

DIRECTORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is on Linux
PREFIX = "keynet-shm-"

_ALIGNMENT_BYTES = 64
_ROUNDED_BYTES = 1 << 20
_TRIES = 5


class Region:
    """Memory that another process can map by its name, until it is closed."""

    def __init__(self, name: str, descriptor: int, memory: mmap.mmap) -> None:
        self.name = name
        self._descriptor = descriptor
        self._memory = memory
        self._pid = os.getpid()
        self._is_open = True

    @classmethod
    def create(cls, size_bytes: int) -> Self:
        """
        Make a region of at least this size.

        Raises:
            OSError: There is no shared memory here, or no room in it.

        """
        rounded = -(-size_bytes // _ROUNDED_BYTES) * _ROUNDED_BYTES
        for _ in range(_TRIES):
            name = f"{PREFIX}{os.getpid()}-{os.urandom(16).hex()}"
            descriptor = os.open(DIRECTORY / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                if not _is_ours(descriptor):
                    os.close(descriptor)
                    continue
                # Taken now: written to where no room is left, a mapped page ends the process.
                os.posix_fallocate(descriptor, 0, rounded)
                return cls(name, descriptor, mmap.mmap(descriptor, rounded))
            except BaseException:
                _unlink(name)
                os.close(descriptor)
                raise
        raise OSError("each new region was taken for one that was left behind")

    @property
    def size_bytes(self) -> int:
        """How much it holds."""
        return len(self._memory)

    def place(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Slice]:
        """Copy arrays in, one behind the other; `size_of` says what they take."""
        slices: dict[str, Slice] = {}
        at = 0
        for name, array in arrays.items():
            np.copyto(np.ndarray(array.shape, array.dtype, buffer=self._memory, offset=at), array)
            slices[name] = Slice(self.name, at, array.nbytes)
            at += _aligned(array.nbytes)
        return slices

    def unlink(self) -> None:
        """Remove the name, if it is this process that gave it."""
        if self._pid == os.getpid():
            _unlink(self.name)

    def close(self) -> None:
        """Remove the name and the mapping; the memory is free once the server's mapping is gone too."""
        if self._is_open:
            self._is_open = False
            self.unlink()
            self._memory.close()
            os.close(self._descriptor)


def size_of(arrays: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return how large a region must be that holds these arrays."""
    return sum(_aligned(array.nbytes) for array in arrays.values())


def sweep() -> None:
    """Remove the regions of this user that processes left behind which were killed."""
    if not DIRECTORY.is_dir():
        return
    for path in DIRECTORY.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another's, or swept by another process in this moment
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if _is_ours(descriptor) and os.fstat(descriptor).st_uid == os.geteuid():
                    path.unlink()
            finally:
                os.close(descriptor)


def is_there(name: str) -> bool:
    """Whether a region has not been removed."""
    return (DIRECTORY / name).exists()


def _is_ours(descriptor: int) -> bool:
    """Take the lock of a region where nobody has it, and say whether the region is still there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(descriptor).st_nlink > 0


def _unlink(name: str) -> None:
    with suppress(FileNotFoundError):
        (DIRECTORY / name).unlink()


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
