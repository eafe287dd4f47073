"""What one look of `keynet doctor` found, and the next command where something is wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    check: str
    level: Level
    finding: str
    remedy: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def ok(check: str, finding: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(check=check, level="ok", finding=finding)


def warning(check: str, finding: str, remedy: str | None) -> Finding:
    """Return that something is not as it should be, and nothing is broken."""
    return Finding(check=check, level="warning", finding=finding, remedy=remedy)


def error(check: str, finding: str, remedy: str | None) -> Finding:
    """Return that something is broken."""
    return Finding(check=check, level="error", finding=finding, remedy=remedy)


def onward(hint: str | None, otherwise: str) -> str:
    """Return the hint of an error, unless it has none, or says to ask the doctor, who is asked."""
    return otherwise if hint in {None, "keynet doctor"} else str(hint)
