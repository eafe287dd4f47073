"""Killed with SIGKILL at every step between training and announcement, then run again: nothing lost, nothing twice."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from keynet_core import LocalStore, ModelPackage, Outbox, download_package
from keynet_inference import ModelNotServed, TritonPlugin

STEPS = [
    "keynet_train._export.export_verified",
    "keynet_core.ModelPackage.build",
    "keynet_core.Outbox.add",
    "keynet_train._tracking.log_params",
    "keynet_train._tracking.log_pytorch_model",
    "keynet_train._tracking.register",
    "keynet_core.Outbox.amend",
    "keynet_core.LocalStore.put_file",
    "keynet_core.LocalStore.put",
    "keynet_core.HttpPublisher.publish",
    "keynet_core.Outbox._finish",
]


@pytest.fixture(scope="module")
def at_server(stack) -> dict[str, str]:
    """What a trainer is told of the stack; its home is its own: the server hands over what waits in its own as well."""
    return {
        "KEYNET_HOME": str(stack.home.parent / "trainer"),
        "KEYNET_STORE": (stack.home / "store").as_uri(),
        "KEYNET_URL": stack.endpoints.server,
        "KEYNET_TOKEN": (stack.home / "run" / "token").read_text(),
    }


class Watcher(threading.Thread):
    """A client that asks a model all the time, and keeps every answer that is not one of the two right ones."""

    def __init__(self, url: str, model: str) -> None:
        super().__init__(daemon=True)
        self.url, self.model, self.wrong, self.answers = url, model, [], 0
        self.done = threading.Event()

    def run(self) -> None:
        with TritonPlugin(self.url) as triton:
            while not self.done.wait(0.01):
                try:
                    answer = triton.predict(df={"input_0": np.ones((1, 4), np.float32)}, model_name=self.model)
                except ModelNotServed:
                    continue
                except Exception as error:
                    self.wrong.append(repr(error))
                else:
                    self.answers += 1
                    if answer["output_0"].shape != (1, 3) or not np.isfinite(answer["output_0"]).all():
                        self.wrong.append(repr(answer))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.rpartition(".")[2])
def test_killed_at_a_step_and_run_again(stack, trainer, at_server, step: str, when: str) -> None:
    name = f"killed-{step.rpartition('.')[2].strip('_')}-{when}".replace("_", "-")
    watcher = Watcher(stack.endpoints.serving, name)
    watcher.start()
    # MLflow takes seconds to store a module: only where that step is the one.
    stores_module = "pytorch-model" in name
    assert trainer.train(name, at_server, step, when, stores_module=stores_module).status == -signal.SIGKILL
    again = trainer.train(name, at_server, stores_module=stores_module)
    assert (again.status, again.state) == (0, "announced")
    digest = again.digest
    assert stack.outcome(again.event)["outcome"] in {"deployed", "already deployed"}
    deployments = stack.history(name)
    assert [(each["state"], each["digest"]) for each in deployments] == [("deployed", digest)]
    with TritonPlugin(stack.endpoints.serving) as triton:
        answer = triton.predict(df={"input_0": np.ones((1, 4), np.float32)}, model_name=name)
    assert answer["output_0"].shape == (1, 3)
    watcher.done.set()
    watcher.join(10)
    assert watcher.wrong == []
    assert_nothing_is_half(Path(at_server["KEYNET_HOME"]), stack.home / "store", name, digest)


def assert_nothing_is_half(home: Path, store: Path, name: str, digest: str) -> None:
    outbox = Outbox(home / "outbox")
    assert [each.last_error() for each in outbox.entries() if each.event.subject == name] == []
    with outbox.stage():
        assert len(list((home / "outbox" / "staging").glob("*/"))) == 1
    target = home.parent / f"fetched-{name}"
    download_package(LocalStore(store), name, digest, target)
    ModelPackage.open(target).verify()
