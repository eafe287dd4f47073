"""The whole deployer against the embedded model server and the real Triton, on a directory and on objects."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from keynet_core import KeynetError, to_model_name
from keynet_server._deployer import Deployer
from keynet_server._engine import KServeEngine

ONES = {"input_0": np.ones((1, 3), np.float32)}
CONFIG = """name: "{name}" backend: "{backend}" max_batch_size: {batch}
input {{ name: "input_0" data_type: {dtype} dims: [3] }} output {{ name: "output_0" data_type: TYPE_FP32 dims: [3] }}
instance_group {{ count: 1 }} version_policy {{ latest {{ num_versions: {versions} }} }}
"""
names = (f"model-{number}" for number in itertools.count(1))


class Desk:
    """What an operator has: one model, and everything that acts on it."""

    def __init__(self, stage, journal, publishing):
        self.name = to_model_name(next(names))
        self.journal = journal
        self.publishing = publishing
        self.repository = stage.repository()
        self.engine = KServeEngine(url=stage.url)
        self.deployer = Deployer(journal=journal, store=stage.store, repository=self.repository, engine=self.engine)

    def publish(self, factor, *, version=None, **options):
        return self.act(self.publishing.publish(self.name, factor, version=version, **options).to_event())

    def publish_with(self, factor, *, version=None, backend="onnxruntime", batch=8, dtype="TYPE_FP32", versions=1):
        config = CONFIG.format(name=self.name, backend=backend, batch=batch, dtype=dtype, versions=versions)
        return self.publish(factor, version=version, files={"config.pbtxt": config.encode()})

    def act(self, event):
        self.deployer.receive(event)
        return self.deployer.deploy(self.journal.event(event.id))

    def roll_back(self, to=None):
        event = self.deployer.request_rollback(self.name, to=to, who="ada", why=None)
        return self.deployer.deploy(self.journal.event(event.id))

    def unload(self):
        event = self.deployer.request_unload(self.name, who="ada", why="it is not asked any more")
        return self.deployer.deploy(self.journal.event(event.id))

    def answers(self):
        """Return what each version answers, and under "" what answers when none is asked for."""
        ready = [row.version for row in self.engine.index() if row.name == self.name and row.state == "READY"]
        found = {version: self._ask(version) for version in ready}
        return found | ({"": self._ask("")} if ready else {})

    def _ask(self, version):
        if version:
            return float(self.engine.infer(self.name, version, ONES)["output_0"][0, 0])
        import httpx2

        tensor = {"name": "input_0", "shape": [1, 3], "datatype": "FP32", "data": [1, 1, 1]}
        answer = httpx2.post(f"{self.engine.url}/v2/models/{self.name}/infer", json={"inputs": [tensor]})
        return float(answer.json()["outputs"][0]["data"][0])

    def states(self):
        return [each.state for each in reversed(self.journal.history(self.name))]

    def close(self):
        self.repository.unlink(self.name)
        self.engine.unload(self.name)


@pytest.fixture
def desk(stage, journal, publishing):
    publishing.store = stage.store
    desk = Desk(stage, journal, publishing)
    yield desk
    desk.close()


def test_a_published_model_answers(desk):
    assert desk.publish(2.0, version="7") == "deployed"
    assert desk.answers() == {"7": 2.0, "": 2.0}
    assert desk.journal.live(desk.name).engine_answer == "loaded; the probe was answered as recorded"


def test_a_newer_package_takes_the_place_of_the_older_at_once(desk):
    for version, factor in enumerate((2.0, 3.0, 4.0), start=1):
        assert desk.publish(factor) == "deployed"
        assert desk.answers() == {str(version): factor, "": factor}


def test_a_rollback_and_one_back_are_loaded_within_the_second(desk):
    desk.publish(2.0, version="1")
    desk.publish(3.0, version="2")
    for version, factor in (("1", 2.0), ("2", 3.0), ("1", 2.0), ("2", 3.0)):
        assert desk.roll_back() == "deployed"
        assert desk.answers() == {version: factor, "": factor}


def test_the_same_package_from_another_run_is_absorbed(desk):
    desk.publish(2.0, run_id="a")
    assert desk.publish(2.0, run_id="b") == "already deployed"
    assert desk.states() == ["deployed"]


def test_a_probe_answered_otherwise_puts_the_old_one_back(desk):
    desk.publish(2.0)
    assert desk.publish(3.0, answers=9.0) == "failed"
    assert desk.answers() == {"1": 2.0, "": 2.0}
    assert "does not answer as it did" in desk.journal.history(desk.name)[0].reason
    assert desk.publish(4.0) == "deployed"
    assert desk.answers()[""] == 4.0


def test_a_first_package_that_fails_leaves_nothing(desk):
    assert desk.publish(3.0, answers=9.0) == "failed"
    assert desk.answers() == {}
    assert desk.repository.links().count(desk.name) == 0
    assert desk.publish(4.0) == "deployed"
    assert desk.answers()[""] == 4.0


def refuse_the_model(desk):
    return desk.publish(3.0, files={"model.onnx": b"no ONNX, with the right digest"})


def refuse_the_type(desk):
    return desk.publish_with(3.0, dtype="TYPE_FP16")


def refuse_the_backend(desk):
    return desk.publish_with(3.0, backend="nosuchbackend")


@pytest.mark.parametrize(
    ("publish", "words"),
    [
        (refuse_the_model, ("UNAVAILABLE", "rotobuf")),
        (refuse_the_type, ("FP16", "FP32")),
        (refuse_the_backend, ("nosuchbackend", "refused to load")),
    ],
)
def test_what_the_engine_refuses_leaves_the_old_one_and_its_own_words(desk, publish, words):
    desk.publish(2.0)
    assert publish(desk) == "failed"
    assert desk.answers() == {"1": 2.0, "": 2.0}
    failed = desk.journal.history(desk.name)[0]
    assert failed.state == "failed"
    for each in words:
        assert each in failed.engine_answer
        assert each in failed.reason
    assert desk.journal.live(desk.name).number == 1
    assert desk.publish(4.0) == "deployed"
    assert desk.answers()[""] == 4.0


def test_two_versions_are_served_and_the_live_one_answers(desk):
    for number in (1, 2, 3):
        assert desk.publish_with(float(number), versions=2) == "deployed"
    assert desk.answers() == {"2": 2.0, "3": 3.0, "": 3.0}
    assert desk.journal.live(desk.name).engine_answer.endswith("; versions 2 and 3 are served")


def test_after_a_rollback_the_live_one_is_the_highest(desk):
    for number in (1, 2, 3):
        desk.publish_with(float(number), version=str(number), versions=2)
    assert desk.roll_back() == "deployed"
    assert desk.answers() == {"1": 1.0, "2": 2.0, "": 2.0}
    assert desk.publish_with(4.0, version="4", versions=2) == "deployed"
    assert desk.answers() == {"2": 2.0, "4": 4.0, "": 4.0}


def test_without_a_registry_a_rollback_is_a_version_of_its_own_and_what_it_took_back_is_gone(desk):
    for number in (1, 2, 3):
        desk.publish_with(float(number), versions=2)
    assert desk.roll_back() == "deployed"
    assert desk.answers() == {"1": 1.0, "4": 2.0, "": 2.0}
    assert desk.publish_with(5.0, versions=2) == "deployed"
    assert desk.answers() == {"4": 2.0, "5": 5.0, "": 5.0}


def test_a_version_that_fails_beside_another_leaves_both_that_were(desk):
    desk.publish_with(1.0, versions=2)
    desk.publish_with(2.0, versions=2)
    config = CONFIG.format(name=desk.name, backend="onnxruntime", batch=8, dtype="TYPE_FP32", versions=2)
    files = {"config.pbtxt": config.encode(), "model.onnx": b"no ONNX"}
    assert desk.publish(3.0, files=files) == "failed"
    assert desk.answers() == {"1": 1.0, "2": 2.0, "": 2.0}


def test_a_version_of_another_configuration_is_served_alone_and_says_so(desk):
    desk.publish_with(1.0, versions=2)
    assert desk.publish_with(2.0, versions=2, batch=4) == "deployed"
    assert desk.answers() == {"2": 2.0, "": 2.0}
    answer = desk.journal.live(desk.name).engine_answer
    assert answer.endswith(
        "; version 2 is served alone; version 1 is not kept: its configuration differs in max_batch_size"
    )


def test_an_unloaded_model_is_gone_and_comes_back_by_a_deployment(desk):
    desk.publish_with(1.0, version="1", versions=2)
    desk.publish_with(2.0, version="2", versions=2)
    assert desk.unload() == "unloaded"
    assert desk.answers() == {}
    assert desk.states() == ["superseded", "unloaded"]
    assert desk.journal.history(desk.name)[0].reason == "unloaded by ada: it is not asked any more"
    assert desk.roll_back() == "deployed"
    assert desk.answers() == {"1": 1.0, "2": 2.0, "": 2.0}
    desk.unload()
    assert desk.publish_with(3.0, version="3", versions=2) == "deployed"
    assert desk.answers() == {"3": 3.0, "": 3.0}


def test_an_engine_that_lost_a_model_is_given_it_again(desk):
    desk.publish(2.0)
    desk.engine.unload(desk.name)
    assert desk.deployer.ensure_served() == []
    assert desk.answers() == {"1": 2.0, "": 2.0}


def test_what_is_broken_behind_the_back_is_repaired_and_loaded(desk, link_again):
    desk.publish(2.0)
    desk.publish(3.0)
    first = desk.journal.find(desk.name, 1)
    link_to(desk, first, link_again)
    assert desk.deployer.reload([desk.name]) == []
    assert desk.answers() == {"1": 2.0, "": 2.0}
    assert desk.name in desk.deployer.repair_links()
    assert desk.deployer.reload([desk.name]) == []
    assert desk.answers() == {"2": 3.0, "": 3.0}


def link_to(desk, deployment, link_again):
    from keynet_server._sources import PackageSource, to_placement

    source = PackageSource(desk.publishing.store, desk.journal, lambda _step: None)
    desk.repository.build(to_placement(deployment), source)
    link_again(desk.repository, deployment)


def test_the_index_answers_whatever_was_done(desk):
    desk.publish(2.0)
    desk.publish(3.0, answers=9.0)
    desk.unload()
    try:
        rows = desk.engine.index()
    except KeynetError as error:
        pytest.fail(f"the engine cannot list its repository: {error}")
    assert {row.state for row in rows if row.name == desk.name} <= {"UNAVAILABLE", "UNLOADING", ""}
