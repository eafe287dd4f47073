"""`keynet up`: everything embedded, on one home, until it is told to stop."""

from __future__ import annotations

import os
import secrets
import signal
import threading
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from keynet_core import (
    Endpoints,
    LockTimeout,
    Secret,
    locked,
    make_private_directory,
    read_endpoints,
    up_lock,
    write_endpoints,
)
from keynet_server._children import Children
from keynet_server._errors import AlreadyUp
from keynet_server._ports import HOST, reserved_ports
from keynet_server._programs import mlflow_program, require_engines, server_program, serving_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from keynet_server._children import Child
    from keynet_server._ports import Ports
    from keynet_server._settings import ServerSettings

_TEND_S = 0.5


def run_up(
    settings: ServerSettings,
    asked: Mapping[str, int | None],
    environ: Mapping[str, str],
    *,
    say: Callable[[str], None],
    announce: Callable[[Endpoints], None],
) -> None:
    """
    Start the engines, announce their addresses, and keep them running until SIGINT, SIGTERM or SIGHUP.

    Args:
        settings: What was read from `environ`.
        asked: Port options that were given, by name.
        environ: The surroundings the engines get, after what would mislead them is taken out.
        say: Told what happens, a line at a time.
        announce: Told the addresses once, when everything is ready.

    Raises:
        AlreadyUp: Another `keynet up` runs on the home.
        PortTaken: A port that was asked for is in use.
        ChildFailed: An engine could not be started.
        MissingDependency: An engine is not installed.

    """
    require_engines()
    home = make_private_directory(settings.state_directory)
    with _alone_on(home), _told_to_stop() as stop, ExitStack() as cleanup:
        token = settings.token or Secret(secrets.token_urlsafe(32))
        ports = cleanup.enter_context(reserved_ports(asked, environ, say))
        children = Children(say)
        cleanup.callback(children.stop)
        _start(children, home, ports, environ, token, say=say, stop=stop)
        if stop.is_set():
            return
        endpoints = _endpoints_of(ports)
        write_endpoints(home, endpoints, token)
        cleanup.callback(_forget_endpoints, home)
        announce(endpoints)
        while not stop.wait(_TEND_S):
            children.tend()
        say("stopping")


def _start(
    children: Children,
    home: Path,
    ports: Ports,
    environ: Mapping[str, str],
    token: Secret,
    *,
    say: Callable[[str], None],
    stop: threading.Event,
) -> None:
    def wait_for(child: Child) -> None:
        seconds = child.wait_until_ready(lambda: not stop.is_set())
        if not stop.is_set():
            say(f"{child.program.name} is ready after {seconds:.1f} s")

    mlflow = children.start(mlflow_program(home, ports, environ))
    # The server repairs the links of the serving repository before the model server reads them.
    wait_for(children.start(server_program(home, ports, environ, token)))
    wait_for(children.start(serving_program(home, ports, environ)))
    wait_for(mlflow)


def _endpoints_of(ports: Ports) -> Endpoints:
    return Endpoints(
        server=f"http://{HOST}:{ports.server}",
        tracking=f"http://{HOST}:{ports.mlflow}",
        serving=f"http://{HOST}:{ports.serving}",
        serving_grpc=f"grpc://{HOST}:{ports.grpc}",
        pid=os.getpid(),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@contextmanager
def _alone_on(home: Path) -> Iterator[None]:
    with ExitStack() as held:
        try:
            held.enter_context(locked(up_lock(home), timeout_s=0.3))
        except LockTimeout as error:
            raise _already_up(home) from error
        _forget_endpoints(home)  # of a run that was killed; with the lock held again they would be believed
        yield


def _already_up(home: Path) -> AlreadyUp:
    running = read_endpoints(home)
    if running is None:
        return AlreadyUp(
            f"another keynet up is starting on {home}", hint="wait for it, or give --home another directory"
        )
    return AlreadyUp(
        f"keynet up runs on {home} already, since {running.started_at}: server {running.server}, "
        f"MLflow {running.tracking}, model server {running.serving} and {running.serving_grpc}",
        hint=f"use it, or stop it: kill {running.pid}",
    )


def _forget_endpoints(home: Path) -> None:
    for name in ("endpoints.json", "token"):
        (home / "run" / name).unlink(missing_ok=True)


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    told = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: told.set())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def without_directions(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the addresses that lead clients to other engines than the embedded ones."""
    return {name: value for name, value in environ.items() if name not in {"KEYNET_URL", "TRITON_URL"}}
