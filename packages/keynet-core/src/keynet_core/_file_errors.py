"""What a file system refuses, as the errors of object stores."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from shlex import quote
from typing import TYPE_CHECKING

from keynet_core._errors import ObjectMissing, StoreError, StoreFull, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MISPLACED = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG}
"""What a directory tree answers to a key it has no place for: below another object, above one, or too long."""

_ELSEWHERE = "use another key: on a disk, nothing stands below an object, and a name has 255 bytes"


@contextmanager
def translating_files(key: str, where: Path) -> Iterator[None]:
    """Raise what the file system says of `key` in the directory `where` as StoreError."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissing(f"{where} has no object {key}", hint=f"ls -l {quote(str(where))}") from error
    except OSError as error:
        if error.errno in FULL:
            raise StoreFull(f"no room left in {where} for {key}", hint=f"df -h {quote(str(where))}") from error
        if error.errno in _MISPLACED:
            raise StoreError(f"{where} has no place for {key}: {error.strerror}", hint=_ELSEWHERE) from error
        told = f"{where} cannot be used for {key}: {error.strerror}"
        raise StoreUnavailable(told, hint=f"ls -ld {quote(str(where))}") from error


def refuse_no_file(source: Path, key: str) -> None:
    """
    Check that there is a file to be stored.

    Raises:
        StoreError: There is none.

    """
    if not source.is_file():
        raise StoreError(f"there is no file {source} to store as {key}", hint=f"ls -l {quote(str(source.parent))}")
