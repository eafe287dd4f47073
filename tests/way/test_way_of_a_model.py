"""From a training function to a served function, with everything running."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from torch import nn

from keynet_core import LocalStore, ModelPackage, download_package
from keynet_inference import TritonPlugin, UserInput, keynet_function
from keynet_train import ParityFailed, PublicationWaiting, ServingOptions, log_onnx_model, trace_pytorch


def network(seed: int, width: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def traced(name: str, seed: int, **options):
    return trace_pytorch(name, torch.rand(1, 4), **options)(lambda: network(seed)).trace()


def expected(seed: int, array: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(seed)(torch.from_numpy(array)).numpy()


def test_a_function_answers_with_a_model_as_soon_as_it_is_trained(at_home):
    result = traced("answers", 1)
    assert result.publication.state == "announced"
    assert at_home.outcome(result.publication.event_id)["outcome"] == "deployed"

    @keynet_function("asks")
    def main(args: dict) -> dict:
        with TritonPlugin() as triton:
            outputs = triton.predict(df={"input_0": np.array(UserInput.get("rows"), np.float32)}, model_name="answers")
        return {"answer": outputs["output_0"].tolist()}

    rows = np.random.default_rng(0).random((5, 4), np.float32)
    np.testing.assert_allclose(main({"rows": rows.tolist()})["answer"], expected(1, rows), rtol=1e-5, atol=1e-6)


def test_every_address_gives_the_same_answer(at_home):
    result = traced("same", 2, serving=ServingOptions(max_batch_size=8))
    at_home.outcome(result.publication.event_id)
    rows = np.random.default_rng(0).random((3, 4), np.float32)
    up = at_home.endpoints
    answers = []
    for url in (up.serving, up.serving_grpc, (at_home.home / "serving/models").as_uri()):
        with TritonPlugin(url) as triton:
            answers.append(triton.predict(df={"input_0": rows}, model_name="same")["output_0"])
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])
    np.testing.assert_allclose(answers[0], expected(2, rows), rtol=1e-5, atol=1e-6)


def test_the_same_model_trained_again_is_the_same_package_and_one_deployment(at_home):
    first, second = traced("again", 3), traced("again", 3)
    assert first.package.digest == second.package.digest
    assert at_home.outcome(first.publication.event_id)["outcome"] == "deployed"
    assert at_home.outcome(second.publication.event_id)["outcome"] == "already deployed"
    assert len(at_home.history("again")) == 1
    assert (first.model_version, second.model_version) == ("1", "2")


def test_a_rollback_brings_the_older_model_back_and_says_who_and_why(at_home):
    rows = np.ones((1, 4), np.float32)
    for seed in (4, 5):
        at_home.outcome(traced("undone", seed).publication.event_id)
    with TritonPlugin() as triton:
        np.testing.assert_allclose(
            triton.predict(df={"input_0": rows}, model_name="undone")["output_0"], expected(5, rows), rtol=1e-5
        )
        at_home.keynet("models", "rollback", "undone", "--to", "1", "--why", "it was worse")
        np.testing.assert_allclose(
            triton.predict(df={"input_0": rows}, model_name="undone")["output_0"], expected(4, rows), rtol=1e-5
        )
    newest = at_home.history("undone")[0]
    assert (newest["restores"], newest["why"], newest["state"]) == (1, "it was worse", "deployed")
    assert newest["requested_by"]


def test_two_trainings_of_one_model_at_once_both_arrive(at_home, tmp_path):
    program = textwrap.dedent("""
        import sys, torch
        from torch import nn
        from keynet_train import trace_pytorch
        torch.manual_seed(int(sys.argv[1]))
        result = trace_pytorch("raced", torch.rand(1, 4))(lambda: nn.Linear(4, 3)).trace()
        print(result.model_version, result.package.digest, result.publication.event_id)
    """)
    environ = os.environ | {"KEYNET_HOME": str(at_home.home), "PYTHONWARNINGS": "ignore"}

    def train(seed: int) -> list[str]:
        command = [sys.executable, "-c", program, str(seed)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        told = list(pool.map(train, (1, 2)))
    assert {version for version, _, _ in told} == {"1", "2"}
    for _, digest, event in told:
        assert at_home.outcome(event)["outcome"] == "deployed"
        target = tmp_path / digest.removeprefix("sha256:")
        download_package(LocalStore(at_home.home / "store"), "raced", digest, target)
        ModelPackage.open(target).verify()
    assert len(at_home.history("raced")) == 2


def test_the_tracking_server_of_keynet_up_serves_runs_models_registry_and_ui(at_home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", at_home.endpoints.tracking)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(at_home.endpoints.tracking)
    try:
        with_module, without = traced("remote", 6), traced("remote-onnx", 7, enable_autolog=False)
        client = mlflow.MlflowClient()
        for result in (with_module, without):
            version = client.get_model_version(result.package.name, result.model_version)
            assert version.tags["keynet.digest"] == result.package.digest
            assert version.run_id == result.run_id
        loaded = mlflow.pytorch.load_model("models:/remote/1")
        rows = torch.ones(2, 4)
        torch.testing.assert_close(loaded(rows), with_module.model(rows))
        signature = mlflow.models.get_model_info("models:/remote/1").signature
        assert signature.inputs.input_names() == ["input_0"]
        assert [each.path for each in client.list_artifacts(without.run_id)] == ["keynet"]
    finally:
        mlflow.set_tracking_uri(before)
    with urllib.request.urlopen(at_home.endpoints.tracking, timeout=10) as page:
        assert b"<title>MLflow" in page.read()


def test_a_model_that_disagrees_is_in_the_run_and_not_published(at_home):
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if float(x.sum()) > 0 else x - 100

    with pytest.raises(Exception) as refused:
        trace_pytorch("branches", torch.ones(1, 4))(Branch).trace()
    assert refused.value.code in {"export.failed", "parity.failed"}
    assert at_home.get("/v1/models/branches") is None
    assert not list((at_home.home / "store/packages").glob("branches"))
    (run,) = mlflow.search_runs(experiment_names=["branches"], output_format="list")
    assert run.info.status == "FAILED"
    assert run.data.tags["keynet.refused"] == refused.value.code
    assert "keynet/refused.txt" in [
        each.path for each in mlflow.MlflowClient().list_artifacts(run.info.run_id, "keynet")
    ]


def test_a_random_model_is_logged_as_rejected_with_the_difference(at_home):
    class Random(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(ParityFailed, match="output_0"):
        trace_pytorch("random", torch.ones(1, 4))(Random).trace()
    (run,) = mlflow.search_runs(experiment_names=["random"], output_format="list")
    logged = mlflow.MlflowClient().list_artifacts(run.info.run_id, "rejected")
    assert "rejected/model.onnx" in [each.path for each in logged]
    assert not list((at_home.home / "store/packages").glob("random"))


def test_a_store_that_is_not_the_servers_is_told_to_the_training(at_home, monkeypatch, tmp_path):
    monkeypatch.setenv("KEYNET_STORE", (tmp_path / "elsewhere").as_uri())
    monkeypatch.setenv("KEYNET_PUBLISH_TIMEOUT_S", "0")
    with pytest.raises(PublicationWaiting) as waiting:
        traced("elsewhere", 8)
    assert waiting.value.result.publication.state == "stored"
    assert str(tmp_path / "elsewhere") in str(waiting.value)
    assert str(at_home.home / "store") in str(waiting.value)
    assert at_home.get("/v1/models/elsewhere") is None


def test_an_onnx_file_takes_the_same_way(at_home, tmp_path):
    network(9).eval()
    path = tmp_path / "by-hand.onnx"
    torch.onnx.export(
        network(9), (torch.rand(2, 4),), path, input_names=["rows"], dynamo=False, dynamic_axes={"rows": {0: "n"}}
    )
    url = log_onnx_model("manual", path, metadata={"framework": "pytorch"})
    package = ModelPackage.open(Path(url.removeprefix("file://")))
    (run,) = mlflow.search_runs(experiment_names=["manual"], output_format="list")
    at_home.outcome(f"{run.info.run_id}/by-hand/{package.digest.removeprefix('sha256:')}")
    rows = np.ones((2, 4), np.float32)
    with TritonPlugin() as triton:
        (answer,) = triton.predict(df={"rows": rows}, model_name="by-hand").values()
    np.testing.assert_allclose(answer, expected(9, rows), rtol=1e-5)
