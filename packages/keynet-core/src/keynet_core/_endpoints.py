"""What `keynet up` runs on a home: addresses and a token, in files that are believed only while it runs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from keynet_core._durable import make_private_directory, write_durably
from keynet_core._locks import is_held
from keynet_core._secrets import Secret

if TYPE_CHECKING:
    from pathlib import Path

    from keynet_core._publishing import EventPublisher
    from keynet_core._settings import CoreSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """The addresses of the embedded engines; each is a URL, `serving_grpc` is `grpc://host:port`."""

    server: str
    tracking: str
    serving: str
    serving_grpc: str
    pid: int
    started_at: str


def up_lock(home: Path) -> Path:
    """Return the file whose lock `keynet up` holds for as long as it runs."""
    return home / "run" / "up.lock"


def write_endpoints(home: Path, endpoints: Endpoints, token: Secret) -> None:
    """Tell other processes of this user what runs on `home`."""
    run = make_private_directory(home / "run")
    run.chmod(0o700)  # a lock may have made it before
    write_durably(run / "token", token.reveal().encode(), mode=0o600)
    write_durably(run / "endpoints.json", json.dumps(asdict(endpoints), indent=2).encode(), mode=0o600)


def read_endpoints(home: Path) -> Endpoints | None:
    """Return what runs on `home` now, or None; a file that a killed `keynet up` left behind is not believed."""
    if not is_held(up_lock(home)):
        return None
    try:
        told = json.loads((home / "run" / "endpoints.json").read_bytes())
        return Endpoints(**{each.name: told[each.name] for each in fields(Endpoints)})
    except (OSError, ValueError, TypeError, KeyError):
        return None  # starting: the lock is taken before the addresses are known


def to_publisher(settings: CoreSettings) -> EventPublisher:
    """
    Return who is told of events: RabbitMQ, else `KEYNET_URL`, else what `keynet up` runs on this home, else nobody yet.

    Raises:
        MissingDependency: It is RabbitMQ, and pika is not installed.
        SettingsInvalid: It is RabbitMQ, and the certificates its address names cannot be read.

    """
    if settings.rabbit_url is not None:
        from keynet_core._rabbit_address import RabbitAddress
        from keynet_core._rabbit_publisher import RabbitPublisher

        return RabbitPublisher(address=RabbitAddress.from_url(settings.rabbit_url), topic=settings.rabbit_topic)
    from keynet_core._publishing import HttpPublisher, Nowhere

    home = settings.state_directory
    running = read_endpoints(home)
    url = settings.url or (running.server if running else None)
    if url is None:
        return Nowhere()
    token = settings.token
    if token is None and running is not None and url == running.server:
        token = _read_token(home)
    return HttpPublisher(url=url, token=token)


def _read_token(home: Path) -> Secret | None:
    try:
        text = (home / "run" / "token").read_text().strip()
    except FileNotFoundError:
        return None
    return Secret(text) if text else None
