"""Models of every kind take the way, and answer through every address as they answer in PyTorch."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from keynet_core import DataType
from keynet_inference import TritonPlugin
from keynet_train import ServingOptions, log_onnx_model, trace_pytorch


class TwoAndTwo(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return left - right, (left * right).sum(1)


class Scalar(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().mean()


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.embedding(tokens).mean(1)


class Masked(nn.Module):
    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return torch.where(keep, x, torch.zeros_like(x))


class Halves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1


KINDS = {
    "two-and-two": (TwoAndTwo, {"right": torch.rand(1, 3), "left": torch.rand(1, 3)}),
    "scalar": (Scalar, torch.rand(2, 3)),
    "words": (Words, torch.randint(0, 50, (1, 7))),
    "masked": (Masked, {"x": torch.rand(1, 4), "keep": torch.tensor([[True, False, True, True]])}),
    "halves": (Halves, torch.rand(1, 4, dtype=torch.float16)),
    "doubles": (Halves, torch.rand(1, 4, dtype=torch.float64)),
}


@pytest.fixture(params=["http", "grpc", "file"])
def url(request, at_home):
    up = at_home.endpoints
    return {"http": up.serving, "grpc": up.serving_grpc, "file": (at_home.home / "serving/models").as_uri()}[
        request.param
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_served_model_answers_as_pytorch_does(at_home, url, kind):
    make, sample = KINDS[kind]
    torch.manual_seed(0)
    model = make()
    name = f"kind-{kind}"
    result = trace_pytorch(name, sample, enable_autolog=False)(lambda: model).trace()
    assert at_home.outcome(result.publication.event_id)["outcome"] in {"deployed", "already deployed"}
    inputs = sample if isinstance(sample, dict) else {"input_0": sample}
    with TritonPlugin(url) as triton:
        answer = triton.predict(df={key: value.numpy() for key, value in inputs.items()}, model_name=name)
    with torch.no_grad():
        told = model(**inputs) if isinstance(sample, dict) else model(sample)
    expected = [each.numpy() for each in (told if isinstance(told, tuple) else (told,))]
    assert list(answer) == [f"output_{index}" for index in range(len(expected))]
    for got, want in zip(answer.values(), expected, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [0, 8])
def test_one_number_per_row_is_probed_as_it_is_served(at_home, size):
    """Triton's configuration has no tensor of the batch alone: it travels as [batch, 1]."""

    class Labels(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.argmax(1)

    name = f"labels-{size}"
    serving = ServingOptions(max_batch_size=size)
    result = trace_pytorch(name, torch.rand(3, 4), enable_autolog=False, serving=serving)(Labels).trace()
    told = at_home.outcome(result.publication.event_id)
    assert told["outcome"] == "deployed", told
    assert "probe was answered" in at_home.live(name)["engine_answer"]
    rows = np.eye(4, dtype=np.float32)
    with TritonPlugin() as triton:
        assert triton.predict(df={"input_0": rows}, model_name=name)["output_0"].ravel().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", list(DataType), ids=lambda each: each.name)
def test_every_element_type_travels_there_and_back(at_home, tmp_path, dtype):
    name = f"type-{dtype.name}"
    tensors = [helper.make_tensor_value_info(each, dtype.onnx, ["n", 3]) for each in ("given", "answer")]
    node = helper.make_node("Identity", ["given"], ["answer"])
    graph = helper.make_graph([node], "g", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path = tmp_path / f"{name}.onnx"
    onnx.save(model, path)
    url = log_onnx_model("element-types", path, metadata={"made": "by hand"})
    digest = Path(url).name
    (run,) = mlflow.search_runs(
        experiment_names=["element-types"],
        filter_string=f"tags.`keynet.digest` = 'sha256:{digest}'",
        output_format="list",
        max_results=1,
    )
    at_home.outcome(f"{run.info.run_id}/{name}/{digest}")
    if dtype is DataType.STRING:
        array = np.array([["가", "b", ""]], dtype=object)
    elif dtype is DataType.BOOL:
        array = np.array([[True, False, True]])
    else:
        array = np.array([[1, 2, 3]]).astype(dtype.to_numpy())
    for address in (at_home.endpoints.serving, at_home.endpoints.serving_grpc):
        with TritonPlugin(address) as triton:
            answer = triton.predict(df={"given": array}, model_name=name)["answer"]
        if dtype is DataType.STRING:
            assert [each.decode() for each in answer[0]] == ["가", "b", ""]
        else:
            np.testing.assert_array_equal(answer, array)


def test_what_lightning_logs_is_in_the_run(at_home, tmp_path):
    pl = pytest.importorskip("pytorch_lightning", reason="needs pytorch-lightning: pip install pytorch-lightning")

    class Lit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

        def training_step(self, batch, _index):
            loss = self(batch[0]).square().mean()
            self.log("squared", loss, on_epoch=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    @trace_pytorch("lit", torch.rand(1, 4))
    def train() -> nn.Module:
        model = Lit()
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(32, 4)), batch_size=8)
        trainer = pl.Trainer(
            max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path
        )
        trainer.fit(model, data)
        return model

    result = train.trace()
    run = mlflow.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert "squared_epoch" in run.data.metrics or "squared" in run.data.metrics
    assert run.data.params["epochs"] == "2"
    assert isinstance(mlflow.pytorch.load_model("models:/lit/1"), Lit)
    assert at_home.outcome(result.publication.event_id)["outcome"] == "deployed"
