"""`keynet-train outbox`: what waits on this disk, and handing it over."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keynet_core import FlushReport, read_settings, to_publisher
from keynet_train._delivering import hand_over
from keynet_train._output import DONE, FAILED, UNAVAILABLE, Output, to_age, to_size, to_table
from keynet_train._settings import TrainSettings
from keynet_train._spool import find, items

if TYPE_CHECKING:
    from collections.abc import Callable

_LOCK_TIMEOUT_S = 5.0
_SHORT = 8
"""The end of an entry's name, random, that stands for the whole."""

home_option = click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    help="The home to work on.  [default: $KEYNET_HOME, else ./.keynet]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def examples(*lines: str) -> Callable[[Any], Any]:
    """Put examples at the end of a command's help."""

    def add(command: click.Command) -> click.Command:
        command.epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
        return command

    return add


@click.group()
def outbox() -> None:
    """Show what waits to be published, and hand it over."""


@examples("keynet-train outbox list", "keynet-train outbox list --home /srv/training/.keynet --json")
@outbox.command("list")
@home_option
@json_option
def list_entries(home: Path | None, *, as_json: bool) -> None:
    """List what waits and what was refused: since when, how large, why, and what to do next."""
    spool = _settings(home).outbox
    found = [each.to_dict() for each in items(spool)]
    Output(as_json).data({"outbox": str(spool.root), "entries": found}, _show_list)


@examples("keynet-train outbox show 3f9a1c22")
@outbox.command("show")
@click.argument("entry")
@home_option
@json_option
def show_entry(entry: str, home: Path | None, *, as_json: bool) -> None:
    """Show everything that is known of one ENTRY; the end of its name is enough."""
    Output(as_json).data(find(_settings(home).outbox, entry).to_dict(), _show_entry)


@examples(
    "keynet-train outbox flush",
    "keynet-train outbox flush --refused   (tries also what was refused, once the reason is mended)",
)
@outbox.command("flush")
@click.option("--refused", "with_refused", is_flag=True, help="Try also what was refused before.")
@home_option
@json_option
@click.pass_context
def flush(context: click.Context, home: Path | None, *, with_refused: bool, as_json: bool) -> None:
    """
    Store and announce everything that waits, oldest first, each once.

    It is safe to interrupt and to repeat: what is stored already is not sent again, and an event that arrives twice is
    acted on once. It reads the same environment as training does.

    Exit codes: 0 nothing waits any more, 1 something was refused, 5 another process is handing over, 6 something still
    waits.
    """
    output, settings = Output(as_json), _settings(home)
    report = _flush(settings, output, with_refused=with_refused)
    found = [each.to_dict() for each in items(settings.outbox)]
    now_refused = {event.id for event, _ in report.refused}
    told = {
        "outbox": str(settings.outbox.root),
        "announced": [{"event_id": event.id, "model": event.subject} for event in report.delivered],
        "waiting": [each for each in found if each["state"] == "waiting"],
        "refused": [each for each in found if each["state"] == "refused" and each["event_id"] in now_refused],
        "unreadable": [each for each in found if each["state"] == "unreadable"],
    }
    output.data(told, _show_flush)
    if told["waiting"]:
        context.exit(UNAVAILABLE)
    context.exit(FAILED if told["refused"] or told["unreadable"] else DONE)


def _flush(settings: TrainSettings, output: Output, *, with_refused: bool) -> FlushReport:
    spool = settings.outbox
    if not spool.root.is_dir():  # nor is it made: the directory may be a mistake
        return FlushReport(delivered=(), waiting=(), refused=())
    if with_refused:
        for entry in spool.entries("refused"):
            spool.readmit(entry)
    events = to_publisher(settings)
    with output.hearing("keynet.objects"):
        return hand_over(
            spool,
            events,
            timeout_s=math.inf,
            lock_timeout_s=_LOCK_TIMEOUT_S,
            stored=lambda entry: output.say(f"{entry.event.subject} is in {entry.event.data.get('store')}"),
        )


def _settings(home: Path | None) -> TrainSettings:
    return read_settings(TrainSettings, os.environ, home=home.expanduser().absolute() if home else None)


def _show_list(told: dict[str, Any]) -> str:
    if not told["entries"]:
        return f"nothing waits in {told['outbox']}"
    table = to_table(map(_row, told["entries"]), ("ENTRY", "MODEL", "STATE", "AGE", "SIZE", "REASON"))
    following = dict.fromkeys(each["next"] for each in told["entries"])
    return "\n".join([table, *(f"next: {command}" for command in following)])


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    reason = (item["reason"] or {}).get("message", "not tried yet")
    age, size = to_age(item["age_s"]), to_size(item["size_bytes"])
    return (item["entry"][-_SHORT:], item["model"] or "-", item["state"], age, size, reason.splitlines()[0][:100])


def _show_entry(item: dict[str, Any]) -> str:
    reason = item["reason"] or {}
    facts = {
        "entry": item["entry"],
        "state": item["state"],
        "model": item["model"],
        "version": item["version"],
        "package": item["digest"],
        "run": item["run_id"],
        "event": item["event_id"],
        "store": item["store"],
        "since": f"{item['since'][:19].replace('T', ' ')}Z, {to_age(item['age_s'])} ago",
        "size": to_size(item["size_bytes"]),
        "where": item["directory"],
        "reason": reason.get("message"),
        "mend": reason.get("hint"),
        "next": item["next"],
    }
    return "\n".join(f"{name.ljust(8)} {value}" for name, value in facts.items() if value)


def _show_flush(told: dict[str, Any]) -> str:
    lines = [f"{each['model']} is announced" for each in told["announced"]]
    for each in (*told["waiting"], *told["refused"], *told["unreadable"]):
        reason = (each["reason"] or {}).get("message", "not tried yet")
        lines.append(f"{each['model'] or each['entry']} is {each['state']}: {reason}")
        lines += [f"  mend  {each['reason']['hint']}"] if "hint" in (each["reason"] or {}) else []
        lines.append(f"  next  {each['next']}")
    return "\n".join(lines or [f"nothing waits in {told['outbox']}"])
