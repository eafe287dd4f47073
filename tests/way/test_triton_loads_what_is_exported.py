"""Everything keynet_train exports is loaded by the real Triton in strict mode, and answers as ONNX Runtime does."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from keynet_core import LocalStore, ModelPackage, Outbox
from keynet_inference import TritonPlugin
from keynet_server._database import migrate, open_database
from keynet_server._deployer import Deployer
from keynet_server._engine import KServeEngine
from keynet_server._journal import Journal
from keynet_server._materialize import DirectoryRepository
from keynet_server._worker import Worker
from keynet_train import ServingOptions, log_onnx_model, trace_pytorch

Arrays = Mapping[str, Any]
RANDOM = np.random.default_rng(7)

TYPES = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 1, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 65535]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "INT16": np.array([[-(2**15), 0, 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 0, 2**63 - 1]], np.int64),
    "FLOAT16": np.array([[-1.5, 0, 65504]], np.float16),
    "FLOAT": np.array([[-1.5, 0, 3e38]], np.float32),
    "DOUBLE": np.array([[-1.5, 0, 1e308]], np.float64),
    "BFLOAT16": np.array([[-1.5, 0, 256]], ml_dtypes.bfloat16),
    "STRING": np.array([["고양이", "", "cat"]], object),
}
"""ONNX's name of each element type, and values at its ends."""


def tensor(name: str, shape: list[Any], kind: str = "FLOAT") -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.DataType.Value(kind), shape)


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **weights: np.ndarray) -> Path:
    """Write a model, its weights beside it when the file's name says so."""
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "main", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    beside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(model, str(path), **(beside if path.stem == "external-data" else {}))
    return path


def linear(path: Path) -> Path:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return save(path, [node], [tensor("x", ["n", 4])], [tensor("y", ["n", 3])], w=WEIGHT)


WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) - 5
ROWS = {"x": RANDOM.standard_normal((2, 4)).astype(np.float32)}


def identities(path: Path) -> Path:
    """Write a model that gives back what it is given, of the type that its name ends with."""
    kind = path.stem.removeprefix("type-").upper()
    node = helper.make_node("Identity", ["x"], ["y"])
    return save(path, [node], [tensor("x", ["n", 3], kind)], [tensor("y", ["n", 3], kind)])


def scalar(path: Path) -> Path:
    node = helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)
    return save(path, [node], [tensor("x", ["n", 4])], [tensor("total", [])])


def scalar_in(path: Path) -> Path:
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    return save(path, [node], [tensor("x", ["n", 4]), tensor("factor", [])], [tensor("y", ["n", 4])])


def scalar_per_row(path: Path) -> Path:
    node = helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=0)
    axes = np.array([1], np.int64)
    return save(path, [node], [tensor("x", ["n", 4])], [tensor("total", ["n"])], axes=axes)


def several_outputs(path: Path) -> Path:
    node = helper.make_node("TopK", ["x", "k"], ["values", "places"])
    outputs = [tensor("values", ["n", 2]), tensor("places", ["n", 2], "INT64")]
    return save(path, [node], [tensor("x", ["n", 4])], outputs, k=np.array([2], np.int64))


def dynamic_axes(path: Path) -> Path:
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1])
    return save(path, [node], [tensor("x", ["n", "length", 3])], [tensor("y", ["n", 3, "length"])])


def fixed_shape(path: Path) -> Path:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return save(path, [node], [tensor("x", [2, 4])], [tensor("y", [2, 3])], w=WEIGHT)


@dataclass(frozen=True)
class Exported:
    """A file, how it is served, and what it is asked."""

    write: Callable[[Path], Path]
    asked: list[Arrays] = field(default_factory=lambda: [ROWS])
    serving: ServingOptions = field(default_factory=ServingOptions)


