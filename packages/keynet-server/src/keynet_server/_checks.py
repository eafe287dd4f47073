"""What `keynet doctor` looks at: small checks, each with a name, a finding and, when something is wrong, a remedy."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from keynet_core import KeynetError, Outbox, open_store, read_endpoints
from keynet_server._children import answers
from keynet_server._errors import ServerRefused, ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keynet_core import Endpoints
    from keynet_server._client import ServerClient
    from keynet_server._settings import ServerSettings

_LOW_DISK_BYTES = 1 << 30
_NO_DISK_BYTES = 64 << 20
_TIMEOUT_S = 3.0
_BROKER_TIMEOUT_S = 20.0
"""The server asks the broker before it answers."""


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


def _ok(check: str, finding: str) -> Finding:
    return Finding(check=check, level="ok", finding=finding)


def _error(check: str, finding: str, remedy: str | None) -> Finding:
    return Finding(check=check, level="error", finding=finding, remedy=remedy)


def _warning(check: str, finding: str, remedy: str | None) -> Finding:
    return Finding(check=check, level="warning", finding=finding, remedy=remedy)


def check_all(settings: ServerSettings) -> Iterator[Finding]:
    """Yield the findings, cheap ones first; nothing is changed."""
    running = read_endpoints(settings.state_directory)
    yield from check_home(settings)
    if not settings.state_directory.is_dir():
        return
    yield from check_store(settings)
    yield from check_journal(settings)
    yield from check_endpoints(settings, running)
    yield from check_engines(running)
    yield from check_outbox(settings)
    yield from check_broker(settings, running)
    yield from check_links(settings)
    yield from check_served(settings, running)


def check_home(settings: ServerSettings) -> Iterator[Finding]:
    """Look at the home: there, writable, with room."""
    home = settings.state_directory
    if not home.is_dir():
        yield _warning("home", f"{home} does not exist yet", "keynet up")
        return
    if not os.access(home, os.W_OK | os.X_OK):
        yield _error("home", f"{home} cannot be written", f"chmod u+rwx {home}")
    else:
        yield _ok("home", f"{home} can be written")
    free = shutil.disk_usage(home).free
    told = f"{free / 2**30:.1f} GiB free in {home}"
    if free < _NO_DISK_BYTES:
        yield _error("disk", told, f"df -h {home}")
    elif free < _LOW_DISK_BYTES:
        yield _warning("disk", told, f"df -h {home}")
    else:
        yield _ok("disk", told)


def check_store(settings: ServerSettings) -> Iterator[Finding]:
    """Look at the package store."""
    try:
        open_store(settings.store_url).stat("packages/doctor/none/manifest.json")
    except KeynetError as error:
        yield _error("store", error.message, error.hint)
    else:
        yield _ok("store", f"{settings.store_url} answers")


def check_journal(settings: ServerSettings) -> Iterator[Finding]:
    """Look at the journal's database and its migrations."""
    from keynet_server._database import newest_revision, open_database, revision_of
    from keynet_server._reading import has_journal

    if not has_journal(settings):
        yield _warning("journal", "there is no journal yet", "keynet up")
        return
    try:
        database = open_database(settings.journal_url)
        try:
            found = revision_of(database)
        finally:
            database.dispose()
    except KeynetError as error:
        yield _error("journal", error.message, error.hint or "set KEYNET_DATABASE_URL to a database that answers")
        return
    if found != newest_revision():
        remedy = "keynet up brings it up to date; when it is newer: pip install --upgrade keynet-server"
        yield _error("journal", f"its tables are at {found}, this keynet knows {newest_revision()}", remedy)
    else:
        yield _ok("journal", f"its tables are up to date ({found})")


def check_endpoints(settings: ServerSettings, running: Endpoints | None) -> Iterator[Finding]:
    """Look at what `keynet up` wrote, and at the server it names."""
    if running is None:
        if (settings.state_directory / "run" / "endpoints.json").exists():
            yield _warning("endpoints", "a killed keynet up left addresses behind; nobody believes them", "keynet up")
        else:
            yield _warning("endpoints", "keynet up does not run on this home", "keynet up")
    elif answers(f"{running.server}/healthz", timeout_s=_TIMEOUT_S):
        yield _ok("endpoints", f"keynet up runs since {running.started_at}; the server is {running.server}")
    else:
        log = settings.state_directory / "logs" / "server.log"
        yield _error("endpoints", f"the keynet server at {running.server} does not answer", f"less {log}")


def check_engines(running: Endpoints | None) -> Iterator[Finding]:
    """Ask MLflow and the model server."""
    if running is None:
        return
    for check, url, log in (
        ("mlflow", f"{running.tracking}/health", "mlflow.log"),
        ("serving", f"{running.serving}/v2/health/ready", "serving.log"),
    ):
        if answers(url, timeout_s=_TIMEOUT_S):
            yield _ok(check, f"{url} answers")
        else:
            yield _error(check, f"{url} does not answer", f"look into logs/{log} of the home")


