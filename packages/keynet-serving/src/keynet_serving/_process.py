"""What a process that only serves may ask of its C library and its collector; a library must not."""

from __future__ import annotations

import ctypes
import gc

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_BYTES = 64 << 20


def keep_freed_memory() -> None:
    """
    Let glibc keep freed memory for the next request.

    It otherwise returns every body and tensor above 128 KiB to the kernel and faults it in again page by page, which
    costs more than the inference. Where the C library has no `mallopt`, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def settle() -> None:
    """Take what start-up made out of the collector's sight: it will live as long as the process."""
    gc.collect()
    gc.freeze()
