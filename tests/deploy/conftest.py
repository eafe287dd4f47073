"""A new PostgreSQL, and a cluster: everything of compose.yaml but the keynet server."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack, contextmanager

import pytest

from deploy.rehearsal import OURS, Rehearsal
from engines.fixtures import skip_without
from engines.postgres import Postgres

SUPERUSER, PASSWORD = "postgres", "of-the-superuser"


@contextmanager
def start_postgresql():
    """Yield where a new PostgreSQL is, as libpq's variables say it."""
    import psycopg

    skip_without(Postgres)
    with Postgres() as server:
        address = {"host": "127.0.0.1", "port": str(server.port)}
        plain = server.url.replace("+psycopg", "", 1)
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {SUPERUSER} SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
        # The role that the engine was made with has the name of one of ours.
        with psycopg.connect(**address, dbname="postgres", user=SUPERUSER, password=PASSWORD, autocommit=True) as own:
            own.execute("ALTER ROLE keynet RENAME TO engine")
        yield {"PGHOST": address["host"], "PGPORT": address["port"], "PGPASSWORD": PASSWORD}


@pytest.fixture(scope="module")
def new_postgresql():
    with start_postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def cluster(ceph, rabbitmq, triton, tmp_path_factory):
    with ExitStack() as running:
        postgresql = running.enter_context(start_postgresql())
        made = Rehearsal(tmp_path_factory.mktemp("cluster"), ceph=ceph, rabbitmq=rabbitmq, postgresql=postgresql)
        made.make_databases()
        made.make_buckets()
        running.enter_context(made.virtual_host())
        made.model_server = running.enter_context(made.triton(triton))
        running.enter_context(made.mlflow())
        yield made


@pytest.fixture
def at_home(tmp_path):
    """Run a command in a directory of its own, with nothing set for keynet or an engine but what is given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}

    def run(*command, **environ):
        return subprocess.run(
            command, cwd=tmp_path, env=kept | environ, capture_output=True, text=True, timeout=300, check=False
        )

    return run
