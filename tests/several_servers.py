"""Servers on one PostgreSQL, one repository and one engine, as in a cluster: a fixture of the server's tests."""

from __future__ import annotations

import pytest

from keynet_core import Outbox
from keynet_server._claims import open_claims
from keynet_server._database import migrate, open_database
from keynet_server._deployer import Deployer
from keynet_server._journal import Journal
from keynet_server._worker import Worker


@pytest.fixture
def new_server(postgresql, publishing, repository, engine, home, tmp_path):
    """Make servers that share everything but their connections."""
    url, opened = postgresql.database(), []

    def new_server(on_step=lambda _step: None):
        database = open_database(url)
        opened.append(database)
        migrate(database, tmp_path / "migrate.lock")
        deployer = Deployer(
            journal=Journal(database),
            store=publishing.store,
            repository=repository,
            engine=engine,
            claims=open_claims(database),
            on_step=on_step,
        )
        return Worker(deployer, Outbox(home / "outbox"), publishing.store)

    yield new_server
    for database in opened:
        database.dispose()
