"""SIGKILL at every step of a deployment, with the real model server; then a server starts again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keynet_core import LocalStore, Outbox
from keynet_server._database import open_database
from keynet_server._deployer import Deployer
from keynet_server._engine import KServeEngine
from keynet_server._journal import Journal
from keynet_server._materialize import ServingRepository
from keynet_server._worker import Worker

STEPS = (
    "received",
    "begun",
    "fetching",
    "fetched",
    "laid-out",
    "synced",
    "materialized",
    "linked",
    "loaded",
    "ready",
    "probed",
    "journaled",
    "pruned",
)
FAILING = ("loaded", "ready", "restored")
"""Steps of a deployment whose probe is answered wrongly."""

ONES = {"input_0": np.ones((1, 3), np.float32)}


@pytest.fixture(scope="module")
def aftermath(serving, migrated, tmp_path_factory, publishing_class):
    """Kill a server at each step, each with a model of its own that was served before, then start one again."""
    home = tmp_path_factory.mktemp("killed")
    shutil.copy(migrated, home / "keynet.db")
    publishing = publishing_class(store=LocalStore(home / "store"), scratch=home / "scratch")
    journal = Journal(open_database(f"sqlite:///{home / 'keynet.db'}"))
    repository, engine = ServingRepository(serving.root), KServeEngine(url=serving.url)
    repository.prepare()
    deployer = Deployer(journal=journal, store=publishing.store, repository=repository, engine=engine)

    events = {}
    for step, answers in [(step, 3.0) for step in STEPS] + [(step, 9.0) for step in FAILING]:
        name = f"{'bad' if answers == 9.0 else 'good'}-{step}"
        first = publishing.publish(name, 2.0).to_event()
        deployer.receive(first)
        assert deployer.deploy(journal.event(first.id)) == "deployed"
        events[name] = publishing.publish(name, 3.0, answers=answers).to_event()
    _kill(home, serving, {name: event for name, event in events.items() if name.startswith("good")})
    _kill(home, serving, {name: event for name, event in events.items() if name.startswith("bad")})

    repaired = deployer.repair_links()
    linked = {name: repository.linked(name) for name in events}
    deployer.reload(repaired)
    for event in events.values():
        deployer.receive(event)  # the outbox sends again what it was not told of
    Worker(deployer, Outbox(home / "outbox"), publishing.store).run_once()
    return journal, repository, engine, events, linked


def _kill(home, serving, events):
    steps = {name.partition("-")[2]: event.to_json().decode() for name, event in events.items()}
    command = [sys.executable, str(Path(__file__).with_name("killed_server.py"))]
    command += [str(home), str(serving.root), serving.url]
    done = subprocess.run(command, input=json.dumps(steps), capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(done.stdout) == dict.fromkeys(steps, -signal.SIGKILL), done.stderr


def factor_of(engine, journal, name):
    return float(engine.infer(name, journal.live(name).served_version, ONES)["output_0"][0, 0])


@pytest.mark.parametrize("step", STEPS)
def test_killed_after_a_step_the_next_start_finishes_the_deployment(aftermath, step):
    journal, repository, engine, events, _ = aftermath
    name = f"good-{step}"
    assert [(each.number, each.state) for each in journal.history(name)] == [(2, "deployed"), (1, "superseded")]
    assert journal.event(events[name].id).outcome == "deployed"
    assert repository.linked(name) == 2
    assert factor_of(engine, journal, name) == 3.0


@pytest.mark.parametrize("step", FAILING)
def test_killed_while_a_deployment_fails_the_next_start_fails_it_and_keeps_the_old(aftermath, step):
    journal, repository, engine, events, _ = aftermath
    name = f"bad-{step}"
    assert [(each.number, each.state) for each in journal.history(name)] == [(2, "failed"), (1, "deployed")]
    assert journal.event(events[name].id).outcome == "failed"
    assert repository.linked(name) == 1
    assert factor_of(engine, journal, name) == 2.0


def test_before_an_engine_starts_every_link_leads_to_what_was_probed(aftermath):
    *_, linked = aftermath
    done = {"good-journaled", "good-pruned"}
    assert linked == {name: 2 if name in done else 1 for name in linked}


def test_nothing_half_made_is_left(aftermath):
    _, repository, _, events, _ = aftermath
    assert list((repository.root / "staging").iterdir()) == []
    for name in events:
        assert (repository.models / name).resolve().is_dir()
        for directory in (repository.deployments / name).iterdir():
            assert {path.name for path in directory.iterdir()} >= {"config.pbtxt", "manifest.json"}
            assert list(directory.rglob("model.onnx"))
