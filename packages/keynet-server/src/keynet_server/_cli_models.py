"""`keynet models`."""

from __future__ import annotations

import getpass
import os
import time
from typing import TYPE_CHECKING, Any

import click

from keynet_core import to_model_name
from keynet_server._client import require_server
from keynet_server._errors import DeploymentFailed, DeploymentPostponed
from keynet_server._options import examples, home_option, json_option, settings_for
from keynet_server._output import Output, to_table
from keynet_server._reading import open_reader

if TYPE_CHECKING:
    from pathlib import Path

    from keynet_server._client import ServerClient

_POLL_S = 0.1


@click.group()
def models() -> None:
    """Show what is deployed and its history, go back, and unload."""


@examples("keynet models list", "keynet models list --json")
@models.command("list")
@home_option
@json_option
def list_models(home: Path | None, *, as_json: bool) -> None:
    """List the models, with what is live and what was tried last."""
    output = Output(as_json)
    with open_reader(settings_for(home)) as (reader, is_running):
        found = reader.models()
    _tell_source(output, is_running=is_running)
    output.data({"models": found}, _show_models)


@examples("keynet models show mnist")
@models.command("show")
@click.argument("name")
@home_option
@json_option
def show_model(name: str, home: Path | None, *, as_json: bool) -> None:
    """Show what is live of one model, and what was tried last."""
    output = Output(as_json)
    with open_reader(settings_for(home)) as (reader, is_running):
        found = reader.model(name)
    _tell_source(output, is_running=is_running)
    output.data(found, _show_model)


@examples("keynet models history mnist")
@models.command("history")
@click.argument("name")
@home_option
@json_option
def show_history(name: str, home: Path | None, *, as_json: bool) -> None:
    """List a model's deployments, newest first; works without a running server too."""
    output = Output(as_json)
    with open_reader(settings_for(home)) as (reader, is_running):
        found = reader.history(name)
    _tell_source(output, is_running=is_running)
    output.data(found, _show_history)


@examples(
    "keynet models rollback mnist --why 'accuracy fell in production'",
    "keynet models rollback mnist --to 3",
    "keynet models rollback mnist --to 7   (7 failed: tries its package again)",
)
@models.command("rollback")
@click.argument("name")
@click.option("--to", type=click.IntRange(1), help="The number of the deployment.  [default: the one live before]")
@click.option("--why", help="The reason, kept in the journal.")
@click.option("--timeout", "timeout_s", default=180.0, show_default=True, help="Seconds to wait for the outcome.")
@home_option
@json_option
def roll_back(
    name: str, to: int | None, why: str | None, timeout_s: float, home: Path | None, *, as_json: bool
) -> None:
    """
    Deploy an older package of a model again, and wait until it is live.

    Without --to it is the package that was live before the one that is live now, so a second rollback takes the
    first one back.
    """
    output = Output(as_json)
    client = require_server(settings_for(home))
    model = to_model_name(name)
    asked = {"to": to, "why": why, "who": _user()}
    told = client.post(f"/v1/models/{model}/rollback", asked)
    output.say(f"asked for deployment {told['restores']} of {model} again")
    _wait_for(client, told["id"], timeout_s, f"{model} is not rolled back")
    output.data(client.get(f"/v1/models/{model}"), _show_model)


@examples(
    "keynet models unload mnist --why 'the product that asked it is gone'",
    "keynet models rollback mnist   (loads it again)",
)
@models.command("unload")
@click.argument("name")
@click.option("--why", help="The reason, kept in the journal.")
@click.option("--timeout", "timeout_s", default=180.0, show_default=True, help="Seconds to wait for the outcome.")
@home_option
@json_option
def unload(name: str, why: str | None, timeout_s: float, home: Path | None, *, as_json: bool) -> None:
    """Serve a model no more, and wait until it is gone; its packages stay in the store, and a rollback loads it."""
    output = Output(as_json)
    client = require_server(settings_for(home))
    model = to_model_name(name)
    told = client.post(f"/v1/models/{model}/unload", {"why": why, "who": _user()})
    output.say(f"asked that {model} is served no more")
    _wait_for(client, told["id"], timeout_s, f"{model} is not unloaded")
    output.data(client.get(f"/v1/models/{model}"), _show_model)


def _wait_for(client: ServerClient, event_id: str, timeout_s: float, otherwise: str) -> None:
    """Wait for the outcome of an event, and raise what `otherwise` says when there is none, or a failure."""
    deadline = time.monotonic() + timeout_s
    while (event := client.get(f"/v1/events/{event_id}"))["outcome"] is None:
        if time.monotonic() > deadline:
            raise DeploymentPostponed(
                f"{otherwise} after {timeout_s:.0f} s; it is still tried",
                hint=f"keynet models show {event['subject']}",
                after_link=False,
            )
        time.sleep(_POLL_S)
    if event["outcome"] == "failed":
        hint = f"keynet models history {event['subject']}"
        raise DeploymentFailed(f"{otherwise}: {event['reason']}", hint=hint)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return f"uid {os.getuid()}"


def _tell_source(output: Output, *, is_running: bool) -> None:
    if not is_running:
        output.say("nothing runs on this home: this is what the journal remembers")


def _show_models(told: dict[str, Any]) -> str:
    if not told["models"]:
        return "no model was deployed yet\nnext: run a training script, or keynet doctor"
    rows = [_model_row(each) for each in told["models"]]
    return to_table(rows, ("MODEL", "LIVE", "VERSION", "PACKAGE", "SINCE", "LAST"))


def _model_row(model: dict[str, Any]) -> tuple[str, ...]:
    live, last = model["live"], model["last"]
    newest = "" if live and last["number"] == live["number"] else f"{last['number']} {last['state']}"
    if live is None:
        return (model["name"], "-", "-", "-", "-", newest)
    return (model["name"], str(live["number"]), live["served_version"], _short(live), _when(live), newest)


def _show_model(model: dict[str, Any]) -> str:
    lines = []
    if model["live"]:
        lines += [f"{model['name']}: deployment {model['live']['number']} is live", *_facts(model["live"])]
    else:
        lines.append(f"{model['name']}: nothing is live")
    if not model["live"] or model["last"]["number"] != model["live"]["number"]:
        lines += [f"last tried: deployment {model['last']['number']}, {model['last']['state']}", *_facts(model["last"])]
    return "\n".join([*lines, f"next: keynet models history {model['name']}"])


def _facts(deployment: dict[str, Any]) -> list[str]:
    facts = {
        "version": deployment["served_version"],
        "package": deployment["digest"],
        "run": deployment["run_id"],
        "who": deployment["requested_by"],
        "why": deployment["why"],
        "when": _when(deployment),
        "reason": deployment["reason"],
        "engine": deployment["engine_answer"],
    }
    return [f"  {name.ljust(8)}{value}" for name, value in facts.items() if value]


def _show_history(told: dict[str, Any]) -> str:
    rows = [
        (
            str(each["number"]),
            each["state"],
            each["served_version"],
            _short(each),
            _when(each),
            each["requested_by"],
            (each["reason"] or each["why"] or "")[:80],
        )
        for each in told["deployments"]
    ]
    table = to_table(rows, ("NUMBER", "STATE", "VERSION", "PACKAGE", "WHEN", "WHO", "WHY"))
    return f"{table}\nthe journal holds older ones, not shown" if told.get("truncated") else table


def _short(deployment: dict[str, Any]) -> str:
    return str(deployment["digest"]).removeprefix("sha256:")[:12]


def _when(deployment: dict[str, Any]) -> str:
    return str(deployment["finished_at"] or deployment["started_at"])[:19].replace("T", " ") + "Z"
