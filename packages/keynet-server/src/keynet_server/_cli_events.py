"""`keynet events`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from keynet_core import read_endpoints
from keynet_server._client import require_server
from keynet_server._errors import BrokerMissing
from keynet_server._options import examples, home_option, json_option, settings_for
from keynet_server._output import Output, to_table
from keynet_server._reading import open_reader

if TYPE_CHECKING:
    from pathlib import Path

_MAX_LISTED = 1000
_SHOWN_REASON = 60

limit_option = click.option(
    "--limit", type=click.IntRange(1, _MAX_LISTED), default=50, show_default=True, help="How many to show."
)


@click.group()
def events() -> None:
    """Show what was announced and what became of it, and act on what failed once more."""


@examples("keynet events list", "keynet events list --limit 5 --json")
@events.command("list")
@limit_option
@home_option
@json_option
def list_events(limit: int, home: Path | None, *, as_json: bool) -> None:
    """List the events that were received last, newest first; works without a running server too."""
    output = Output(as_json)
    with open_reader(settings_for(home)) as (reader, is_running):
        found = reader.events(limit)
    if not is_running:
        output.say("nothing runs on this home: this is what the journal remembers")
    output.data({"events": found}, _show_events)


@examples("keynet events show 8c1f0c0a5f6e4b52a7d1f1f0f7f3c9aa/digits/5b0d1f3c...")
@events.command("show")
@click.argument("event_id", metavar="ID")
@home_option
@json_option
def show_event(event_id: str, home: Path | None, *, as_json: bool) -> None:
    """Show one event, whole, and what became of it."""
    output = Output(as_json)
    with open_reader(settings_for(home)) as (reader, _):
        found = reader.event(event_id)
    output.data(found, _show_event)


@examples("keynet events dead", "keynet events dead --limit 3 --json")
@events.command("dead")
@limit_option
@home_option
@json_option
def list_dead(limit: int, home: Path | None, *, as_json: bool) -> None:
    """
    List what lies in the broker's dead-letter queue, oldest first, each with its reason; nothing is removed.

    The broker is RABBIT_ENDPOINT_URL, else the one that the running server listens to.
    """
    from keynet_server._broker_reading import read_queues

    settings = settings_for(home)
    found = read_queues(settings, read_endpoints(settings.state_directory), limit=limit)
    if found is None:
        raise BrokerMissing(
            "no broker is known, and no server that listens to one", hint="set RABBIT_ENDPOINT_URL, or run keynet up"
        )
    Output(as_json).data(found, _show_dead)


@examples("keynet events replay 8c1f0c0a5f6e4b52a7d1f1f0f7f3c9aa/digits/5b0d1f3c...")
@events.command("replay")
@click.argument("event_id", metavar="ID")
@home_option
@json_option
def replay(event_id: str, home: Path | None, *, as_json: bool) -> None:
    """
    Act on a failed event once more, or send a dead letter to its topic once more.

    A failed event is received again under the id ID/replay/1 (then 2, and so on); the journal keeps the old one as it
    is. It is the newest event of its model then: what it announces becomes live when it can be served.
    """
    from keynet_server._broker_reading import PATIENCE_S

    client = replace(require_server(settings_for(home)), timeout_s=PATIENCE_S)
    told = client.post(f"/v1/events/{quote(event_id)}/replay", {})
    Output(as_json).data(told, _show_replay)


def _show_events(told: dict[str, Any]) -> str:
    if not told["events"]:
        return "no event was received yet\nnext: run a training script, or keynet doctor"
    rows = [
        (
            _when(each["received_at"]),
            each["outcome"] or "waits",
            each["subject"] or "-",
            each["id"],
            _short(each["reason"]),
        )
        for each in told["events"]
    ]
    return to_table(rows, ("RECEIVED", "OUTCOME", "MODEL", "ID", "REASON"))


def _show_event(event: dict[str, Any]) -> str:
    facts = {
        "type": event["type"],
        "source": event["source"],
        "model": event["subject"],
        "received": _when(event["received_at"]),
        "outcome": event["outcome"] or "waits",
        "reason": event["reason"],
        "finished": event["finished_at"] and _when(event["finished_at"]),
    }
    lines = [event["id"], *(f"  {name.ljust(10)}{value}" for name, value in facts.items() if value)]
    lines.append(json.dumps(event["event"], ensure_ascii=False, indent=2))
    if event["outcome"] == "failed":
        lines.append(f"next: keynet events replay {event['id']}")
    return "\n".join(lines)


def _show_dead(told: dict[str, Any]) -> str:
    head = f"{told['dead']} dead letters in {told['dead_queue']} of RabbitMQ at {told['address']}"
    if not told["letters"]:
        return head
    lines = [head if len(told["letters"]) == told["dead"] else f"{head}, the oldest {len(told['letters'])} of them:"]
    for each in told["letters"]:
        lines += [f"{each['id']}", f"  {each['code']}: {each['reason']}"]
        lines += [f"  next  {each['hint']}"] if each["hint"] else []
        lines += [f"  since {_when(each['died_at'])}"] if each["died_at"] else []
    return "\n".join([*lines, "next: mend the reason, then keynet events replay ID"])


def _show_replay(told: dict[str, Any]) -> str:
    if told["replayed"] == "dead letter":
        return f"{told['id']} was sent to its topic again\nnext: keynet events show {told['id']}"
    return f"it is acted on again, as {told['id']}\nnext: keynet events show {told['id']}"


def _short(reason: str | None) -> str:
    text = reason or ""
    return text if len(text) <= _SHOWN_REASON else f"{text[:_SHOWN_REASON]}..."


def _when(text: str) -> str:
    return str(text)[:19].replace("T", " ") + "Z"
