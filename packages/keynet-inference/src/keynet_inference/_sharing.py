"""
SharingClient: large inputs through shared memory, to a model server of this machine that can map it.

Where it cannot be used, inputs are sent over the connection as ever, and the caller is told: by a warning, once, and
by `TritonPlugin.shared_memory_refusal`.
"""

from __future__ import annotations

import re
import sys
import threading
import warnings
import weakref
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from keynet_inference._errors import InferenceError, SharedMemoryUnused, TritonUnavailable
from keynet_inference._regions import RegionPool
from keynet_inference._shared_memory import size_of, sweep

if TYPE_CHECKING:
    import numpy.typing as npt

    from keynet_inference._client import Arrays, ModelClient, RegionServer
    from keynet_inference._deadlines import Deadline
    from keynet_inference._model import Asked, Model

MIN_BYTES = 256 * 1024
"""Smaller inputs are sent faster than they are shared."""

_EXTENSION = "system_shared_memory"
_PROTECTING = (2, 50)
"""Since then Triton does not let go of a region that a request still reads; before, it would crash."""

_UNKNOWN = re.compile(r"unable to find shared memory region", re.IGNORECASE)


class SharingClient:
    """Asks a model server; a request's large inputs lie in a region that no other request uses meanwhile."""

    def __init__(self, client: ModelClient, url: str) -> None:
        # One that cannot map regions is never asked to: it is not near.
        inner = self._inner = cast("RegionServer", client)
        self._regions = RegionPool(inner)
        self._starting = threading.Lock()
        self._is_started = False
        self.refusal: str | None = None
        self._end = weakref.finalize(self, self._regions.close)
        # A child of multiprocessing ends without what else runs at exit.
        if (multiprocessing := sys.modules.get("multiprocessing.util")) is not None:
            multiprocessing.Finalize(self, self._end, exitpriority=0)
        if not _is_near(url):
            self._refuse(f"{url} is no server at a loopback address")

    def describe(self, asked: Asked, deadline: Deadline) -> Model:
        """Return what a model takes and gives."""
        return self._inner.describe(asked, deadline)

    def ready_models(self, deadline: Deadline) -> tuple[str, ...]:
        """Return the names of the models that are ready."""
        return self._inner.ready_models(deadline)

    def infer(self, model: Model, inputs: Arrays, deadline: Deadline) -> dict[str, npt.NDArray[Any]]:
        """Return what a model gives."""
        large = {name: each for name, each in inputs.items() if each.nbytes >= MIN_BYTES and each.dtype.kind != "O"}
        if not large or not self._can_share(deadline):
            return self._inner.infer(model, inputs, deadline)
        try:
            return self._infer_shared(model, inputs, large, deadline)
        except InferenceError as error:
            if not _UNKNOWN.search(error.message):
                raise
        # The server was started again, and has none of the regions it had; another thread may yet give one back.
        self._regions.drop_idle()
        return self._infer_shared(model, inputs, large, deadline, is_new=True)

    def close(self) -> None:
        """Remove every region, and give back connections."""
        self._end()
        self._inner.close()

    def _infer_shared(
        self, model: Model, inputs: Arrays, large: Arrays, deadline: Deadline, *, is_new: bool = False
    ) -> dict[str, npt.NDArray[Any]]:
        try:
            region = self._regions.take(size_of(large), deadline, is_new=is_new)
        except TritonUnavailable:  # before OSError, which a time-out is too
            raise
        except OSError as error:
            self._refuse(f"none can be had here: {error.strerror or error}")
        except InferenceError as error:
            self._refuse(error.message)
        else:
            with self._regions.lending(region):
                return self._inner.infer(model, inputs, deadline, region.place(large))
        return self._inner.infer(model, inputs, deadline)

    def _can_share(self, deadline: Deadline) -> bool:
        """Whether the server can map shared memory, as far as is known; it is asked once."""
        if self._is_started or self.refusal is not None:
            return self.refusal is None
        with self._starting:
            if not self._is_started and self.refusal is None:
                self._start(deadline)
                self._is_started = True
        return self.refusal is None

    def _start(self, deadline: Deadline) -> None:
        try:
            told = self._inner.describe_server(deadline)
        except TritonUnavailable:
            raise
        except InferenceError as error:
            self._refuse(error.message)
            return
        if _EXTENSION not in told.extensions:
            self._refuse(f"the server, version {told.version or 'unknown'}, does not offer {_EXTENSION}")
            return
        sweep()
        self._regions.is_protected = _to_numbers(told.version) >= _PROTECTING

    def _refuse(self, reason: str) -> None:
        self.refusal = reason
        warnings.warn(f"shared memory is not used: {reason}", SharedMemoryUnused, stacklevel=2)


def _is_near(url: str) -> bool:
    """Whether a server runs on this machine, as far as its address tells, and not in this process."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        return parts.scheme != "file" and ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _to_numbers(version: str) -> tuple[int, ...]:
    """Return `(2, 51)` for `2.51.0`, and nothing for what is no version."""
    found = re.match(r"([0-9]+)\.([0-9]+)", version)
    return tuple(map(int, found.groups())) if found else ()
