"""
Outbox: a directory spool. What enters it is not lost by this process, and leaves it only when it was handed over.

staging/<entry>/package/           being built; its builder holds <entry>.lock, and when nobody does it is removed
ready/<entry>/{event.json, package/?, last-error.json?}
done/<entry>/event.json            handed over; the package is in the store
refused/<entry>/...                the receiver will not have it, or nobody can read it; kept whole, with the reason
"""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keynet_core._durable import make_directory, remove_tree, sync_directory, sync_tree, write_durably
from keynet_core._errors import (
    EventInvalid,
    EventRefused,
    EventUndelivered,
    KeynetError,
    LockTimeout,
    PackageInvalid,
)
from keynet_core._events import Event
from keynet_core._locks import locked
from keynet_core._package import ModelPackage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_KEPT_DONE = 200
_STAGE_TIMEOUT_S = 60.0
_PACKAGE, _EVENT, _ERROR = "package", "event.json", "last-error.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Something that waits, or waited, to be handed over."""

    directory: Path
    event: Event

    @property
    def id(self) -> str:
        """The entry's name in the outbox."""
        return self.directory.name

    def package(self) -> ModelPackage | None:
        """
        Return the package that goes with the event, or None when the event goes alone.

        Raises:
            PackageInvalid: It has lost its manifest.

        """
        directory = self.directory / _PACKAGE
        return ModelPackage.open(directory) if directory.is_dir() else None

    def last_error(self) -> dict[str, str] | None:
        """Return code, message and hint of the last failed attempt, or None."""
        try:
            told: dict[str, str] = json.loads((self.directory / _ERROR).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return {"code": KeynetError.code, "message": f"{self.directory / _ERROR} cannot be read"}
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushReport:
    """What a flush did: the events handed over, and those that still wait or were refused, each with the reason."""

    delivered: tuple[Event, ...]
    waiting: tuple[tuple[Event, KeynetError], ...]
    refused: tuple[tuple[Event, KeynetError], ...]
    unreadable: tuple[tuple[str, KeynetError], ...] = ()
    """Entries without an event that can be read, by name: they are in `refused/` now."""


class Outbox:
    """The spool below one directory. Any number of processes may add to it; one at a time flushes it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """
        Yield an empty directory to build a package in; it is gone when the block ends, unless it was added.

        What builders that were killed left behind is removed first; what a living one builds is not touched.
        """
        staged = self.root / "staging" / f"{time.time_ns():020d}-{os.urandom(4).hex()}"
        lock = _lock_of(staged)
        with ExitStack() as held:
            # Between its making and its taking a lock looks abandoned, so nobody may look then.
            with locked(self.root / "staging.lock", timeout_s=_STAGE_TIMEOUT_S):
                self._remove_abandoned()
                held.enter_context(locked(lock, timeout_s=0.0))
            try:
                make_directory(staged / _PACKAGE)
                yield staged / _PACKAGE
            finally:
                remove_tree(staged)
                lock.unlink(missing_ok=True)

    def add(self, event: Event, package: Path | None = None) -> Entry:
        """
        Take an event, with the staged package it announces, and return the entry once it is safe on disk.

        Args:
            event: What is to be handed over.
            package: The directory that `stage` yielded, with a package in it.

        Raises:
            EventInvalid: The event cannot be written.
            PackageInvalid: There is no package in the directory.

        """
        if package is None:
            with self.stage() as staged:
                staged.rmdir()
                return self._add(event, staged.parent)
        ModelPackage.open(package)
        return self._add(event, package.parent)

    def _add(self, event: Event, staged: Path) -> Entry:
        write_durably(staged / _EVENT, event.to_json())
        sync_tree(staged)
        return Entry(directory=self._move(staged, "ready"), event=event)

    def amend(self, entry: Entry, event: Event) -> bool:
        """
        Replace the event of an entry that still waits; return False when it was handed over already.

        Inside the block of `stage` it cannot have been.
        """
        with nullcontext() if self._is_held(entry.directory) else self._lock(timeout_s=5.0):
            if not entry.directory.exists():
                return False
            write_durably(entry.directory / _EVENT, event.to_json())
            return True

    def entries(self, state: str = "ready") -> list[Entry]:
        """Return what is `ready`, `done` or `refused` and can be read, oldest first."""
        return self._read(state)[0]

    def unreadable(self, state: str = "ready") -> list[tuple[Path, EventInvalid]]:
        """Return the directories of a state that hold no event that can be read, each with the reason."""
        return self._read(state)[1]

    def readmit(self, entry: Entry) -> Entry:
        """
        Have an entry that was refused wait again, and return it: what stood in its way may have been mended.

        Raises:
            LockTimeout: Another process is flushing.

        """
        with self._lock(timeout_s=5.0):
            if not entry.directory.exists():  # another process was quicker
                return entry
            return Entry(directory=self._move(entry.directory, "ready"), event=entry.event)

    def _read(self, state: str) -> tuple[list[Entry], list[tuple[Path, EventInvalid]]]:
        found, unreadable = [], []
        for directory in self._directories(state):
            try:
                found.append(Entry(directory=directory, event=Event.from_json((directory / _EVENT).read_bytes())))
            except (OSError, EventInvalid) as error:
                # Gone is no trouble: it was handed over between the listing and the reading.
                if directory.exists():
                    unreadable.append((directory, EventInvalid(f"{directory / _EVENT} cannot be read: {error}")))
        return found, unreadable

    def _directories(self, state: str) -> list[Path]:
        return sorted(each for each in (self.root / state).glob("*") if each.is_dir())

    def flush(
        self,
        deliver: Callable[[Entry], None],
        *,
        timeout_s: float = 60.0,
        lock_timeout_s: float | None = None,
        only: Callable[[Entry], bool] | None = None,
    ) -> FlushReport:
        """
        Hand over what waits, oldest first; what fails stays, with the reason beside it.

        An entry whose builder is still inside `stage` is not looked at: it may be amended yet.

        Args:
            deliver: Hands one entry over. It must be idempotent: killed between its end and the rename, it is called
                again.
            timeout_s: When no further entry is begun.
            lock_timeout_s: How long another process may flush before it is this one's turn; default: `timeout_s`.
            only: Whether an entry is to be handed over now; what it declines stays as it is.

        Raises:
            LockTimeout: Another process was flushing for longer than `lock_timeout_s`.

        """
        delivered: list[Event] = []
        waiting: list[tuple[Event, KeynetError]] = []
        refused: list[tuple[Event, KeynetError]] = []
        deadline = time.monotonic() + timeout_s
        with self._lock(timeout_s if lock_timeout_s is None else lock_timeout_s):
            # Which builders are still at it is asked before their events are read: one may amend and leave in between.
            held = {each.name for each in self._directories("ready") if self._is_held(each)}
            entries, unreadable = self._read("ready")
            for directory, reason in unreadable:
                with suppress(OSError):  # another user's: it stays, and the others have their turn
                    self._refuse(directory, reason)
            for entry in entries:
                if entry.id in held or self._is_held(entry.directory) or not (only is None or only(entry)):
                    continue
                if time.monotonic() > deadline:
                    # Not noted beside the entry: why it waits is in the error that is there.
                    waiting.append((entry.event, EventUndelivered(f"no time left for {entry.event.subject}")))
                    continue
                error = self._settle(entry, _attempt(deliver, entry))
                if error is None:
                    delivered.append(entry.event)
                elif entry.directory.exists():
                    waiting.append((entry.event, error))
                else:
                    refused.append((entry.event, error))
            self._forget()
        return FlushReport(
            delivered=tuple(delivered),
            waiting=tuple(waiting),
            refused=tuple(refused),
            unreadable=tuple((directory.name, reason) for directory, reason in unreadable),
        )

    def _is_held(self, directory: Path) -> bool:
        lock = _lock_of(self.root / "staging" / directory.name)
        if not lock.exists():
            return False
        try:
            with locked(lock, timeout_s=0.0):
                return False
        except LockTimeout:
            return True

    @contextmanager
    def _lock(self, timeout_s: float) -> Iterator[None]:
        with locked(self.root / "flush.lock", timeout_s=timeout_s):
            yield

    def _settle(self, entry: Entry, error: KeynetError | None) -> KeynetError | None:
        """Move an entry to where its attempt leads, and return what stands in its way, or None."""
        try:
            if error is None:
                self._finish(entry)
            elif isinstance(error, EventRefused | EventInvalid | PackageInvalid):
                self._refuse(entry.directory, error)
            else:
                _note(entry.directory, error)
        except OSError as trouble:
            # Moved, and its new name perhaps not yet on the disk: after a crash it would be handed over once more.
            if entry.directory.exists():
                return EventUndelivered(f"outbox entry {entry.id} cannot be moved: {trouble}")
        return error

    def _refuse(self, directory: Path, error: KeynetError) -> None:
        _note(directory, error)
        self._move(directory, "refused")

    def _finish(self, entry: Entry) -> None:
        (entry.directory / _ERROR).unlink(missing_ok=True)
        self._move(entry.directory, "done")

    def _forget(self) -> None:
        """Remove the packages of what was handed over, also by a flush that was killed, and the oldest entries."""
        done = self._directories("done")
        for each in (*done[:-_KEPT_DONE], *(each / _PACKAGE for each in done[-_KEPT_DONE:])):
            with suppress(OSError):  # another user's: the next flush tries again, and this one has done its work
                remove_tree(each)

    def _move(self, directory: Path, state: str) -> Path:
        target = make_directory(self.root / state) / directory.name
        directory.rename(target)
        sync_directory(target.parent)
        sync_directory(directory.parent)
        return target

    def _remove_abandoned(self) -> None:
        names = {each.name.removesuffix(".lock") for each in (self.root / "staging").glob("*")}
        for staged in (self.root / "staging" / name for name in names):
            lock = _lock_of(staged)
            # A builder in another process, or in another thread of this one, holds its lock. What cannot be removed
            # now is tried again by the next builder.
            with suppress(LockTimeout, OSError), locked(lock, timeout_s=0.0):
                remove_tree(staged)
                lock.unlink(missing_ok=True)


def _attempt(deliver: Callable[[Entry], None], entry: Entry) -> KeynetError | None:
    """Hand one entry over; return what stands in the way, or None."""
    try:
        deliver(entry)
    except KeynetError as error:
        return error
    except OSError as error:
        return EventUndelivered(f"outbox entry {entry.id} cannot be handed over: {error}")
    return None


def _note(directory: Path, error: KeynetError) -> None:
    # On a full disk the reason is in the report only, and the other entries still have their turn.
    with suppress(OSError):
        write_durably(directory / _ERROR, json.dumps(error.to_dict()).encode())


def _lock_of(staged: Path) -> Path:
    return staged.with_name(f"{staged.name}.lock")
