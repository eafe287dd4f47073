"""One `keynet up` for all tests of the way, and a process that trains; both on homes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from keynet_core import Endpoints, read_endpoints

KEYNET = str(Path(sys.executable).with_name("keynet"))


@dataclass(frozen=True)
class Stack:
    """A running `keynet up`."""

    home: Path
    endpoints: Endpoints

    def get(self, path: str) -> Any:
        """Return the JSON at a path of the keynet server, or None for 404."""
        try:
            with urllib.request.urlopen(self.endpoints.server + path, timeout=10) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def outcome(self, event_id: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """Wait until an event was acted on, and return what came of it."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            told = self.get(f"/v1/events/{urllib.parse.quote(event_id)}")
            if told and told["outcome"]:
                return told
            time.sleep(0.05)
        raise AssertionError(f"event {event_id} was not acted on within {timeout_s} s")

    def history(self, model: str) -> list[dict[str, Any]]:
        """Return a model's deployments, newest first."""
        return (self.get(f"/v1/models/{model}/history") or {"deployments": []})["deployments"]

    def live(self, model: str) -> dict[str, Any] | None:
        """Return a model's live deployment."""
        return (self.get(f"/v1/models/{model}") or {"live": None})["live"]

    def keynet(self, *words: str) -> Any:
        """Run the operator's command on this home and return what it prints as JSON."""
        command = [KEYNET, *words, "--home", str(self.home), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def start(home: Path) -> tuple[subprocess.Popen[bytes], Endpoints]:
    """Start `keynet up` on free ports and wait until it is ready."""
    ports = [word for name in ("--port", "--mlflow-port", "--serving-port", "--grpc-port") for word in (name, "0")]
    home.mkdir(parents=True, exist_ok=True)
    with (home.parent / "up.log").open("wb") as log:
        up = subprocess.Popen(
            [KEYNET, "up", "--home", str(home), *ports],
            stdout=log,
            stderr=log,
            env=clean_environ(),
        )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and up.poll() is None:
        if (endpoints := read_endpoints(home)) is not None:
            return up, endpoints
        time.sleep(0.05)
    up.kill()
    up.wait()
    raise AssertionError((home.parent / "up.log").read_text())


def stop(up: subprocess.Popen[bytes]) -> None:
    """Stop it as Ctrl-C would."""
    up.terminate()
    assert up.wait(timeout=20) in {0, 130}


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The running stack."""
    home = tmp_path_factory.mktemp("stack") / "home"
    up, endpoints = start(home)
    try:
        yield Stack(home, endpoints)
    finally:
        stop(up)


@pytest.fixture
def at_home(stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stack:
    """Have this process work on the stack's home, with nothing else set."""
    for name in list(os.environ):
        if name.startswith(("KEYNET_", "MLFLOW_TRACKING", "AWS_", "RABBIT_", "TRITON_", "MODEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KEYNET_HOME", str(stack.home))
    monkeypatch.chdir(tmp_path)
    return stack


_TRAINER = """
import importlib, json, os, signal, sys, time, traceback
import mlflow.pytorch, mlflow.store.tracking.sqlalchemy_store, onnx, onnxruntime, sqlalchemy.orm, torch
from pathlib import Path
from keynet_core import KeynetError, Outbox
from keynet_train import Unpublished, trace_pytorch

def kill_at(where, when):
    head, _, attribute = where.rpartition(".")
    try:
        owner = importlib.import_module(head)
    except ModuleNotFoundError:
        module, _, kind = head.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    original, is_bound = getattr(owner, attribute), isinstance(owner.__dict__[attribute], classmethod)

    def killing(*args, **kwargs):
        if not told["began"]:  # the opening writes to the store as well
            return original(*args, **kwargs)
        if when == "after":
            original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, attribute, staticmethod(killing) if is_bound else killing)

told = {"began": False}

def train(order):
    def function():
        told["began"] = True
        told["waiting_at_start"] = len(Outbox(Path(os.environ["KEYNET_HOME"]) / "outbox").entries())
        if gate := order["gate"]:
            Path(gate, "training").touch()
            while not Path(gate, "go").exists():
                time.sleep(0.02)
        torch.manual_seed(sum(order["name"].encode()))
        return torch.nn.Linear(4, 3)

    traced = trace_pytorch(order["name"], torch.ones(1, 4), enable_autolog=order["stores_module"])(function)
    result = None
    try:
        result = traced.trace()
    except Unpublished as error:
        result, told["error"], told["message"] = error.result, error.code, str(error)
    except KeynetError as error:
        told["error"], told["message"] = error.code, str(error)
    if result is not None:
        told.update(
            state=result.publication.state,
            digest=result.package.digest,
            event=result.publication.event_id,
            version=result.model_version,
            url=result.publication.url,
            run=mlflow.get_run(result.run_id).info.status,
        )
    return told

for line in sys.stdin:
    order = json.loads(line)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.environ.clear()
            os.environ.update(order["environ"])
            if order["where"]:
                kill_at(order["where"], order["when"])
            os.write(writer, json.dumps(train(order)).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    os.close(writer)
    answer = os.fdopen(reader).read()
    _, status = os.waitpid(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), answer]), flush=True)
"""


@dataclass(frozen=True)
class Trained:
    """How a training ended: the exit status, and what it told of itself."""

    status: int
    told: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.told.get(name)


class Trainer:
    """A process that has imported everything, and forks a child for each training."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        pipe = subprocess.PIPE
        command = [sys.executable, "-W", "ignore", "-c", _TRAINER]
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, env=clean_environ(), text=True, cwd=directory
        )

    def train(
        self,
        name: str,
        environ: dict[str, str],
        where: str = "",
        when: str = "",
        *,
        stores_module: bool = False,
        gate: Path | None = None,
    ) -> Trained:
        """
        Train a model and say how it ended.

        Args:
            name: Of the model.
            environ: What the child is told, beside what everybody is.
            where: A function at which it is killed, as `package.module.name`.
            when: `before` or `after` that function.
            stores_module: Whether MLflow stores the module.
            gate: A directory; the training makes `training` in it, and goes on when `go` is there.
        """
        assert self._process.stdin and self._process.stdout
        order = {
            "name": name,
            "environ": clean_environ() | environ,
            "where": where,
            "when": when,
            "stores_module": stores_module,
            "gate": str(gate) if gate else "",
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        status, told = json.loads(self._process.stdout.readline())
        return Trained(status, json.loads(told or "{}"))

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)


def clean_environ() -> dict[str, str]:
    """Return this process's environment, with nothing that keynet or MLflow read of where things are."""
    prefixes = ("KEYNET_", "MLFLOW_", "AWS_", "RABBIT_", "TRITON_", "MODEL_")
    return {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}


@pytest.fixture(scope="session")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    """A process that trains."""
    trainer = Trainer(tmp_path_factory.mktemp("trainer"))
    yield trainer
    trainer.close()
