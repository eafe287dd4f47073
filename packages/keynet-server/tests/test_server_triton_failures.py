"""The real Triton killed, started again, and shown what breaks it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from keynet_core import LocalStore, Outbox, to_model_name
from keynet_server._deployer import Deployer
from keynet_server._engine import KServeEngine
from keynet_server._errors import DeploymentPostponed, EngineRefused
from keynet_server._materialize import DirectoryRepository
from keynet_server._worker import Worker

ONES = {"input_0": np.ones((1, 3), np.float32)}
TIMES = to_model_name("times")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def server(triton, root):
    DirectoryRepository(root).prepare()
    with triton.serve(root / "models", "--disable-auto-complete-config") as server:
        yield server


@pytest.fixture
def engine(server):
    engine = KServeEngine(url=server.url)
    yield engine
    server.start()
    engine.unload(TIMES)


@pytest.fixture
def repository(root):
    repository = DirectoryRepository(root)
    yield repository
    repository.unlink(TIMES)


@pytest.fixture
def steps():
    """What is done after each step of the deployer."""
    return {}


@pytest.fixture
def deployer(journal, publishing, repository, engine, steps):
    def on_step(step):
        steps.get(step, lambda: None)()

    return Deployer(journal=journal, store=publishing.store, repository=repository, engine=engine, on_step=on_step)


@pytest.fixture
def received(deployer, publishing, journal):
    def received(factor, **options):
        event = publishing.publish(TIMES, factor, **options).to_event()
        deployer.receive(event)
        return journal.event(event.id)

    return received


def answer(engine, version):
    return float(engine.infer(TIMES, version, ONES)["output_0"][0, 0])


@pytest.mark.parametrize("step", ["linked", "loaded", "ready"])
def test_triton_killed_while_it_loads_waits_and_finds_the_old_one_until_it_can(
    deployer, received, engine, server, steps, home, step
):
    """After "linked" it dies at some point of the load; where does not matter to what comes of it."""
    assert deployer.deploy(received(2.0)) == "deployed"
    killer = threading.Timer(0.05, server.kill)
    steps[step] = killer.start if step == "linked" else server.kill
    event, journal = received(3.0), deployer.journal
    try:
        with pytest.raises(DeploymentPostponed, match="does not answer"):
            assert deployer.deploy(event) is None, journal.history(TIMES)[0].reason
    finally:
        steps.clear()
        killer.cancel()
        if killer.ident is not None:
            killer.join()  # it may still be killing what is started below
    assert journal.event(event.id).outcome is None
    assert "does not answer" in journal.history(TIMES)[0].reason
    server.start()
    assert deployer.ensure_served() == []
    assert answer(engine, "1") == 2.0
    worker = Worker(deployer, Outbox(home / "outbox"), LocalStore(home / "store"))
    while worker.run_once():
        pass
    assert journal.event(event.id).outcome == "deployed"
    assert answer(engine, "2") == 3.0
    assert not engine.is_ready(TIMES, "1")


def test_triton_that_starts_again_and_loads_all_it_finds_serves_what_is_live(
    triton, deployer, received, engine, root, server
):
    deployer.deploy(received(2.0))
    deployer.deploy(received(3.0))
    assert deployer.deploy(received(4.0, answers=9.0)) == "failed"
    with triton.serve(root / "models", "--load-model=*", "--disable-auto-complete-config") as another:
        assert answer(KServeEngine(url=another.url), "2") == 3.0


def test_a_link_that_points_nowhere_blinds_triton_until_it_is_repaired(deployer, received, engine, repository):
    deployer.deploy(received(2.0))
    ghost = repository.models / "ghost"
    ghost.symlink_to("../deployments/ghost/1")
    with pytest.raises(EngineRefused, match="ghost"):
        engine.index()
    assert deployer.repair_links() == ["ghost"]
    assert [row.state for row in engine.index() if row.name == TIMES].count("READY") == 1


def test_what_a_rollback_finds_gone_is_fetched_again(deployer, received, repository, engine, journal):
    for factor in (1.0, 2.0, 3.0, 4.0, 5.0):
        deployer.deploy(received(factor, version=str(int(factor))))
    assert not (repository.deployments / TIMES / "1").exists()
    event = deployer.request_rollback(TIMES, to=1, who="ada", why=None)
    assert deployer.deploy(journal.event(event.id)) == "deployed"
    assert answer(engine, "1") == 1.0
    assert not engine.is_ready(TIMES, "5")


def test_triton_that_polls_refuses_to_be_told_and_says_so(triton, publishing, journal, tmp_path):
    repository = DirectoryRepository(tmp_path / "polled")
    repository.prepare()
    with triton.serve(repository.models, "--model-control-mode=poll") as server:
        engine = KServeEngine(url=server.url)
        store = LocalStore(publishing.store.root)
        deployer = Deployer(journal=journal, store=store, repository=repository, engine=engine)
        event = publishing.publish(TIMES, 2.0).to_event()
        deployer.receive(event)
        assert deployer.deploy(journal.event(event.id)) == "failed"
    assert "polling is enabled" in journal.history(TIMES)[0].engine_answer
    assert repository.links() == []
