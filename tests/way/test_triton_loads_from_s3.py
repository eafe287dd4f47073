"""From a training function to two protocols of the real Triton, with packages and models on one S3 server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engines._ports import Ports
from keynet_core import open_store
from keynet_inference import ModelNotServed, TritonPlugin
from keynet_server._object_repository import ObjectRepository
from keynet_train import ServingOptions, trace_pytorch

KEYNET = str(Path(sys.executable).with_name("keynet"))
TOKEN = "a-token-of-this-test"
DEADLINE_S = 60.0
ONES = {"input_0": np.ones((2, 4), np.float32)}


@pytest.fixture(scope="module")
def server(ceph: Any, triton: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Run Triton on a bucket and `keynet server` beside it; this process trains with the same settings."""
    directory = tmp_path_factory.mktemp("s3")
    bucket = ceph.bucket()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("KEYNET_", "MLFLOW_", "AWS_", "TRITON_"))]:
            patch.delenv(name)
        for name, value in ceph.environ().items():
            patch.setenv(name, value)
        patch.setenv("KEYNET_TOKEN", TOKEN)
        patch.setenv("KEYNET_STORE", f"s3://{bucket}/store")
        patch.setenv("KEYNET_SERVING_REPOSITORY", f"s3://{bucket}/models")
        # Triton does not start where there is nothing; on a cluster it is started again until the server was there.
        ObjectRepository(open_store(f"s3://{bucket}/models"), directory / "aside").prepare()
        read = f"s3://{ceph.url}/{bucket}/models"
        with triton.serve(read, "--disable-auto-complete-config", environ=ceph.environ()) as engine:
            patch.setenv("TRITON_URL", engine.url)
            with keynet_server(directory) as url:
                patch.setenv("KEYNET_URL", url)
                patch.setenv("KEYNET_HOME", str(directory / "trainer"))
                yield engine


@contextmanager
def keynet_server(directory: Path) -> Iterator[str]:
    """Run `keynet server` with a home of its own and the environment as it is."""
    with closing(Ports(1)) as ports, (directory / "server.log").open("wb") as log:
        url = f"http://127.0.0.1:{ports.first}"
        command = [KEYNET, "server", "--port", str(ports.first)]
        environ = os.environ | {"KEYNET_HOME": str(directory / "server")}
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + DEADLINE_S
            while not is_ready(url):
                assert process.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def train(factor: float, **options: Any) -> Any:
    """Train a model that multiplies by `factor`, and return once it is deployed."""

    class Times(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * factor

    result = trace_pytorch("from-s3", torch.rand(2, 4), enable_autolog=False, **options)(Times).trace()
    assert result.publication.state == "announced", result
    wait_for(result.publication.event_id)
    return result


def wait_for(event_id: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while (told := get(f"/v1/events/{event_id}"))["outcome"] is None:
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    assert told["outcome"] == "deployed", told


def get(path: str) -> Any:
    with urllib.request.urlopen(os.environ["KEYNET_URL"] + path, timeout=30) as answer:
        return json.load(answer)


def keynet(*words: str) -> Any:
    done = subprocess.run([KEYNET, "models", *words, "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(params=["http", "grpc"])
def plugin(request: pytest.FixtureRequest, server: Any) -> Iterator[TritonPlugin]:
    url = server.url if request.param == "http" else server.grpc_url
    with TritonPlugin(url, "from-s3", timeout_s=60) as plugin:
        yield plugin


def answer(plugin: TritonPlugin, version: int | None = None) -> float:
    return float(plugin.predict(ONES, model_version=version)["output_0"][0, 0])


def test_trained_stored_deployed_and_asked(server: Any, plugin: TritonPlugin) -> None:
    """Each protocol trains a model of its own, so that both are asked for something new."""
    two = ServingOptions(latest_versions=2)
    first = train(2.0 if plugin.url.startswith("http") else 5.0, serving=two)
    expected = 2.0 if plugin.url.startswith("http") else 5.0
    assert first.package.digest in {each["digest"] for each in get("/v1/models/from-s3/history")["deployments"]}
    assert answer(plugin) == expected
    second = train(expected + 1, serving=two)
    assert answer(plugin) == expected + 1
    assert answer(plugin, int(first.model_version)) == expected
    assert answer(plugin, int(second.model_version)) == expected + 1
    live = keynet("show", "from-s3")["live"]
    assert (live["served_version"], live["digest"]) == (second.model_version, second.package.digest)
    assert "are served" in live["engine_answer"]


def test_rolled_back_and_unloaded_by_the_operator(server: Any, plugin: TritonPlugin) -> None:
    train(10.0)
    train(11.0)
    with TritonPlugin(plugin.url, "from-s3", timeout_s=60) as fresh:
        assert answer(fresh) == 11.0
    assert keynet("rollback", "from-s3", "--why", "it was better")["live"]["why"] == "it was better"
    with TritonPlugin(plugin.url, "from-s3", timeout_s=60) as fresh:
        assert answer(fresh) == 10.0
    assert keynet("unload", "from-s3", "--why", "nobody asks it")["last"]["state"] == "unloaded"
    with TritonPlugin(plugin.url, "from-s3", timeout_s=60) as fresh, pytest.raises(ModelNotServed):
        answer(fresh)


def test_what_is_not_served_does_not_stay_where_triton_reads(server: Any) -> None:
    """Triton copies everything below a model when it loads one version of it."""
    train(20.0)
    live = train(21.0)
    store = open_store(os.environ["KEYNET_SERVING_REPOSITORY"])
    deadline = time.monotonic() + DEADLINE_S
    while {key.split("/")[1] for key in store.list("from-s3/") if key.count("/") > 1} != {live.model_version}:
        assert time.monotonic() < deadline  # removed after the deployment counts
        time.sleep(0.05)
