"""SIGKILL at every step of a deployment, with each engine on each kind of repository; then a server starts again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from keynet_core import LocalStore, Outbox, to_model_name
from keynet_server._database import open_database
from keynet_server._deployer import Deployer
from keynet_server._engine import KServeEngine
from keynet_server._journal import Journal
from keynet_server._object_repository import ObjectRepository
from keynet_server._unload import UnloadRequested
from keynet_server._worker import Worker

if TYPE_CHECKING:
    from keynet_core import Event
    from keynet_server._repository import ServingRepository

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

UNLOADING = ("unlinked", "unloaded")

ON_REAL = {"synced", "linked", "loaded", "journaled", "restored", "unlinked"}
"""What is killed with the real Triton, which takes longer to load."""


def of(stage, steps):
    return [step for step in steps if "Triton" not in stage or step in ON_REAL]


ONES = {"input_0": np.ones((1, 3), np.float32)}


@dataclass(frozen=True)
class Aftermath:
    """What a server that started again made of what the killed ones left."""

    journal: Journal
    repository: ServingRepository
    engine: KServeEngine
    events: dict[str, Event]
    linked: dict[str, int | None]
    """Which deployments engines would have found before the server acted on an event."""
    aside: Path

    def names(self, kind):
        return [name for name in self.events if name.startswith(f"{kind}-")]

    def of(self, name):
        """Return what became of a model: its deployments, its last event, what is linked, and how it multiplies."""
        states = [(each.number, each.state) for each in self.journal.history(name)]
        outcome = self.journal.event(self.events[name].id).outcome
        return states, outcome, self.repository.linked(name), self._factor(name)

    def _factor(self, name):
        ready = [row.version for row in self.engine.index() if row.name == name and row.state == "READY"]
        answers = [float(self.engine.infer(name, version, ONES)["output_0"][0, 0]) for version in ready]
        return answers[0] if answers else None


@pytest.fixture(scope="module")
def aftermath(stage, migrated, tmp_path_factory, publishing_class):
    """Kill a server at each step, each with a model of its own that was served before, then start one again."""
    home = tmp_path_factory.mktemp("killed")
    shutil.copy(migrated, home / "keynet.db")
    publishing = publishing_class(store=LocalStore(home / "store"), scratch=home / "scratch")
    journal = Journal(open_database(f"sqlite:///{home / 'keynet.db'}"))
    repository, engine = stage.repository(), KServeEngine(url=stage.url)
    deployer = Deployer(journal=journal, store=publishing.store, repository=repository, engine=engine)

    events = {}
    for kind, steps in (("good", STEPS), ("bad", FAILING), ("gone", UNLOADING)):
        steps = of(stage.name, steps)  # noqa: PLW2901 - fewer of the same
        for name in (f"{kind}-{step}" for step in steps):
            first = publishing.publish(name, 2.0).to_event()
            deployer.receive(first)
            assert deployer.deploy(journal.event(first.id)) == "deployed"
            if kind == "gone":
                events[name] = UnloadRequested(model=to_model_name(name), who="ada", why=None).to_event()
            else:
                events[name] = publishing.publish(name, 3.0, answers=9.0 if kind == "bad" else 3.0).to_event()
        _kill(home, stage, {step: events[f"{kind}-{step}"] for step in steps})

    repaired = deployer.repair_links()
    linked = {name: repository.linked(name) for name in events}
    deployer.reload(repaired)
    for name, event in events.items():
        if not name.startswith("gone"):
            deployer.receive(event)  # the outbox sends again what it was not told of
    worker = Worker(deployer, Outbox(home / "outbox"), publishing.store)
    while worker.run_once():
        pass
    return Aftermath(journal, repository, engine, events, linked, stage.aside)


def _kill(home, stage, events):
    steps = {step: event.to_json().decode() for step, event in events.items()}
    command = [sys.executable, str(Path(__file__).with_name("killed_server.py"))]
    command += [str(home), stage.repository_url, str(stage.aside), stage.url]
    done = subprocess.run(command, input=json.dumps(steps), capture_output=True, text=True, timeout=180, check=False)
    assert json.loads(done.stdout) == dict.fromkeys(steps, -signal.SIGKILL), done.stderr


def test_killed_after_any_step_the_next_start_finishes_the_deployment(aftermath):
    names = aftermath.names("good")
    finished = ([(2, "deployed"), (1, "superseded")], "deployed", 2, 3.0)
    assert {name: aftermath.of(name) for name in names} == dict.fromkeys(names, finished)


def test_killed_while_a_deployment_fails_the_next_start_fails_it_and_keeps_the_old(aftermath):
    names = aftermath.names("bad")
    kept = ([(2, "failed"), (1, "deployed")], "failed", 1, 2.0)
    assert {name: aftermath.of(name) for name in names} == dict.fromkeys(names, kept)


def test_killed_while_a_model_is_unloaded_the_next_start_unloads_it(aftermath):
    names = aftermath.names("gone")
    gone = ([(1, "unloaded")], "unloaded", None, None)
    assert {name: aftermath.of(name) for name in names} == dict.fromkeys(names, gone)


def test_before_an_engine_starts_every_link_leads_to_what_was_probed(aftermath):
    done = {"good-journaled", "good-pruned"}
    assert aftermath.linked == {name: 2 if name in done else 1 for name in aftermath.linked}


def test_nothing_half_made_is_left(aftermath):
    repository = aftermath.repository
    assert repository.broken() == []
    assert set(repository.links()) & set(aftermath.events) == {
        name for name in aftermath.events if not name.startswith("gone")
    }
    if isinstance(repository, ObjectRepository):
        assert list(aftermath.aside.iterdir()) == []
        served = {tuple(key.split("/")[:2]) for key in repository.store.list("") if key.count("/") > 1}
        live = [aftermath.journal.live(name) for name in aftermath.events]
        assert served == {(each.model, each.served_version) for each in live if each}
        return
    assert list((repository.root / "staging").iterdir()) == []
    for name in aftermath.events:
        for directory in (repository.deployments / name).iterdir():
            assert {path.name for path in directory.iterdir()} >= {"config.pbtxt", "manifest.json"}
            assert list(directory.rglob("model.onnx"))
