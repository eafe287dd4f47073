"""One `keynet up` for all tests of the way, on free ports and a home of its own."""

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
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("KEYNET_", "MLFLOW_", "AWS_", "TRITON_"))}
    with (home.parent / "up.log").open("wb") as log:
        up = subprocess.Popen(
            [KEYNET, "up", "--home", str(home), *ports],
            stdout=log,
            stderr=log,
            env=environ,
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
        if name.startswith(("KEYNET_", "MLFLOW_TRACKING", "AWS_", "TRITON_", "MODEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KEYNET_HOME", str(stack.home))
    monkeypatch.chdir(tmp_path)
    return stack
