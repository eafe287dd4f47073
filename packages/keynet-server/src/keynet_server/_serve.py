"""The server process: settings to services, services to HTTP. Run as `python -m keynet_server`."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, asynccontextmanager, contextmanager
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
from keynet_server._errors import AlreadyUp
from keynet_server._settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

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
        StoreUnsupported: No engine is known for the store.
        SettingsInvalid: It is not known where the model server is.

    """
    from keynet_server._app import Services
    from keynet_server._database import migrate, open_database
    from keynet_server._deployer import Deployer
    from keynet_server._engine import KServeEngine
    from keynet_server._journal import Journal
    from keynet_server._materialize import ServingRepository
    from keynet_server._worker import Worker

    if settings.triton_url is None:
        raise SettingsInvalid("it is not known where the model server is", hint="set TRITON_URL, or run keynet up")
    home = make_private_directory(settings.state_directory)
    database = open_database(settings.journal_url)
    migrate(database, home / "run" / "migrate.lock")
    store = open_store(settings.store_url)
    deployer = Deployer(
        journal=Journal(database),
        store=store,
        repository=ServingRepository(settings.serving_root),
        engine=KServeEngine(url=settings.triton_url),
    )
    worker = Worker(deployer, Outbox(home / "outbox"), store)
    return Services(deployer=deployer, worker=worker, token=token, links=links)


def start(services: Services) -> None:
    """Put right what a crash left, then act on events."""
    repaired = services.deployer.repair_links()
    for name in repaired:
        log.info("the link of %s was put back to what the journal calls live", name)
    services.worker.start(repaired)


def with_life(services: Services) -> FastAPI:
    """Return the application, whose worker runs for as long as it does."""
    from keynet_server._app import create_app

    app = create_app(services)

    @asynccontextmanager
    async def living(_app: FastAPI) -> AsyncIterator[None]:
        start(services)
        yield
        if not services.worker.stop():
            log.warning("a deployment was under way; the next start finishes it")

    app.router.lifespan_context = living
    return app


@contextmanager
def alone_on(home: Path) -> Iterator[None]:
    """
    Hold a home's journal and serving repository: a second server would take away what this one is building.

    Raises:
        AlreadyUp: Another server holds them, and does not end.

    """
    lock = make_private_directory(home) / "run" / "server.lock"
    with ExitStack() as held:
        try:
            held.enter_context(locked(lock, timeout_s=_ENDING_S))
        except LockTimeout as error:
            raise AlreadyUp(
                f"another keynet server runs on {home}", hint="use it, or give this one a KEYNET_HOME of its own"
            ) from error
        yield


def main(arguments: list[str]) -> None:
    """Serve HTTP on `HOST PORT [TRACKING_URL]` until SIGTERM or SIGINT."""
    import uvicorn

    from keynet_server._pages import Links

    host, port, *rest = arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    settings = read_settings(ServerSettings, os.environ)
    if settings.token is None:
        raise SettingsInvalid("the server has no token to compare with", hint="set KEYNET_TOKEN, or run keynet up")
    links = Links(tracking=rest[0] if rest else None, serving=settings.triton_url)
    with alone_on(settings.state_directory):
        config = uvicorn.Config(
            with_life(build_services(settings, settings.token, links)),
            host=host,
            port=int(port),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=5,
            limit_concurrency=256,
        )
        uvicorn.Server(config).run()
