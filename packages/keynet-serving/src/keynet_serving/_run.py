"""The sockets and threads around a `ModelServer`: uvicorn and gRPC, started together, stopped within two seconds."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keynet_core import MissingDependency, SettingsInvalid
from keynet_serving._grpc import GrpcServer
from keynet_serving._http import HttpApp, HttpLimits
from keynet_serving._http_connection import HttpConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

    import uvicorn
    from uvicorn.server import ServerState

    from keynet_serving._server import ModelServer

_BACKLOG = 2048
_START_S = 10.0
_GRACE_S = 1.0
_CONTROL_WORKERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenOptions:
    """Where a server listens and what it takes."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    may_be_remote: bool = False
    """Whether a host other than this machine's loopback is meant."""
    limits: HttpLimits = field(default_factory=HttpLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where a running server can be reached, each `host:port`."""

    http: str
    grpc: str


@contextlib.contextmanager
def listening(server: ModelServer, options: ListenOptions) -> Iterator[Addresses]:
    """
    Serve over HTTP and gRPC while the context is open.

    Raises:
        SettingsInvalid: The host is not loopback and nobody said that it may be.
        OSError: A port cannot be had.
        MissingDependency: uvicorn is not installed.
    """
    check_host(options)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(options.host, options.http_port))
        grpc_server = GrpcServer(
            server,
            address=_join(options.host, options.grpc_port),
            max_body_bytes=options.limits.max_body_bytes,
        )
        stack.callback(grpc_server.stop, _GRACE_S / 4)
        stack.enter_context(_http(server, listener, options))
        yield Addresses(http=_join(options.host, listener.getsockname()[1]), grpc=_join(options.host, grpc_server.port))


def check_host(options: ListenOptions) -> None:
    """
    Refuse to be reachable from other machines by accident.

    Raises:
        SettingsInvalid: The host is not loopback and nobody said that it may be.
    """
    if options.may_be_remote or _is_loopback(options.host):
        return
    raise SettingsInvalid(
        f"host {options.host!r} is reachable from other machines, and this server asks nobody who they are",
        hint="keep 127.0.0.1, or say --allow-remote",
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(f"HTTP cannot listen on {_join(host, port)}: {error.strerror}") from error


@contextlib.contextmanager
def _http(server: ModelServer, listener: socket.socket, options: ListenOptions) -> Iterator[None]:
    inference = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="keynet-serving-run")
    control = ThreadPoolExecutor(_CONTROL_WORKERS, thread_name_prefix="keynet-serving-control")
    app = HttpApp(
        server,
        inference=inference,
        control=control,
        limits=options.limits,
        is_local=_is_loopback(options.host),
    )
    http = _to_uvicorn(app)
    thread = threading.Thread(target=http.run, kwargs={"sockets": [listener]}, name="keynet-serving-http", daemon=True)
    thread.start()
    try:
        _await_start(http, thread)
        yield
    finally:
        http.should_exit = True
        thread.join(_GRACE_S + 0.3)
        http.force_exit = True
        for pool in (inference, control):
            pool.shutdown(wait=False, cancel_futures=True)


def _to_uvicorn(app: HttpApp) -> uvicorn.Server:
    try:
        import httptools  # noqa: F401 -- needed by the first request, to be missed before it
        import uvicorn
    except ImportError as error:
        raise MissingDependency(
            f"serving over HTTP needs {error.name}", hint="pip install 'keynet-serving[server]'"
        ) from error

    def connect(*, server_state: ServerState, **_: object) -> HttpConnection:
        return HttpConnection(app, server_state.connections, server_state.tasks)

    config = uvicorn.Config(
        _no_application,
        http=connect,  # type: ignore[arg-type]  # a class to uvicorn's types, only called by its code
        interface="asgi3",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(_GRACE_S),
    )
    return uvicorn.Server(config)


async def _no_application(_scope: object, _receive: object, _send: object) -> None:
    """Stand where uvicorn wants an application: `HttpConnection` answers without one."""


def _await_start(http: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + _START_S
    while not http.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise OSError("the HTTP server did not start")
        thread.join(0.005)
