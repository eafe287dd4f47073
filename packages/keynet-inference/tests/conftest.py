"""Models in a repository, and the model server that serves them, as processes and files that are really there."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

START_S = 60.0

Row = tuple[str, int, list[Any]]

# By itself Triton would run two instances of each model, each in a process of its own.
_CONFIG = 'backend: "onnxruntime"\nmax_batch_size: 0\ninstance_group [ { count: 1 kind: KIND_CPU } ]\n'


def save_model(
    repository: Path,
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Row],
    outputs: Sequence[Row],
    constants: Sequence[onnx.TensorProto] = (),
    *,
    version: int = 1,
    config: str | None = None,
) -> None:
    rows = [[helper.make_tensor_value_info(*row) for row in side] for side in (inputs, outputs)]
    graph = helper.make_graph(list(nodes), name, *rows, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    folder = repository / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    text = config or _CONFIG + _tell("input", inputs) + _tell("output", outputs)
    (folder.parent / "config.pbtxt").write_text(text)


def _tell(side: str, rows: Sequence[Row]) -> str:
    names = {TensorProto.FLOAT: "FP32", TensorProto.DOUBLE: "FP64", TensorProto.BFLOAT16: "BF16"}
    texts = []
    for name, number, shape in rows:
        dims = ", ".join(str(dim) if isinstance(dim, int) else "-1" for dim in shape)
        dtype = names.get(number, TensorProto.DataType.Name(number))
        texts.append(f'{side} {{ name: "{name}" data_type: TYPE_{dtype} dims: [ {dims} ] }}\n')
    return "".join(texts)


def save_linear(repository: Path, name: str = "mlp", *, factor: float = 2.0, version: int = 1) -> None:
    """A model that multiplies: one FP32 input of 4 columns."""
    import numpy as np

    save_model(
        repository,
        name,
        [helper.make_node("Mul", ["input_0", "factor"], ["output_0"])],
        [("input_0", TensorProto.FLOAT, ["batch", 4])],
        [("output_0", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.array(factor, np.float32), "factor")],
        version=version,
    )


def save_identity(repository: Path, name: str, number: int, shape: list[Any]) -> None:
    save_model(
        repository,
        name,
        [helper.make_node("Identity", ["input_0"], ["output_0"])],
        [("input_0", number, shape)],
        [("output_0", number, shape)],
    )


def save_all(repository: Path) -> None:
    save_linear(repository)
    save_model(
        repository,
        "detector",
        [helper.make_node("ReduceMean", ["input_0"], ["output_0"], axes=[2, 3], keepdims=0)],
        [("input_0", TensorProto.FLOAT, ["batch", 3, 640, 640])],
        [("output_0", TensorProto.FLOAT, ["batch", 3])],
    )
    save_model(
        repository,
        "table",
        [
            helper.make_node("Cast", ["count"], ["count_f"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["price", "axis"], ["price_2"]),
            helper.make_node("Mul", ["count_f", "price_2"], ["total"]),
            helper.make_node("Neg", ["count"], ["negative"]),
        ],
        [("price", TensorProto.FLOAT, ["rows"]), ("count", TensorProto.INT64, ["rows", 1])],
        [("total", TensorProto.FLOAT, ["rows", 1]), ("negative", TensorProto.INT64, ["rows", 1])],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    save_identity(repository, "texts", TensorProto.STRING, ["rows"])
    save_identity(repository, "halves", TensorProto.BFLOAT16, ["rows"])
    save_identity(repository, "flags", TensorProto.BOOL, ["rows"])
    save_identity(repository, "vectors", TensorProto.FLOAT, ["rows"])
    save_model(
        repository,
        "failing",
        [helper.make_node("Gather", ["table", "input_0"], ["output_0"])],
        [("input_0", TensorProto.INT64, ["rows"])],
        [("output_0", TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor("table", TensorProto.FLOAT, [2], [1.0, 2.0])],
    )


@dataclass(frozen=True, kw_only=True)
class Models:
    """How tests write a model: they cannot import this file."""

    linear: Callable[..., None] = save_linear
    identity: Callable[..., None] = save_identity


@pytest.fixture(scope="session")
def models() -> Models:
    return Models()


@dataclass(frozen=True, kw_only=True)
class Server:
    """A model server in a process of its own."""

    repository: Path
    http: str
    grpc: str
    process: subprocess.Popen[bytes]

    def url(self, scheme: str) -> str:
        return {"http": self.http, "grpc": self.grpc, "file": self.repository.as_uri()}[scheme]


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    pytest.importorskip("keynet_serving", reason="needs keynet-serving")
    running: list[subprocess.Popen[bytes]] = []

    def start(repository: Path, http_port: int = 0, grpc_port: int = 0) -> Server:
        ready = tmp_path_factory.mktemp("server") / "ready.json"
        options = ["--model-repository", str(repository), "--http-port", str(http_port)]
        options += ["--grpc-port", str(grpc_port)]
        process = subprocess.Popen(
            [sys.executable, "-m", "keynet_serving", *options, "--ready-file", str(ready), "--load-model", "*"]
        )
        running.append(process)
        told = wait_for(lambda: json.loads(ready.read_text()) if ready.exists() else None)
        return Server(
            repository=repository,
            http=f"http://{told['http']}",
            grpc=f"grpc://{told['grpc']}",
            process=process,
        )

    yield start
    for process in running:
        process.terminate()
    for process in running:
        process.wait(START_S)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("repository")
    save_all(path)
    return path


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Server], repository: Path) -> Server:
    return start_server(repository)


@pytest.fixture(scope="module")
def real_triton(triton: Any, repository: Path) -> Iterator[Any]:
    """NVIDIA Triton, serving the same models as `server`."""
    with triton.serve(repository, "--load-model=*") as server:
        yield server


@pytest.fixture(params=["http", "grpc", "file"])
def url(request: pytest.FixtureRequest, server: Server) -> str:
    return server.url(request.param)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for every test, and none of the variables of whoever runs them."""
    for name in list(os.environ):
        if name in {"TRITON_URL", "MODEL_NAME"} or name.startswith(("KEYNET_", "AWS_", "MLFLOW_", "RABBIT_")):
            monkeypatch.delenv(name)
    path = tmp_path / "home"
    monkeypatch.setenv("KEYNET_HOME", str(path))
    return path


@pytest.fixture(scope="session")
def bucket_of() -> Callable[[Any], str]:
    """One bucket per S3 server: with another environment for each test, boto3 would start anew for each."""
    return functools.cache(lambda engine: str(engine.bucket()))


@pytest.fixture(params=["local", "ceph", "swift"])
def store(request: pytest.FixtureRequest) -> Any:
    """Have the environment alone say what `Storage()` stores in: a directory of the home, or a bucket of S3."""
    return None if request.param == "local" else _name_bucket(request, request.getfixturevalue(request.param))


@pytest.fixture(params=["ceph", "swift"])
def s3(request: pytest.FixtureRequest) -> Any:
    """An S3 server, and a bucket of it that the environment names."""
    return _name_bucket(request, request.getfixturevalue(request.param))


def _name_bucket(request: pytest.FixtureRequest, engine: Any) -> Any:
    monkeypatch = request.getfixturevalue("monkeypatch")
    bucket = request.getfixturevalue("bucket_of")(engine)
    for name, value in (engine.environ() | {"AWS_BUCKET_NAME": bucket}).items():
        monkeypatch.setenv(name, value)
    return engine


def wait_for(condition: Callable[[], Any], timeout_s: float = START_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    return found
