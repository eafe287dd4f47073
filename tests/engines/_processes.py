"""Processes as the kernel lists them: who belongs to whom, and how to end them all."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the process table; a pid alone may be another process's by now, with its start time it is not."""

    pid: int
    parent: int
    session: int
    state: str
    started: int

    @property
    def is_alive(self) -> bool:
        return self.state not in {"Z", "X"}


def look(pid: int) -> Entry | None:
    """Return what the kernel knows of a process, None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may hold anything, so fields are counted from the last one.
    fields = text[text.rindex(")") + 2 :].split()
    return Entry(pid=pid, parent=int(fields[1]), session=int(fields[3]), state=fields[0], started=int(fields[19]))


def family(pid: int) -> list[Entry]:
    """Return the living processes that descend from `pid` or are in its session, itself first."""
    entries = [look(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()]
    alive = [entry for entry in entries if entry is not None and entry.is_alive]
    found = {pid}
    while True:
        more = {entry.pid for entry in alive if entry.parent in found or entry.session == pid} - found
        if not more:
            return sorted((entry for entry in alive if entry.pid in found), key=lambda entry: entry.pid != pid)
        found |= more


def is_same(entry: Entry) -> bool:
    """Tell whether the process is still there and still the same one."""
    now = look(entry.pid)
    return now is not None and now.is_alive and now.started == entry.started


def send(entries: list[Entry], signal_number: int) -> None:
    """Signal each process that is still the same one."""
    for entry in entries:
        if is_same(entry):
            with contextlib.suppress(ProcessLookupError):
                os.kill(entry.pid, signal_number)


def wait_gone(entries: list[Entry], timeout_s: float) -> bool:
    """Wait until none of the processes is left; return whether that happened in time."""
    deadline = time.monotonic() + timeout_s
    while any(is_same(entry) for entry in entries):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def end(entries: list[Entry], grace_s: float) -> None:
    """Ask the processes to end, and after `grace_s` kill those that are left."""
    send(entries, signal.SIGTERM)
    if not wait_gone(entries, grace_s):
        send(entries, signal.SIGKILL)
        wait_gone(entries, 10)
