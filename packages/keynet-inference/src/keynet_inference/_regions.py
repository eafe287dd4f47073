"""RegionPool: the regions of shared memory that a model server has mapped for one client."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from keynet_inference._deadlines import Deadline
from keynet_inference._errors import InferenceError, TritonUnavailable
from keynet_inference._shared_memory import PREFIX, Region, is_there

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from keynet_inference._client import RegionServer

_END_TIMEOUT_S = 2.0
_PAUSE_S = 0.05


class RegionPool:
    """
    Regions that were answered for, which are used again, and such that no answer came for.

    Of these the server may still be reading: they are not written to again, and go as soon as it lets go of them.
    """

    def __init__(self, server: RegionServer) -> None:
        self.is_protected = False
        """Whether the server refuses to let go of a region that it is still reading, where others would crash."""
        self._server = server
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._all: set[Region] = set()
        self._idle: list[Region] = []
        self._unanswered: list[Region] = []
        self._has_swept = False
        self._is_closed = False

    def take(self, size_bytes: int, deadline: Deadline, *, is_new: bool = False) -> Region:
        """
        Return a region that is large enough and used by nobody else, for `lending`; if asked, one never used before.

        Raises:
            OSError: No more memory can be had.
            InferenceError: The server does not map it.

        """
        idle = None if is_new else self._take_idle(size_bytes)
        return idle or self._create(size_bytes, deadline)

    @contextmanager
    def lending(self, region: Region) -> Iterator[None]:
        """Keep a region for the next request if this one is answered, whatever the answer is."""
        is_answered = False
        try:
            yield
            is_answered = True
        except InferenceError as error:
            is_answered = not isinstance(error, TritonUnavailable)
            raise
        finally:
            if is_answered or self.is_protected:
                with self._lock:
                    (self._idle if is_answered else self._unanswered).append(region)
            else:
                self._close(region)  # and the server keeps it: letting go of it now could end the server
            if self._is_closed:
                self.close()

    def drop_idle(self) -> None:
        """Remove the regions that a server which was started again does not have any more."""
        with self._lock:
            dropped, self._idle = self._idle, []
        for each in dropped:
            self._close(each)

    def close(self) -> None:
        """Remove every region; one that a request is using loses its name now, and the rest once that ends."""
        if os.getpid() != self._pid:
            return  # a forked child: they are its parent's
        self._is_closed = True
        deadline = Deadline(_END_TIMEOUT_S)
        with self._lock:
            removable = self._idle + self._unanswered
            self._idle, self._unanswered = [], []
        self._remove(removable, deadline)
        while self._unanswered and deadline.is_open:
            time.sleep(_PAUSE_S)
            self._remove(self._take_unanswered(), deadline)
        for each in list(self._all):
            each.unlink()

    def _take_idle(self, size_bytes: int) -> Region | None:
        with self._lock:
            fitting = [each for each in self._idle if each.size_bytes >= size_bytes]
            if not fitting:
                return None
            region = min(fitting, key=lambda each: each.size_bytes)
            self._idle.remove(region)
            return region

    def _create(self, size_bytes: int, deadline: Deadline) -> Region:
        """Return a new region in the place of one that is too small, and of those nobody reads any more."""
        with self._lock:
            replaced, self._idle = self._idle[:1], self._idle[1:]
        self._remove(replaced + self._take_unanswered(), deadline)
        region = Region.create(size_bytes)
        self._all.add(region)
        try:
            self._server.register_region(region.name, region.size_bytes, deadline)
        except BaseException:
            self._close(region)
            raise
        self._sweep_server(deadline)
        return region

    def _sweep_server(self, deadline: Deadline) -> None:
        """
        Have the server let go of regions whose processes were killed: it maps them, but their names are gone.

        It has just mapped one of ours, so it looks for names where we do.
        """
        if self._has_swept or not self.is_protected:
            return
        self._has_swept = True
        with suppress(InferenceError):
            for name in self._server.region_names(deadline):
                if name.startswith(PREFIX) and not is_there(name):
                    self._server.unregister_region(name, deadline)

    def _take_unanswered(self) -> list[Region]:
        with self._lock:
            taken, self._unanswered = self._unanswered, []
        return taken

    def _remove(self, regions: Iterable[Region], deadline: Deadline) -> None:
        """Have the server let go of regions, and close them; those that it is still reading are kept."""
        for region in regions:
            try:
                self._server.unregister_region(region.name, deadline)
            except TritonUnavailable:  # it is away, or will be told by whoever sweeps next
                self._close(region)
            except InferenceError:
                with self._lock:
                    self._unanswered.append(region)
            else:
                self._close(region)

    def _close(self, region: Region) -> None:
        self._all.discard(region)
        region.close()