LONG = [{"x": RANDOM.standard_normal((n, length, 3)).astype(np.float32)} for n, length in ((1, 1), (2, 7), (5, 3))]
BATCHED = ServingOptions(max_batch_size=8, max_queue_delay_us=2000, preferred_batch_sizes=(4, 8))
FILES: dict[str, Exported] = {
    **{f"type-{name.lower()}": Exported(identities, [{"x": values}]) for name, values in TYPES.items()},
    "scalar-output": Exported(scalar),
    "scalar-input": Exported(scalar_in, [ROWS | {"factor": np.array(2.5, np.float32)}]),
    "scalar-per-row": Exported(scalar_per_row, serving=ServingOptions(max_batch_size=4)),
    "several-outputs": Exported(several_outputs),
    "dynamic-axes": Exported(dynamic_axes, LONG),
    "dynamic-axes-in-batches": Exported(dynamic_axes, LONG, ServingOptions(max_batch_size=8)),
    "fixed-shape": Exported(fixed_shape),
    "external-data": Exported(linear),
    "batches": Exported(linear, serving=BATCHED),
    "instances": Exported(linear, serving=ServingOptions(instance_count=2)),
    "warm": Exported(linear, serving=ServingOptions(warmup=True)),
    "warm-in-batches": Exported(linear, serving=ServingOptions(warmup=True, max_batch_size=4)),
    "labels": Exported(linear, serving=ServingOptions(labels=("a cat", "고양이", "c"))),
    "two-versions": Exported(linear, serving=ServingOptions(latest_versions=2)),
}


class Both(nn.Module):
    """Two inputs of two types, two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)

    def forward(self, ids: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        told = self.words(ids) * weights.unsqueeze(-1)
        return {"sum": told.sum(dim=1), "longest": ids.max(dim=1).values}


def several_inputs() -> nn.Module:
    return Both()


def picture() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1))


def half() -> nn.Module:
    return nn.Linear(4, 3).half()


IDS = {"ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "weights": torch.rand(2, 3)}
MODULES: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any]]] = {
    "torch-dict": (several_inputs, IDS, {"dynamic_axes": {"ids": {0: "n", 1: "t"}, "weights": {0: "n", 1: "t"}}}),
    "torch-picture": (picture, torch.rand(1, 3, 8, 8), {"serving": ServingOptions(max_batch_size=4)}),
    "torch-half": (half, torch.rand(2, 4).half(), {}),
}
ASKED_OF_MODULES: dict[str, list[Arrays]] = {
    "torch-dict": [
        {"ids": RANDOM.integers(0, 10, (n, t)), "weights": RANDOM.random((n, t)).astype(np.float32)}
        for n, t in ((1, 1), (3, 5))
    ],
    "torch-picture": [{"input_0": RANDOM.random((n, 3, 8, 8)).astype(np.float32)} for n in (1, 4)],
    "torch-half": [{"input_0": RANDOM.random((3, 4)).astype(np.float16)}],
}
ASKED = {name: each.asked for name, each in FILES.items()} | ASKED_OF_MODULES


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Publish every model from this process to a home of its own; the server is not there yet."""
    directory = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no server answers is as it should be
        for name in [name for name in os.environ if name.startswith(("KEYNET_", "MLFLOW_", "AWS_", "MODEL_"))]:
            patch.delenv(name)
        patch.setenv("KEYNET_HOME", str(directory / "home"))
        patch.setenv("KEYNET_ON_UNPUBLISHED", "continue")
        patch.setenv("KEYNET_PUBLISH_TIMEOUT_S", "0")
        for name, each in FILES.items():
            (directory / name).mkdir()
            path = each.write(directory / name / f"{name}.onnx")
            log_onnx_model("exported", path, model_name=name, serving=each.serving)
        for name, (make, sample, options) in MODULES.items():
            trace_pytorch(name, sample, enable_autolog=False, **options)(make).trace()
        yield directory / "home"


