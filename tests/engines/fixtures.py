"""
The engines as fixtures: each starts when a test first asks for it, and ends with the session.

An engine that a test killed and left dead is started again before the next test.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

import pytest

from engines._engine import Engine
from engines.ceph import Ceph
from engines.postgres import Postgres
from engines.rabbitmq import Broker
from engines.swift import Swift
from engines.triton import Triton, TritonServer

if TYPE_CHECKING:
    from collections.abc import Iterator

E = TypeVar("E", bound=Engine)
STARTED = pytest.StashKey[list[Engine]]()


def _running(kind: type[E], config: pytest.Config) -> Iterator[E]:
    skip_without(kind)
    with _kept_running(kind(), config) as engine:
        yield engine


@contextlib.contextmanager
def _kept_running(engine: E, config: pytest.Config) -> Iterator[E]:
    started = config.stash.setdefault(STARTED, [])
    with engine:
        started.append(engine)
        try:
            yield engine
        finally:
            started.remove(engine)


def skip_without(kind: type[Engine]) -> None:
    """Skip the test when the engine is not installed; with CI=true, conftest.py makes that a failure."""
    missing = kind.is_installed()
    if missing is not None:
        pytest.skip(f"needs {kind.NAME}: make engines ({missing})")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start again what an earlier test left dead."""
    for engine in item.config.stash.get(STARTED, []):
        engine.start()


@pytest.fixture(scope="session")
def postgresql(pytestconfig: pytest.Config) -> Iterator[Postgres]:
    """Run a PostgreSQL server: `.database()` is the URL of a new, empty database."""
    yield from _running(Postgres, pytestconfig)


@pytest.fixture(scope="session")
def rabbitmq(pytestconfig: pytest.Config) -> Iterator[Broker]:
    """Run a RabbitMQ broker: `.vhost()` is the URL of a new virtual host."""
    yield from _running(Broker, pytestconfig)


@pytest.fixture(scope="session")
def ceph(pytestconfig: pytest.Config) -> Iterator[Ceph]:
    """Run S3 as Ceph has it: `.environ()` are the variables, `.bucket()` is the name of a new bucket."""
    yield from _running(Ceph, pytestconfig)


@pytest.fixture(scope="session")
def swift(pytestconfig: pytest.Config) -> Iterator[Swift]:
    """Run S3 as OpenStack Swift has it, the second opinion."""
    yield from _running(Swift, pytestconfig)


@pytest.fixture(scope="session")
def triton(pytestconfig: pytest.Config) -> Triton:
    """Offer NVIDIA Triton: `with triton.serve(repository) as server:` starts one."""
    skip_without(TritonServer)
    return Triton(lambda server: _kept_running(server, pytestconfig))
