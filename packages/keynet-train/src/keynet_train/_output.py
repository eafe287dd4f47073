"""What a command prints: data on standard output, everything else on standard error; errors as sentences or JSON."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from keynet_core import EventUndelivered, LockTimeout, SettingsInvalid, StoreUnavailable
from keynet_train._errors import EntryUnknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from keynet_core import KeynetError

DONE, FAILED, USAGE, NOT_FOUND, CONFLICT, UNAVAILABLE, INTERRUPTED = 0, 1, 2, 4, 5, 6, 130

_EXIT: tuple[tuple[type[KeynetError], int], ...] = (
    (SettingsInvalid, USAGE),
    (EntryUnknown, NOT_FOUND),
    (LockTimeout, CONFLICT),
    (StoreUnavailable, UNAVAILABLE),
    (EventUndelivered, UNAVAILABLE),
)


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command's results go; commands do not know whether a person or a program reads them."""

    as_json: bool

    def data(self, value: Any, human: Callable[[Any], str]) -> None:
        """Print a result: as JSON, or as `human` writes it."""
        click.echo(json.dumps(value, ensure_ascii=False, indent=2) if self.as_json else human(value))

    @staticmethod
    def say(line: str) -> None:
        """Tell a person how it goes."""
        click.echo(line, err=True)

    @staticmethod
    @contextmanager
    def hearing(logger: str) -> Iterator[None]:
        """Tell a person, in the block, what a logger is told."""
        heard, handler = logging.getLogger(logger), logging.StreamHandler()
        level = heard.level
        heard.addHandler(handler)
        heard.setLevel(logging.INFO)
        try:
            yield
        finally:
            heard.removeHandler(handler)
            heard.setLevel(level)


def exit_code_of(error: KeynetError) -> int:
    """Return the exit code that stands for an error."""
    return next((code for kind, code in _EXIT if isinstance(error, kind)), FAILED)


def print_error(error: KeynetError, *, as_json: bool) -> None:
    """Print an error: for a program on standard output, for a person on standard error."""
    told = error.to_dict()
    if as_json:
        click.echo(json.dumps({"error": told}, ensure_ascii=False))
        return
    lines = [f"error: {told['message']}"]
    if "hint" in told:
        lines.append(f"  next  {told['hint']}")
    click.echo("\n".join([*lines, f"  code  {told['code']}"]), err=True)


def to_table(rows: Iterable[Sequence[str]], head: Sequence[str]) -> str:
    """Return rows as columns of equal width."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def to_size(size_bytes: int) -> str:
    """Return a size for people."""
    size, units = float(size_bytes), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while size >= 1000 and (larger := next(units, None)):
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def to_age(age_s: float) -> str:
    """Return how long ago something was, for people: its two largest units."""
    left = int(max(age_s, 0))
    parts: list[str] = []
    for name, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        if count or parts or name == "s":
            parts.append(f"{count}{name}")
    return " ".join(parts[:2])
