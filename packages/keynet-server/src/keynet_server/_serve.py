"""The server process: settings to services, services to HTTP. Run as `python -m keynet_server`."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from keynet_core import (
    LockTimeout,
    Outbox,
    SettingsInvalid,
    locked,
    make_private_directory,
    open_store,
    read_settings,
)
from keynet_server._errors import AlreadyUp, PortTaken
from keynet_server._running import announced, forget_address, name_of, server_lock
from keynet_server._settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import uvicorn
    from fastapi import FastAPI

    from keynet_core import Secret
    from keynet_server._app import Services
    from keynet_server._pages import Links

log = logging.getLogger("keynet.server")

_ENDING_S = 7.0
"""How long a server may take to end after the `keynet up` that ran it was killed."""


def build_services(settings: ServerSettings, token: Secret, links: Links) -> Services:
    """
    Return everything the routes need; the database is brought up to date and the links are repaired.

    Raises:
        JournalUnavailable: The database cannot be used.
        StoreUnsupported: No engine is known for the store, or for the serving repository.
        SettingsInvalid: It is not known where the model server is, or packages stand where it reads models.
        RepositoryFailed: The serving repository cannot be written.
        MissingDependency: Events come from RabbitMQ, and aio-pika is not installed.

    """
    from keynet_server._app import Services
    from keynet_server._broker import Broker
    from keynet_server._claims import open_claims
    from keynet_server._consumer import Consumer
    from keynet_server._database import migrate, open_database
    from keynet_server._deployer import Deployer
    from keynet_server._engine import KServeEngine
    from keynet_server._http import LOOPBACK_HOSTS
    from keynet_server._journal import Journal
    from keynet_server._repository import check_apart, open_repository
    from keynet_server._worker import Worker

    if settings.triton_url is None:
        raise SettingsInvalid("it is not known where the model server is", hint="set TRITON_URL, or run keynet up")
    broker = Broker.of(settings)
    home = make_private_directory(settings.state_directory)
    database = open_database(settings.journal_url)
    migrate(database, home / "run" / "migrate.lock")
    store = open_store(settings.store_url)
    check_apart(store.url, settings.serving_url)
    repository = open_repository(settings.serving_url, settings.serving_root / "staging")
    repository.prepare()
    deployer = Deployer(
        journal=Journal(database),
        store=store,
        repository=repository,
        engine=KServeEngine(url=settings.triton_url),
        claims=open_claims(database),
    )
    worker = Worker(deployer, Outbox(home / "outbox"), store)
    consumer = Consumer(broker, deployer.receive, on_taken=worker.wake) if broker is not None else None
    hosts = LOOPBACK_HOSTS | set(settings.allowed_hosts)
    return Services(deployer=deployer, worker=worker, token=token, links=links, hosts=hosts, consumer=consumer)


def with_life(services: Services) -> FastAPI:
    """
    Put right what a crash left, and return the application, which acts on events for as long as it runs.

    Raises:
        RepositoryFailed: The serving repository cannot be read or written.
        JournalUnavailable: The database cannot be used.

    """
    from keynet_server._app import create_app

    app = create_app(services)
    repaired = services.deployer.repair_links()  # now: what the life of an application raises, uvicorn only logs
    for name in repaired:
        log.info("the link of %s was put back to what the journal calls live", name)

    @asynccontextmanager
    async def living(_app: FastAPI) -> AsyncIterator[None]:
        services.worker.start(repaired)
        if services.consumer is not None:
            services.consumer.start()
        yield
        if services.consumer is not None and not services.consumer.stop():
            log.warning("an event was being taken; the broker delivers it again")
        if not services.worker.stop():
            log.warning("a deployment was under way; the next start finishes it")

    app.router.lifespan_context = living
    return app


@contextmanager
def alone_on(home: Path, database: Path | None = None) -> Iterator[None]:
    """
    Hold a home, and a database that is a file: a second server would take away what this one is building.

    Args:
        home: The state of this server.
        database: The journal's file, when it is one; servers agree on who acts on a model in PostgreSQL only.

    Raises:
        AlreadyUp: Another server holds them, and does not end.

    """
    lock = server_lock(make_private_directory(home))
    with ExitStack() as held:
        try:
            held.enter_context(locked(lock, timeout_s=_ENDING_S))
        except LockTimeout as error:
            raise AlreadyUp(
                f"another keynet server runs on {home}", hint="use it, or give this one a KEYNET_HOME of its own"
            ) from error
        try:
            if database is not None:
                held.enter_context(locked(database.with_name(f"{database.name}.lock"), timeout_s=_ENDING_S))
        except LockTimeout as error:
            raise AlreadyUp(
                f"another keynet server has its journal in {database}",
                hint="several servers share a journal in PostgreSQL: set KEYNET_DATABASE_URL",
            ) from error
        yield


def main(arguments: list[str]) -> None:
    """Serve HTTP on `HOST PORT [TRACKING_URL]`, as `keynet up` asks for it."""
    host, port, *rest = arguments
    serve(host, int(port), tracking=rest[0] if rest else None)


def serve(host: str, port: int, *, tracking: str | None) -> None:
    """
    Serve HTTP until SIGTERM or SIGINT; everything else is read from the environment.

    Args:
        host: The address to listen on.
        port: The port to listen on.
        tracking: Where people find MLflow; the landing page shows it.

    Raises:
        AlreadyUp: Another server runs on the same home.
        PortTaken: Another program listens on the port.
        SettingsInvalid: A variable is missing, or cannot be used.

    """
    import uvicorn

    from keynet_server._database import sqlite_file
    from keynet_server._pages import Links
    from keynet_server._ports import require_free

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for chatty in ("alembic", "botocore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for chatty in ("aio_pika", "aiormq"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)  # the consumer says once what they say each time
    settings = read_settings(ServerSettings, os.environ)
    if settings.token is None:
        raise SettingsInvalid("the server has no token to compare with", hint="set KEYNET_TOKEN, or run keynet up")
    links = Links(tracking=tracking, serving=settings.triton_url)
    home = settings.state_directory
    with alone_on(home, sqlite_file(settings.journal_url)):
        forget_address(home)
        require_free(host, port)  # not before: a server that ends listens as long as it holds the home
        services = build_services(settings, settings.token, links)
        config = uvicorn.Config(
            with_life(replace(services, hosts={*services.hosts, name_of(host)})),
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=5,
            limit_concurrency=256,
        )
        with announced(home, host, port):
            _run(uvicorn.Server(config))


def _run(server: uvicorn.Server) -> None:
    try:
        server.run()
    except SystemExit as error:
        if server.started or server.lifespan.should_exit:
            raise
        where = f"{server.config.host}:{server.config.port}"
        raise PortTaken(
            f"{where} was taken while the server started",
            hint=f"ss -ltnp 'sport = :{server.config.port}' names who listens; or give --port",
        ) from error
