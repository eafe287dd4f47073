"""trace_pytorch: what it refuses before training, what it keeps of a user's function, what it says afterwards."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from torch import nn

from keynet_core import (
    KeynetError,
    NameRefused,
    Outbox,
    SettingsInvalid,
    StoreUnsupported,
)
from keynet_train import (
    AxisRefused,
    DegradationWarning,
    ModelRefused,
    ParityFailed,
    SampleRefused,
    ServingOptions,
    ServingOptionsRefused,
    TrackingFailed,
    TrackingUnreachable,
    trace_pytorch,
)

pytestmark = pytest.mark.usefixtures("home")


def never() -> nn.Module:
    raise AssertionError("training began")


@pytest.mark.parametrize(
    ("name", "sample", "options", "error"),
    [
        ("한국어", torch.rand(1, 4), {}, NameRefused),
        ("", torch.rand(1, 4), {}, NameRefused),
        ("a/b", torch.rand(1, 4), {}, NameRefused),
        ("m", (torch.rand(1, 4), torch.rand(1, 4)), {}, SampleRefused),
        ("m", "1,4", {}, SampleRefused),
        ("m", np.ones((1, 4)), {}, SampleRefused),
        ("m", {}, {}, SampleRefused),
        ("m", torch.rand(1, 4), {"dynamic_axes": {"image": {0: "batch"}}}, AxisRefused),
        ("m", torch.rand(1, 4), {"dynamic_axes": {"input_0": {5: "len"}}}, AxisRefused),
    ],
)
def test_what_can_be_refused_is_refused_at_decoration(name, sample, options, error, home):
    with pytest.raises(error) as refused:
        trace_pytorch(name, sample, **options)
    assert isinstance(refused.value, KeynetError)
    assert [each.name for each in home.iterdir()] == ["mlflow.db"]


def test_a_korean_name_is_refused_with_the_rule():
    with pytest.raises(NameRefused, match="letters A-Z a-z, digits"):
        trace_pytorch("분류기", torch.rand(1, 4))


def test_a_tuple_is_answered_with_the_dict_form():
    with pytest.raises(SampleRefused) as refused:
        trace_pytorch("m", (torch.rand(1, 4), torch.rand(1, 2)))
    assert "{" in str(refused.value)


def test_a_store_without_an_engine_is_refused_before_training(monkeypatch):
    monkeypatch.setenv("KEYNET_STORE", "gopher://models")
    with pytest.raises(StoreUnsupported, match="gopher"):
        trace_pytorch("m", torch.rand(1, 4))(never)()


def test_a_tracking_server_that_is_not_there_is_told_before_training():
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        with pytest.raises(TrackingUnreachable):
            trace_pytorch("m", torch.rand(1, 4))(never)()
    finally:
        mlflow.set_tracking_uri(before)


def test_a_device_that_is_not_there_is_told_before_training():
    device = "xpu" if torch.cuda.is_available() else "cuda"
    with pytest.raises(Exception, match=r"(?i)cuda|xpu"):
        trace_pytorch("m", torch.rand(1, 4), device=device)(never)()


def test_a_home_that_cannot_be_written_is_told_before_training(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KEYNET_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(SettingsInvalid, match="KEYNET_HOME"):
        trace_pytorch("m", torch.rand(1, 4))(never)()


def test_a_training_that_changes_the_directory_leaves_its_package_in_the_home_it_began_with(monkeypatch, tmp_path):
    monkeypatch.delenv("KEYNET_HOME")
    (tmp_path / "other").mkdir()

    def train() -> nn.Module:
        os.chdir(tmp_path / "other")
        return nn.Linear(4, 2)

    trace_pytorch("m", torch.rand(1, 4), enable_autolog=False)(train).trace()
    assert len(Outbox(tmp_path / ".keynet" / "outbox").entries()) == 1
    assert not (tmp_path / "other" / ".keynet").exists()


def test_a_module_that_cannot_be_pickled_is_published_all_the_same():
    model = nn.Linear(4, 2)
    model.lock = threading.Lock()
    result = trace_pytorch("locked", torch.rand(1, 4))(lambda: model).trace()
    assert result.publication.state == "stored"
    assert [each.code for each in result.degradations] == ["tracking.module_not_stored"]
    assert mlflow.MlflowClient().get_model_version("locked", "1").tags["keynet.digest"] == result.package.digest
    told = mlflow.get_run(result.run_id).data.tags
    assert "cannot be pickled" in told["keynet.degraded.tracking.module_not_stored"]


def test_a_disagreement_is_raised_also_when_the_module_cannot_be_kept():
    class Random(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    model = Random()
    model.lock = threading.Lock()
    with pytest.raises(ParityFailed) as refused:
        trace_pytorch("random", torch.rand(1, 4))(lambda: model).trace()
    assert "cannot be pickled" in refused.value.__notes__[0]


def test_a_registry_that_fails_after_training_leaves_the_package_waiting_and_says_where(home):
    """A registered model of the same name whose table is gone: MLflow itself fails, after the training."""

    def train() -> nn.Module:
        with sqlite3.connect(home / "mlflow.db") as database:
            database.execute("ALTER TABLE model_versions RENAME TO gone")
        return nn.Linear(4, 2)

    with pytest.raises(TrackingFailed) as failed:
        trace_pytorch("unregistered", torch.rand(1, 4), enable_autolog=False)(train).trace()
    (entry,) = Outbox(home / "outbox").entries()
    assert entry.event.subject == "unregistered"
    assert str(entry.directory) in failed.value.__notes__[0]


def test_a_method_is_decorated_as_a_function_is():
    class Trainer:
        width = 3

        @trace_pytorch("method", torch.rand(1, 4), enable_autolog=False)
        def train(self, depth: int) -> nn.Module:
            return nn.Linear(4, self.width * depth)

    result = Trainer().train.trace(2)
    assert result.package.signature.outputs[0].shape == ("batch", 6)


def test_autologging_is_off_again_after_the_call():
    from mlflow.utils.autologging_utils import autologging_is_disabled

    trace_pytorch("m", torch.rand(1, 4))(lambda: nn.Linear(4, 2)).trace()
    assert autologging_is_disabled("pytorch")


def test_the_function_keeps_its_name_arguments_and_documentation():
    @trace_pytorch("m", torch.rand(1, 4))
    def train(width: int, *, depth: int = 1) -> nn.Module:
        """Train it."""
        return nn.Linear(4, width * depth)

    assert (train.__name__, train.__doc__) == ("train", "Train it.")
    assert train.trace(2, depth=3).package.signature.outputs[0].shape == ("batch", 6)


def test_a_call_returns_the_model_and_warns_of_what_waits():
    with pytest.warns(DegradationWarning, match="keynet up") as told:
        model = trace_pytorch("m", torch.rand(1, 4))(lambda: nn.Linear(4, 2))()
    assert isinstance(model, nn.Linear)
    assert told[0].filename == __file__


def test_the_mode_and_the_weights_of_the_model_are_as_the_function_left_them():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    model[2].eval()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sample, state = torch.rand(2, 4), torch.get_rng_state()
    trace_pytorch("m", sample)(lambda: model).trace()
    assert [each.training for each in model] == [True, True, False]
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_without_parameters_has_its_parameters_recorded():
    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    result = trace_pytorch("double", torch.rand(1, 4))(Double).trace()
    params = mlflow.get_run(result.run_id).data.params
    assert (params["total_params"], params["device"], params["model_class"]) == ("0", "cpu", "Double")
    assert params["input_shapes"] == "{'input_0': [1, 4]}"


def test_it_works_inside_an_active_run():
    mlflow.set_tracking_uri(f"sqlite:///{Path.cwd() / 'own.db'}")
    try:
        with mlflow.start_run() as outer:
            result = trace_pytorch("inner", torch.rand(1, 4))(lambda: nn.Linear(4, 2)).trace()
            assert mlflow.active_run().info.run_id == outer.info.run_id
        assert mlflow.get_run(result.run_id).data.tags["mlflow.parentRunId"] == outer.info.run_id
    finally:
        mlflow.set_tracking_uri(None)


def test_batching_is_written_into_the_config_when_the_batch_is_shared(home):
    result = trace_pytorch("b", torch.rand(1, 4), serving=ServingOptions(max_batch_size=8, labels=("a", "b")))(
        lambda: nn.Linear(4, 2)
    ).trace()
    folder = Path(result.publication.url.removeprefix("file://"))
    assert "max_batch_size: 8" in (folder / "config.pbtxt").read_text()
    assert (folder / "labels.txt").read_text() == "a\nb\n"


def test_batching_of_a_model_without_a_shared_batch_is_refused_and_the_model_is_kept():
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean()

    batched = ServingOptions(max_batch_size=8)
    with pytest.raises(ServingOptionsRefused):
        trace_pytorch("mean", torch.rand(2, 4), serving=batched)(Mean).trace()
    (run,) = mlflow.search_runs(experiment_names=["mean"], output_format="list")
    assert run.info.status == "FAILED"
    assert run.data.tags["keynet.refused"] == "serving_options.refused"
    assert mlflow.search_logged_models([run.info.experiment_id], output_format="list")


def test_an_error_of_the_users_own_fails_the_run_and_is_not_wrapped():
    def train() -> nn.Module:
        mlflow.log_metric("before", 1)
        raise KeyError("their own")

    with pytest.raises(KeyError, match="their own"):
        trace_pytorch("broken", torch.rand(1, 4))(train)()
    (run,) = mlflow.search_runs(experiment_names=["broken"], output_format="list")
    assert (run.info.status, run.data.metrics) == ("FAILED", {"before": 1.0})


def test_a_module_that_answers_with_text_is_refused_and_kept():
    class Talker(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"logits": x, "note": "hello"}

    with pytest.raises(ModelRefused, match="str"):
        trace_pytorch("talker", torch.rand(1, 4))(Talker).trace()


def test_keys_of_a_dict_output_are_in_the_manifest():
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": x * 2, "boxes": x.sum(1)}

    result = trace_pytorch("two", torch.rand(1, 4))(Two).trace()
    assert result.package.output_keys == ("logits", "boxes")
    assert [spec.name for spec in result.package.signature.outputs] == ["output_0", "output_1"]


def test_importing_keynet_train_imports_nothing_heavy():
    heavy = {"torch", "mlflow", "onnx", "onnxruntime", "numpy", "tritonclient"}
    program = f"import sys, keynet_train; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
