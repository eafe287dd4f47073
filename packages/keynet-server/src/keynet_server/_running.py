"""
How the server of a home is run, by `keynet up` or alone, and where it and its model server are.

A server alone writes its address into the home, for commands on the same machine or in the same container; it is
believed while the server holds the home, and on the host that wrote it: a volume may be shared by containers.
"""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from keynet_core import is_held, make_private_directory, read_endpoints, up_lock, write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keynet_core import Endpoints
    from keynet_server._settings import ServerSettings

UP, ALONE = "keynet up", "keynet server"
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound, but asked
_EMBEDDED = ("mlflow", "keynet_serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What runs, as far as this process can know."""

    start: str
    """The command that starts it, or would."""

    up: Endpoints | None = None
    """What `keynet up` runs on this home."""

    server: str | None = None
    """The address of the keynet server."""

    serving: str | None = None
    """The HTTP address of the model server."""

    is_held: bool = False
    """Whether a server has this home."""


def find_running(settings: ServerSettings) -> Running:
    """Return what runs; what does not, is to be started as the settings are made for."""
    home = settings.state_directory
    up = read_endpoints(home)
    if up is not None:
        return Running(start=UP, up=up, server=up.server, serving=up.serving, is_held=True)
    if is_held(up_lock(home)):  # it is starting, or what it started is ending
        return Running(start=UP, is_held=True)
    has_server = is_held(server_lock(home))
    server = settings.url or read_address(home)
    is_alone = has_server or is_set_up_alone(settings)
    return Running(start=ALONE if is_alone else UP, server=server, serving=settings.triton_url, is_held=has_server)


def is_set_up_alone(settings: ServerSettings) -> bool:
    """Return whether a server without the engines is meant: it is elsewhere, could start, or they are not here."""
    could_start = settings.triton_url is not None and settings.token is not None
    return could_start or settings.url is not None or any(find_spec(module) is None for module in _EMBEDDED)


def server_lock(home: Path) -> Path:
    """Return the file whose lock a server holds for as long as it runs on a home."""
    return home / "run" / "server.lock"


@contextmanager
def announced(home: Path, host: str, port: int) -> Iterator[None]:
    """Tell other processes of this home, and of this user, where the server that holds it listens: tokens go there."""
    told = {"url": f"http://{name_of(host)}:{port}", "host": socket.gethostname()}
    make_private_directory(home / "run").chmod(0o700)  # a lock may have made it before
    write_durably(_address_file(home), json.dumps(told).encode(), mode=0o600)
    try:
        yield
    finally:
        forget_address(home)


def forget_address(home: Path) -> None:
    """Take away what an earlier server left, also one that SIGTERM ended: from now on this one holds the home."""
    _address_file(home).unlink(missing_ok=True)


def name_of(host: str) -> str:
    """Return what a server that listens on an address is called in URLs of this machine."""
    name = _EVERYWHERE.get(host, host)
    return f"[{name}]" if ":" in name else name


def read_address(home: Path) -> str | None:
    """Return where the server that holds a home listens, or None; what a killed one left is not believed."""
    try:
        told = json.loads(_address_file(home).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(told, dict) or told.get("host") != socket.gethostname():
        return None
    url = told.get("url")
    return url if isinstance(url, str) and is_held(server_lock(home)) else None


def _address_file(home: Path) -> Path:
    return home / "run" / "server.json"
