"""What the outbox of a home holds, as values for people and programs: what waits, what was refused, why, what next."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from keynet_train._errors import EntryUnknown
from keynet_train._publish import to_command

if TYPE_CHECKING:
    from pathlib import Path

    from keynet_core import Entry, EventInvalid, Outbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One entry of the outbox."""

    entry: str
    state: Literal["waiting", "refused", "unreadable", "announced"]
    model: str | None = None
    version: str | None = None
    digest: str | None = None
    event_id: str | None = None
    run_id: str | None = None
    store: str | None = None
    since: str
    age_s: float
    size_bytes: int
    directory: str
    reason: dict[str, str] | None = None
    """Code, message and hint of what stands in its way."""

    next: str | None = None
    """The next command."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def items(outbox: Outbox) -> list[Item]:
    """Return what waits and what was refused, oldest first."""
    waiting = [_readable(each, "waiting") for each in outbox.entries("ready")]
    refused = [_readable(each, "refused") for each in outbox.entries("refused")]
    broken = [_unreadable(*each) for state in ("ready", "refused") for each in outbox.unreadable(state)]
    return sorted((*waiting, *refused, *broken), key=lambda each: each.entry)


def find(outbox: Outbox, name: str) -> Item:
    """
    Return the one entry whose name is, begins or ends with `name`; also one that was announced.

    Raises:
        EntryUnknown: There is none, or more than one.
    """
    announced = [_readable(each, "announced") for each in outbox.entries("done")]
    everything = [*items(outbox), *announced]
    found = [each for each in everything if name and each.entry.startswith(name)]
    found += [each for each in everything if name and each.entry.endswith(name) and each not in found]
    if len(found) == 1:
        return found[0]
    said = f"has no entry {name!r}" if not found else f"has {len(found)} entries that {name!r} may mean"
    raise EntryUnknown(f"{outbox.root} {said}", hint=to_command(outbox.root.parent, "list"))


def _readable(entry: Entry, state: Literal["waiting", "refused", "announced"]) -> Item:
    data = {key: value for key, value in entry.event.data.items() if isinstance(value, str)}
    home = entry.directory.parents[2]
    following = {"waiting": ("flush",), "refused": ("flush", "--refused")}.get(state)
    return Item(
        entry=entry.id,
        state=state,
        model=entry.event.subject,
        version=data.get("model_version"),
        digest=data.get("digest"),
        event_id=entry.event.id,
        run_id=data.get("run_id"),
        store=data.get("store"),
        since=entry.event.time.isoformat(),
        age_s=_age_s(entry.event.time),
        size_bytes=_size_of(entry.directory),
        directory=str(entry.directory),
        reason=entry.last_error(),
        next=to_command(home, *following) if following else None,
    )


def _unreadable(directory: Path, error: EventInvalid) -> Item:
    try:
        since = datetime.fromtimestamp(directory.stat().st_mtime, UTC)
    except FileNotFoundError:
        since = datetime.now(UTC)  # another process has just taken it away
    return Item(
        entry=directory.name,
        state="unreadable",
        since=since.isoformat(),
        age_s=_age_s(since),
        size_bytes=_size_of(directory),
        directory=str(directory),
        reason=error.to_dict(),
        next=f"ls -l {directory}",
    )


def _age_s(since: datetime) -> float:
    return round((datetime.now(UTC) - since).total_seconds(), 1)


def _size_of(directory: Path) -> int:
    """Return how many bytes a directory holds; what another process removes meanwhile counts as nothing."""
    size = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                size += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - a name that may be no text
            except FileNotFoundError:
                continue
    return size
