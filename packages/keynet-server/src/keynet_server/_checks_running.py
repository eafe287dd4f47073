"""What `keynet doctor` asks of whatever runs: the server, the engines, the broker, and whether they agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keynet_core import KeynetError
from keynet_server._children import answers
from keynet_server._client import ServerClient
from keynet_server._errors import ServerRefused, ServerUnreachable
from keynet_server._findings import error, ok, onward, warning
from keynet_server._running import ALONE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keynet_core import Endpoints
    from keynet_server._findings import Finding
    from keynet_server._running import Running
    from keynet_server._settings import ServerSettings

_TIMEOUT_S = 3.0
_BROKER_TIMEOUT_S = 20.0
"""The server asks the broker before it answers."""


def check_server(settings: ServerSettings, running: Running) -> Iterator[Finding]:
    """Look for the server: what `keynet up` runs, or a server alone, here or where `KEYNET_URL` says."""
    if running.up is not None:
        yield _look_at_up(settings, running.up)
    elif running.start == ALONE:
        yield _look_at_server(settings, running)
    elif running.is_held:
        yield warning("endpoints", "keynet up has this home, and does not answer yet", "ask again in a moment")
    elif (settings.state_directory / "run" / "endpoints.json").exists():
        yield warning("endpoints", "a killed keynet up left addresses behind; nobody believes them", running.start)
    else:
        yield warning("endpoints", "keynet up does not run on this home", running.start)


def _look_at_up(settings: ServerSettings, up: Endpoints) -> Finding:
    if answers(f"{up.server}/healthz", timeout_s=_TIMEOUT_S):
        return ok("endpoints", f"keynet up runs since {up.started_at}; the server is {up.server}")
    log = settings.state_directory / "logs" / "server.log"
    return error("endpoints", f"the keynet server at {up.server} does not answer", f"less {log}")


def _look_at_server(settings: ServerSettings, running: Running) -> Finding:
    if running.server is None:
        if running.is_held:
            return warning(
                "server", "a keynet server holds this home, and does not listen yet", "ask again in a moment"
            )
        return warning("server", f"no keynet server runs on {settings.state_directory}", ALONE)
    try:
        ServerClient(url=running.server, timeout_s=_TIMEOUT_S, start=ALONE).get("/healthz")
    except ServerUnreachable as trouble:
        # One that holds the home cannot be started a second time.
        return error("server", trouble.message, "end it and start it again" if running.is_held else trouble.hint)
    except ServerRefused as trouble:
        return error("server", trouble.message, f"curl -i {running.server}/healthz")
    return ok("server", f"the keynet server at {running.server} answers")


def check_engines(running: Running) -> Iterator[Finding]:
    """Ask MLflow, when `keynet up` runs it, and the model server that the keynet server uses."""
    if running.up is not None:
        url = f"{running.up.tracking}/health"
        if answers(url, timeout_s=_TIMEOUT_S):
            yield ok("mlflow", f"{url} answers")
        else:
            yield error("mlflow", f"{url} does not answer", "look into logs/mlflow.log of the home")
    if running.serving is not None:
        yield _look_at_engine(running, running.serving)
    elif running.is_held:
        told = "it is not known which model server the keynet server uses"
        yield warning("serving", told, "set TRITON_URL to the http:// address that the server has")


def _look_at_engine(running: Running, url: str) -> Finding:
    from keynet_server._engine import KServeEngine

    remedy = "look into logs/serving.log of the home" if running.up else f"curl -i {url}/v2/health/live"
    try:
        is_live = KServeEngine(url=url, timeout_s=_TIMEOUT_S).is_live()
    except KeynetError as trouble:
        return error("serving", trouble.message, remedy)
    if not is_live:
        return error("serving", f"what answers at {url} is no model server that takes requests", remedy)
    return ok("serving", f"the model server at {url} answers")


def check_broker(settings: ServerSettings, running: Running) -> Iterator[Finding]:
    """Look at the broker that events come from, and at its dead letters."""
    from keynet_server._broker_reading import read_queues, tell_dead

    try:
        queues = read_queues(settings, running.up, timeout_s=_BROKER_TIMEOUT_S)
    except ServerUnreachable:
        return  # that it does not answer is told already
    except KeynetError as trouble:
        remedy = onward(trouble.hint, "start RabbitMQ, or set RABBIT_ENDPOINT_URL to where it is")
        yield error("broker", trouble.message, remedy)
        return
    if queues is None:
        return
    told = f"{queues['waiting']} events wait in {queues['queue']} of RabbitMQ at {queues['address']}"
    if not queues["is_declared"]:
        told = f"no keynet server has listened to {queues['queue']} of RabbitMQ at {queues['address']} yet"
    if queues["consumers"]:
        yield ok("broker", f"{told}, {queues['consumers']} servers listen")
    else:
        remedy = f"run {running.start} with the same RABBIT_ENDPOINT_URL and RABBIT_MODEL_UPLOAD_TOPIC"
        yield warning("broker", told if not queues["is_declared"] else f"{told}, and nobody listens", remedy)
    if queues["dead"]:
        yield error("broker", tell_dead(queues), "keynet events dead")


def check_served(settings: ServerSettings, running: Running) -> Iterator[Finding]:
    """Compare what the journal calls live with what the model server has ready."""
    if running.server is None or running.serving is None:
        return
    from keynet_server._engine import KServeEngine

    engine = KServeEngine(url=running.serving, timeout_s=_TIMEOUT_S)
    client = ServerClient(url=running.server, timeout_s=_TIMEOUT_S, start=running.start)
    try:
        models = client.get("/v1/models")["models"]
        live = {each["name"]: each["live"]["served_version"] for each in models if each["live"]}
        ready = {(row.name, row.version) for row in engine.index() if row.state == "READY"}
        stray = [pair for pair in sorted(ready - live.items()) if not _is_kept_beside(live, *pair, client)]
    except KeynetError as trouble:
        remedy = onward(trouble.hint, "mend what is told of the server and of serving")
        yield error("served", f"journal and model server cannot be compared: {trouble.message}", remedy)
        return
    log = f"{settings.state_directory}/logs/server.log" if running.up else "the log of keynet server"
    missing = sorted(live.items() - ready)
    for name, version in missing:
        remedy = f"keynet models history {name}; the reason is in {log}"
        yield error("served", f"{name} version {version} is live in the journal, but not ready", remedy)
    for name, version in stray:
        yield warning("served", f"{name} version {version} is ready, but not from a deployment of the journal", None)
    if not missing and not stray:
        yield ok("served", f"{len(live)} live in the journal, the same ready in the model server")
    for each in models:
        if each["last"]["state"] == "failed":
            told = f"the last deployment of {each['name']}, {each['last']['number']}, failed: {each['last']['reason']}"
            yield warning("served", told, f"keynet models history {each['name']}")


def _is_kept_beside(live: Mapping[str, str], name: str, version: str, client: ServerClient) -> bool:
    """Return whether a version was live before the one that is, and may have stayed loaded beside it."""
    if name not in live or not version.isdigit() or int(version) >= int(live[name]):
        return False
    history = client.get(f"/v1/models/{name}/history")["deployments"]
    return any(each["served_version"] == version and each["state"] == "superseded" for each in history)
