"""A full disk, whatever says so: the file system, SQLite, or a library that wraps either."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from keynet_train._errors import HomeFull

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

_FULL = {errno.ENOSPC, errno.EDQUOT}


def is_full(error: BaseException) -> bool:
    """Return whether an error, or what it came from, is that a disk has no room left."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, OSError) and each.errno in _FULL:
            return True
        if isinstance(each, sqlite3.Error) and getattr(each, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return True
        each = each.__cause__ or each.__context__
    return False


@contextmanager
def noticing_full_disk(home: Path, model: torch.nn.Module | None = None) -> Iterator[None]:
    """
    Say which disk is full when the block fails because one is.

    Raises:
        HomeFull: Instead of what the block raised.
    """
    try:
        yield
    except Exception as error:
        if is_full(error):
            raise HomeFull(f"no room left in {home}: {error}", model=model, hint=f"df -h {home}") from error
        raise
