"""
The code of the document that promised keynet-train to its users, as it stands there.

Each block is executed in a namespace that holds what the document leaves to the reader: `MyModel`, `train_one_epoch`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from google.protobuf import text_format
from torch import nn
from tritonclient.grpc import model_config_pb2

from keynet_core import LocalStore, read_manifest
from keynet_train import ModelRefused, TraceResult


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No variable is set, and the working directory is empty: what a new user has."""
    for name in [each for each in os.environ if each.startswith(("KEYNET_", "MODEL_", "MLFLOW_", "AWS_", "RABBIT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Images(nn.Module):
    """Ten classes for images of any size and number of channels."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Flat(nn.Module):
    """Ten classes for anything flattened."""

    def __init__(self, size: int = 784) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(size, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def train_one_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any) -> Any:
    """Take one step towards zeros; returns what the document's callers expect."""
    loss = sum(parameter.square().mean() for parameter in model.parameters())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loader(float(loss.detach()))


def run(block: str, **names: Any) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "block", **names}
    exec(compile(block, "document", "exec"), space)
    return space


def config_of(result: TraceResult, home: Path) -> Any:
    digest = result.package.digest.removeprefix("sha256:")
    text = (home / ".keynet/store/packages" / result.package.name / digest / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


BASIC = """
from keynet_train import trace_pytorch
import torch

@trace_pytorch("my-model", torch.randn(1, 3, 224, 224))
def train_model():
    model = MyModel()

    for epoch in range(10):
        pass

    return model
"""


def test_basic_use_works_with_nothing_set(empty_directory: Path) -> None:
    space = run(BASIC, MyModel=Images)
    result = space["train_model"].trace()
    assert isinstance(result.model, Images)
    assert result.experiment == "my-model"
    assert result.publication.state == "stored"
    manifest = read_manifest(LocalStore(empty_directory / ".keynet/store"), result.package.name, result.package.digest)
    assert [str(spec) for spec in manifest.signature.inputs] == ["input_0 FP32 [batch, 3, 224, 224]"]
    assert [spec.name for spec in manifest.signature.outputs] == ["output_0"]
    assert mlflow.get_run(result.run_id).info.status == "FINISHED"


def test_experiment_has_the_model_id_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_ID", "42")
    space = run(BASIC, MyModel=Images)
    assert space["train_model"].trace().experiment == "42_my-model"


MANUAL = """
from keynet_train import log_onnx_model
import torch

model = MyModel()
model.load_state_dict(torch.load('model.pth'))
dummy_input = torch.randn(1, 3, 224, 224)

torch.onnx.export(model, dummy_input, "model.onnx",
                  input_names=['input'], output_names=['output'])

upload_path = log_onnx_model(
    experiment_name="pytorch_manual",
    onnx_model_path="model.onnx",
    metadata={"framework": "pytorch", "conversion": "manual"}
)
"""


def test_manual_conversion_is_published_with_its_external_data(empty_directory: Path) -> None:
    torch.save(Images().state_dict(), "model.pth")
    space = run(MANUAL, MyModel=Images)
    folder = Path(space["upload_path"].removeprefix("file://"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["name"] == "model"
    assert manifest["lineage"]["tags"] == {"framework": "pytorch", "conversion": "manual"}
    assert manifest["signature"]["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [1, 3, 224, 224]}]
    assert {"model.onnx", "config.pbtxt"} <= {each["path"] for each in manifest["served"]}


METRICS = """
import mlflow
from keynet_train import trace_pytorch
import torch

@trace_pytorch("mnist-classifier", torch.randn(1, 28, 28))
def train_mnist():
    model = MNISTModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)

    mlflow.log_params({
        "learning_rate": 0.001,
        "batch_size": 32,
        "optimizer": "Adam",
        "epochs": 10
    })

    for epoch in range(10):
        train_loss, train_acc = train_one_epoch(model, optimizer, train_loader)

        mlflow.log_metrics({
            "train_loss": train_loss,
            "train_accuracy": train_acc
        }, step=epoch)

    mlflow.log_metric("final_accuracy", train_acc)

    return model
"""


def test_metrics_of_the_user_land_in_the_run() -> None:
    loader = lambda loss: (loss, 1 - loss)  # noqa: E731 - stands for a data loader, and makes two numbers of one
    space = run(METRICS, MNISTModel=Flat, train_one_epoch=train_one_epoch, train_loader=loader)
    result = space["train_mnist"].trace()
    data = mlflow.get_run(result.run_id).data
    assert data.params["optimizer"] == "Adam"
    assert {"train_loss", "train_accuracy", "final_accuracy"} <= set(data.metrics)
    assert len(mlflow.MlflowClient().get_metric_history(result.run_id, "train_loss")) == 10
    version = mlflow.MlflowClient().get_model_version("mnist-classifier", result.model_version)
    assert version.tags["keynet.digest"] == result.package.digest
    loaded = mlflow.pytorch.load_model(f"models:/mnist-classifier/{result.model_version}")
    assert isinstance(loaded, Flat)


NO_AUTOLOG = """
import mlflow
from keynet_train import trace_pytorch
import torch

@trace_pytorch(
    "custom-model",
    torch.randn(1, 784),
    enable_autolog=False
)
def train_with_manual_logging():
    model = MyModel()

    mlflow.log_metric("accuracy", 0.95)

    return model
"""


def test_without_autolog_the_module_is_not_stored_but_a_version_is_registered() -> None:
    result = run(NO_AUTOLOG, MyModel=Flat)["train_with_manual_logging"].trace()
    assert mlflow.get_run(result.run_id).data.metrics == {"accuracy": 0.95}
    version = mlflow.MlflowClient().get_model_version("custom-model", result.model_version)
    assert version.tags["keynet.digest"] == result.package.digest
    with pytest.raises(mlflow.exceptions.MlflowException):
        mlflow.pytorch.load_model(f"models:/custom-model/{result.model_version}")


RIGHT = """
@trace_pytorch("mnist-v1", torch.randn(1, 784))
def train_mnist():
    model = torch.nn.Sequential(
        torch.nn.Linear(784, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 10)
    )

    optimizer = torch.optim.Adam(model.parameters())
    for epoch in range(100):
        loss = train_one_epoch(model, optimizer, train_loader)

        mlflow.log_metric("train_loss", loss, step=epoch)

    return model
"""

WRONG = """
@trace_pytorch("wrong-model-1", torch.randn(1, 784))
def wrong_usage1():
    model = MyModel()
    loss = train(model)
    return model, loss

@trace_pytorch("wrong-model-2", torch.randn(1, 784))
def wrong_usage2():
    model = MyModel()
    train(model)
    return {
        "model": model,
        "accuracy": 0.95
    }

@trace_pytorch("wrong-model-3", torch.randn(1, 784))
def wrong_usage3():
    model = MyModel()
    train(model)
    return "model_saved.pth"
"""


def names() -> dict[str, Any]:
    from keynet_train import trace_pytorch

    return {"trace_pytorch": trace_pytorch, "torch": torch, "mlflow": mlflow, "MyModel": Flat, "train": lambda _: 0.1}


def test_right_use_returns_the_model() -> None:
    space = run(RIGHT, **names(), train_one_epoch=train_one_epoch, train_loader=lambda loss: loss)
    with pytest.warns(UserWarning, match="keynet up"):
        model = space["train_mnist"]()
    assert isinstance(model, nn.Sequential)


@pytest.mark.parametrize(("number", "told"), [(1, "a tuple of (Flat, float)"), (2, "a dict"), (3, "a str")])
def test_wrong_uses_fail_the_run_and_name_the_type(number: int, told: str) -> None:
    space = run(WRONG, **names())
    with pytest.raises(ModelRefused) as refused:
        space[f"wrong_usage{number}"]()
    assert told in str(refused.value)
    (last,) = mlflow.search_runs(experiment_names=[f"wrong-model-{number}"], output_format="list")
    assert last.info.status == "FAILED"


NAMED = """
@trace_pytorch(
    "segmentation-model",
    {
        "image": torch.randn(1, 3, 224, 224),
        "mask": torch.randn(1, 1, 224, 224)
    }
)
def train_model():
    return model
"""


class TwoInputs(nn.Module):
    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (image * mask).mean(dim=(2, 3))


def test_names_of_a_dict_are_the_inputs_of_the_config(empty_directory: Path) -> None:
    result = run(NAMED, **names(), model=TwoInputs())["train_model"].trace()
    config = config_of(result, empty_directory)
    assert [(each.name, list(each.dims)) for each in config.input] == [
        ("image", [-1, 3, 224, 224]),
        ("mask", [-1, 1, 224, 224]),
    ]
    assert config.max_batch_size == 0


def test_several_outputs_are_numbered(empty_directory: Path) -> None:
    """The document gives up after `output_0`; every output is there."""

    class MultiOutputModel(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.mean(dim=(2, 3)), x.amax(dim=(2, 3))

    block = RIGHT.split("def", maxsplit=1)[0].replace("mnist-v1", "output-test").replace("1, 784", "1, 3, 224, 224")
    space = run(f"{block}def train():\n    return model\n", **names() | {"model": MultiOutputModel()})
    config = config_of(space["train"].trace(), empty_directory)
    assert [each.name for each in config.output] == ["output_0", "output_1"]


DYNAMIC = """
@trace_pytorch(
    "sequence-model",
    torch.randn(1, 128, 768),
    dynamic_axes={
        "input_0": {
            0: "batch_size",
            1: "sequence_length"
        },
        "output_0": {
            0: "batch_size",
            1: "sequence_length"
        }
    }
)
def train_sequence_model():
    return SequenceModel()

@trace_pytorch(
    "multimodal-model",
    {
        "image": torch.randn(1, 3, 224, 224),
        "text": torch.randn(1, 50, 512)
    },
    dynamic_axes={
        "image": {0: "batch"},
        "text": {0: "batch", 1: "len"},
        "output_0": {0: "batch"}
    }
)
def train_multimodal():
    return MultiModalModel()
"""


class SequenceModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(768, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(x))


class MultiModalModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(512 + 3, 5)

    def forward(self, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.cat([text.mean(1), image.mean((2, 3))], 1))


def test_axes_may_vary_as_the_user_says(empty_directory: Path) -> None:
    space = run(DYNAMIC, **names(), SequenceModel=SequenceModel, MultiModalModel=MultiModalModel)
    sequence = space["train_sequence_model"].trace()
    assert str(sequence.package.signature) == (
        "input_0 FP32 [batch_size, sequence_length, 768] -> output_0 FP32 [batch_size, sequence_length, 8]"
    )
    multimodal = space["train_multimodal"].trace()
    assert str(multimodal.package.signature) == (
        "image FP32 [batch, 3, 224, 224]; text FP32 [batch, len, 512] -> output_0 FP32 [batch, 5]"
    )
    assert not sequence.degradations
    assert not multimodal.degradations
