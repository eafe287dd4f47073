"""What a command prints: data on standard output, everything else on standard error; errors as sentences or JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from keynet_core import (
    EventInvalid,
    EventRefused,
    EventUndelivered,
    KeynetError,
    LockTimeout,
    NameRefused,
    ObjectMissing,
    SettingsInvalid,
    StoreUnavailable,
)
from keynet_server._errors import (
    AlreadyUp,
    BrokerMissing,
    BrokerUnavailable,
    DeploymentConflict,
    DeploymentUnknown,
    EngineUnavailable,
    EventConflict,
    EventUnknown,
    JournalUnavailable,
    PortTaken,
    ServerRefused,
    ServerUnreachable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

DONE, FAILED, USAGE, FORBIDDEN, NOT_FOUND, CONFLICT, UNAVAILABLE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130

_EXIT: tuple[tuple[type[KeynetError], int], ...] = (
    (NameRefused, USAGE),
    (SettingsInvalid, USAGE),
    (DeploymentUnknown, NOT_FOUND),
    (EventUnknown, NOT_FOUND),
    (BrokerMissing, NOT_FOUND),
    (ObjectMissing, NOT_FOUND),
    (AlreadyUp, CONFLICT),
    (PortTaken, CONFLICT),
    (DeploymentConflict, CONFLICT),
    (EventConflict, CONFLICT),
    (ServerUnreachable, UNAVAILABLE),
    (EngineUnavailable, UNAVAILABLE),
    (StoreUnavailable, UNAVAILABLE),
    (JournalUnavailable, UNAVAILABLE),
    (BrokerUnavailable, UNAVAILABLE),
    (LockTimeout, UNAVAILABLE),
    (EventUndelivered, UNAVAILABLE),
    (EventInvalid, FAILED),
    (EventRefused, FAILED),
)
_EXIT_BY_STATUS = {401: FORBIDDEN, 403: FORBIDDEN, 404: NOT_FOUND, 409: CONFLICT, 422: USAGE, 503: UNAVAILABLE}


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


def exit_code_of(error: KeynetError) -> int:
    """Return the exit code that stands for an error."""
    if isinstance(error, ServerRefused):
        return _EXIT_BY_STATUS.get(error.status, FAILED)
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


def report(error: KeynetError | OSError, *, as_json: bool) -> int:
    """Print what ends a process, and return the exit code that stands for it."""
    if isinstance(error, KeynetError):
        print_error(error, as_json=as_json)
        return exit_code_of(error)
    told = KeynetError(f"{error.filename or 'the system'}: {error.strerror or error}", hint="keynet doctor")
    print_error(told, as_json=as_json)
    return FAILED


def to_table(rows: Iterable[Sequence[str]], head: Sequence[str]) -> str:
    """Return rows as columns of equal width."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)
