"""Killed with SIGKILL at every step between training and announcement, then run again: nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
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

PROGRAM = textwrap.dedent("""
    import importlib, json, os, signal, sys
    import mlflow.pytorch, mlflow.store.tracking.sqlalchemy_store, onnx, onnxruntime, sqlalchemy.orm, torch
    from keynet_train import trace_pytorch

    def kill_at(where, when):
        head, _, attribute = where.rpartition(".")
        try:
            owner = importlib.import_module(head)
        except ModuleNotFoundError:
            module, _, kind = head.rpartition(".")
            owner = getattr(importlib.import_module(module), kind)
        original, is_bound = getattr(owner, attribute), isinstance(owner.__dict__[attribute], classmethod)

        def killing(*args, **kwargs):
            if when == "after":
                original(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, attribute, staticmethod(killing) if is_bound else killing)

    def train(name):
        torch.manual_seed(sum(name.encode()))
        model = torch.nn.Linear(4, 3)
        stores_module = "pytorch-model" in name  # MLflow takes seconds for it: only where that step is the one
        result = trace_pytorch(name, torch.ones(1, 4), enable_autolog=stores_module)(lambda: model).trace()
        return [result.publication.state, result.package.digest, result.publication.event_id]

    for line in sys.stdin:
        name, where, when = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            if where:
                kill_at(where, when)
            os.write(writer, json.dumps(train(name)).encode())
            os._exit(0)
        os.close(writer)
        told = os.fdopen(reader).read()
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), told]), flush=True)
""")


class Trainer:
    """A process that has imported everything, and forks a child for each training."""

    def __init__(self, stack) -> None:
        # A home of its own: the server hands over what waits in its home too, and would be quicker than a step.
        self.home = stack.home.parent / "trainer"
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("KEYNET_", "MLFLOW_TRACKING", "AWS_"))}
        environ |= {
            "KEYNET_HOME": str(self.home),
            "KEYNET_STORE": (stack.home / "store").as_uri(),
            "KEYNET_URL": stack.endpoints.server,
            "KEYNET_TOKEN": (stack.home / "run" / "token").read_text(),
            "PYTHONWARNINGS": "ignore",
        }
        command = [sys.executable, "-c", PROGRAM]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environ, text=True, cwd=self.home.parent)

    def train(self, name: str, where: str = "", when: str = "") -> tuple[int, str]:
        """Train a model, killed at a step, and return the exit status and what it printed."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([name, where, when]) + "\n")
        self._process.stdin.flush()
        status, told = json.loads(self._process.stdout.readline())
        return status, told

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=20)


@pytest.fixture(scope="module")
def trainer(stack) -> Iterator[Trainer]:
    trainer = Trainer(stack)
    yield trainer
    trainer.close()


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
def test_killed_at_a_step_and_run_again(stack, trainer: Trainer, step: str, when: str) -> None:
    name = f"killed-{step.rpartition('.')[2].strip('_')}-{when}".replace("_", "-")
    watcher = Watcher(stack.endpoints.serving, name)
    watcher.start()
    assert trainer.train(name, step, when) == (-signal.SIGKILL, "")
    status, told = trainer.train(name)
    assert status == 0
    state, digest, event = json.loads(told)
    assert state == "announced"
    assert stack.outcome(event)["outcome"] in {"deployed", "already deployed"}
    deployments = stack.history(name)
    assert [(each["state"], each["digest"]) for each in deployments] == [("deployed", digest)]
    with TritonPlugin(stack.endpoints.serving) as triton:
        answer = triton.predict(df={"input_0": np.ones((1, 4), np.float32)}, model_name=name)
    assert answer["output_0"].shape == (1, 3)
    watcher.done.set()
    watcher.join(10)
    assert watcher.wrong == []
    assert_nothing_is_half(trainer.home, stack.home / "store", name, digest)


def assert_nothing_is_half(home: Path, store: Path, name: str, digest: str) -> None:
    outbox = Outbox(home / "outbox")
    assert [each.last_error() for each in outbox.entries() if each.event.subject == name] == []
    with outbox.stage():
        assert len(list((home / "outbox" / "staging").glob("*/"))) == 1
    target = home.parent / f"fetched-{name}"
    download_package(LocalStore(store), name, digest, target)
    ModelPackage.open(target).verify()