def check_outbox(settings: ServerSettings) -> Iterator[Finding]:
    """Look at what waits to be announced, and at what was refused."""
    outbox = Outbox(settings.state_directory / "outbox")
    waiting, refused = outbox.entries("ready"), outbox.entries("refused")
    readable = {entry.directory for entry in (*waiting, *refused)}
    present = [path for state in ("ready", "refused") for path in sorted((outbox.root / state).glob("*"))]
    unreadable = [path for path in present if path not in readable]
    for directory in unreadable:
        yield _error("outbox", f"the entry {directory} cannot be read", f"ls {directory}")
    for entry in waiting:
        told = entry.last_error() or {"message": "not tried yet"}
        yield _warning("outbox", f"{entry.event.subject} waits: {told['message']}", told.get("hint") or "keynet up")
    for entry in refused:
        told = entry.last_error() or {"message": "no reason was kept"}
        yield _error("outbox", f"{entry.event.subject} was refused: {told['message']}", f"ls {entry.directory}")
    if not waiting and not refused and not unreadable:
        yield _ok("outbox", "nothing waits")


def check_broker(settings: ServerSettings, running: Endpoints | None) -> Iterator[Finding]:
    """Look at the broker that events come from, and at its dead letters."""
    from keynet_server._broker_reading import read_queues

    try:
        queues = read_queues(settings, running, timeout_s=_BROKER_TIMEOUT_S)
    except ServerUnreachable:
        return  # that it does not answer is told already
    except KeynetError as error:
        yield _error("broker", error.message, error.hint)
        return
    if queues is None:
        return
    told = f"{queues['waiting']} events wait in {queues['queue']} of RabbitMQ at {queues['address']}"
    if not queues["is_declared"]:
        told = f"no keynet server has listened to {queues['queue']} of RabbitMQ at {queues['address']} yet"
    if queues["consumers"]:
        yield _ok("broker", f"{told}, {queues['consumers']} servers listen")
    else:
        remedy = "run keynet up, or keynet server, with the same RABBIT_ENDPOINT_URL and RABBIT_MODEL_UPLOAD_TOPIC"
        yield _warning("broker", told if not queues["is_declared"] else f"{told}, and nobody listens", remedy)
    if queues["dead"]:
        newest = queues["letters"][-1] if queues["letters"] else {"id": "not seen", "reason": "somebody looks at them"}
        told = f"{queues['dead']} dead letters; the newest is {newest['id']}: {newest['reason']}"
        yield _error("broker", told, "keynet events dead")


def check_links(settings: ServerSettings) -> Iterator[Finding]:
    """Look for links of the serving repository that point nowhere."""
    from keynet_server._repository import open_repository

    try:
        broken = open_repository(settings.serving_url, settings.serving_root / "staging").broken()
    except KeynetError as error:
        yield _error("links", error.message, error.hint)
        return
    for name in broken:
        remedy = "restart the server: it fetches the package again"
        yield _error("links", f"what {name} is served from is not whole", remedy)
    if not broken:
        yield _ok("links", "what every linked model is served from is whole")


def check_served(settings: ServerSettings, running: Endpoints | None) -> Iterator[Finding]:
    """Compare what the journal calls live with what the model server has ready."""
    if running is None:
        return
    from keynet_server._client import ServerClient
    from keynet_server._engine import KServeEngine

    engine = KServeEngine(url=running.serving, timeout_s=_TIMEOUT_S)
    client = ServerClient(url=running.server, timeout_s=_TIMEOUT_S)
    try:
        models = client.get("/v1/models")["models"]
        live = {each["name"]: each["live"]["served_version"] for each in models if each["live"]}
        ready = {(row.name, row.version) for row in engine.index() if row.state == "READY"}
        stray = [pair for pair in sorted(ready - live.items()) if not _is_kept_beside(live, *pair, client)]
    except (ServerUnreachable, ServerRefused, KeynetError) as error:
        yield _error("served", f"journal and model server cannot be compared: {error.message}", error.hint)
        return
    missing = sorted(live.items() - ready)
    for name, version in missing:
        remedy = f"keynet models history {name}; the reason is in {settings.state_directory}/logs/server.log"
        yield _error("served", f"{name} version {version} is live in the journal, but not ready", remedy)
    for name, version in stray:
        yield _warning("served", f"{name} version {version} is ready, but not from a deployment of the journal", None)
    if not missing and not stray:
        yield _ok("served", f"{len(live)} live in the journal, the same ready in the model server")
    for each in models:
        if each["last"]["state"] == "failed":
            told = f"the last deployment of {each['name']}, {each['last']['number']}, failed: {each['last']['reason']}"
            yield _warning("served", told, f"keynet models history {each['name']}")


def _is_kept_beside(live: Mapping[str, str], name: str, version: str, client: ServerClient) -> bool:
    """Return whether a version was live before the one that is, and may have stayed loaded beside it."""
    if name not in live or not version.isdigit() or int(version) >= int(live[name]):
        return False
    history = client.get(f"/v1/models/{name}/history")["deployments"]
    return any(each["served_version"] == version and each["state"] == "superseded" for each in history)
