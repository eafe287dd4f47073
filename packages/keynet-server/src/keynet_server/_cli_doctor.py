"""`keynet doctor`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from keynet_server._options import examples, home_option, json_option, settings_for
from keynet_server._output import FAILED, Output

if TYPE_CHECKING:
    from pathlib import Path

_MARKS = {"ok": "✓", "warning": "!", "error": "✗"}


@examples("keynet doctor", "keynet doctor --json")
@click.command()
@home_option
@json_option
def doctor(home: Path | None, *, as_json: bool) -> None:
    """Check the home, the store, the journal and everything that runs; exit 1 when something is wrong."""
    from keynet_server._checks import check_all

    found = [each.to_dict() for each in check_all(settings_for(home))]
    Output(as_json).data({"findings": found}, _show)
    if any(each["level"] == "error" for each in found):
        sys.exit(FAILED)


def _show(told: dict[str, Any]) -> str:
    lines = []
    for each in told["findings"]:
        lines.append(f"{_MARKS[each['level']]} {each['check'].ljust(10)} {each['finding']}")
        if each["remedy"]:
            lines.append(f"  next       {each['remedy']}")
    return "\n".join(lines)