@pytest.fixture(scope="module")
def triton(home: Path, triton: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Deploy what waits in the outbox of the home, as its server does, to one Triton in strict mode."""
    repository = DirectoryRepository(tmp_path_factory.mktemp("serving"))
    repository.prepare()
    database = open_database(f"sqlite:///{home / 'keynet.db'}")
    migrate(database, home / "migrate.lock")
    store = LocalStore(home / "store")
    with triton.serve(repository.models, "--disable-auto-complete-config") as server:
        engine = KServeEngine(url=server.url)
        deployer = Deployer(journal=Journal(database), store=store, repository=repository, engine=engine)
        worker = Worker(deployer, Outbox(home / "outbox"), store)
        while worker.run_once():
            pass
        server.deployer = deployer
        server.store = store
        yield server
    database.dispose()


@pytest.fixture(params=["http", "grpc"])
def plugin(request: pytest.FixtureRequest, triton: Any) -> Iterator[TritonPlugin]:
    url = triton.url if request.param == "http" else triton.grpc_url
    with TritonPlugin(url, timeout_s=60) as plugin:
        yield plugin


def test_every_model_is_deployed_and_its_probe_answered(triton: Any) -> None:
    states = {each.name: each.last for each in triton.deployer.journal.models()}
    assert {name: each.reason for name, each in states.items() if each.state != "deployed"} == {}
    assert set(states) == set(ASKED)
    untried = {name for name, each in states.items() if "probe was answered" not in each.engine_answer}
    assert untried == set()


@pytest.mark.parametrize("name", ASKED)
def test_the_answer_is_that_of_onnx_runtime(triton: Any, plugin: TritonPlugin, name: str, tmp_path: Path) -> None:
    path = package_of(triton, name, tmp_path)
    for inputs in ASKED[name]:
        outputs, expected = plugin.predict(inputs, name), run(path, inputs)
        assert list(outputs) == list(expected)
        for each, array in expected.items():
            compare(outputs[each], array)


def package_of(triton: Any, name: str, directory: Path) -> Path:
    """Return the ONNX file of what is live, out of the store."""
    from keynet_core import download_package

    package: ModelPackage = download_package(triton.store, name, triton.deployer.journal.live(name).digest, directory)
    return package.directory / "model.onnx"


def run(path: Path, inputs: Arrays) -> dict[str, Any]:
    from keynet_train._runtime import run_onnx

    return dict(run_onnx(path, inputs))


def compare(got: np.ndarray, want: np.ndarray) -> None:
    if want.dtype == object:
        assert got.tolist() == [[text.encode() if isinstance(text, str) else text for text in row] for row in want]
        return
    # A scalar travels with one axis, a row's scalar in batches too.
    want = want.reshape(got.shape) if got.shape in {(1,), (*want.shape, 1)} and want.ndim < 2 else want
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-6, atol=1e-6)


def test_requests_that_are_joined_get_each_their_own_answer(triton: Any) -> None:
    rows = [RANDOM.standard_normal((1 + number % 3, 4)).astype(np.float32) for number in range(64)]
    with TritonPlugin(triton.url, timeout_s=60) as plugin, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda row: plugin.predict({"x": row}, "batches")["y"], rows))
    for row, answer in zip(rows, answers, strict=True):
        np.testing.assert_allclose(answer, row @ WEIGHT, rtol=1e-5, atol=1e-5)
    [told] = statistics(triton, "batches")
    assert told["inference_count"] > told["execution_count"]


def test_a_batch_over_the_greatest_is_refused(triton: Any, plugin: TritonPlugin) -> None:
    from keynet_inference import InputRefused

    with pytest.raises(InputRefused, match="8"):
        plugin.predict({"x": np.zeros((9, 4), np.float32)}, "batches")


def test_classes_are_told_by_their_labels(triton: Any) -> None:
    import httpx2

    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 1]}
    outputs = [{"name": "y", "parameters": {"classification": 2}}]
    url = f"{triton.url}/v2/models/labels/infer"
    answer = httpx2.post(url, json={"inputs": [tensor], "outputs": outputs}).json()["outputs"][0]["data"]
    assert [text.split(":")[1:] for text in answer] == [["2", "c"], ["1", "고양이"]]


def test_two_instances_share_the_work(triton: Any) -> None:
    import httpx2

    [group] = httpx2.get(f"{triton.url}/v2/models/instances/config").json()["instance_group"]
    assert group["count"] == 2


def statistics(triton: Any, name: str) -> list[dict[str, Any]]:
    import httpx2

    told: list[dict[str, Any]] = httpx2.get(f"{triton.url}/v2/models/{name}/stats").json()["model_stats"]
    return told
