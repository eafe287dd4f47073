from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keynet_serving import ModelServer

CLIENT_KINDS = ("http", "grpc", "http.aio", "grpc.aio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """Writes models of onnx.helper into a repository."""

    repository: Path

    def write(
        self,
        name: str,
        nodes: Sequence[Any],
        inputs: Sequence[tuple[str, int, Sequence[Any] | None]],
        outputs: Sequence[tuple[str, int, Sequence[Any] | None]],
        *,
        config: str | None = None,
        versions: Sequence[int] = (1,),
        weights: Sequence[Any] = (),
        filename: str = "model.onnx",
    ) -> Path:
        from onnx import helper

        graph = helper.make_graph(
            list(nodes),
            "graph",
            [helper.make_tensor_value_info(*each) for each in inputs],
            [helper.make_tensor_value_info(*each) for each in outputs],
            list(weights),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        folder = self.repository / name
        for version in versions:
            (folder / str(version)).mkdir(parents=True, exist_ok=True)
            (folder / str(version) / filename).write_bytes(model.SerializeToString())
        if config is not None:
            (folder / "config.pbtxt").write_text(config)
        return folder

    def identity(self, name: str, onnx_type: int = 1, shape: Sequence[Any] = ("batch", 2), **options: Any) -> Path:
        from onnx import helper

        node = helper.make_node("Identity", ["x"], ["y"])
        return self.write(name, [node], [("x", onnx_type, shape)], [("y", onnx_type, shape)], **options)

    def scaled(self, name: str, factor: float, **options: Any) -> Path:
        """`y = factor * x`, so that an answer tells which file gave it."""
        from onnx import helper

        weight = helper.make_tensor("factor", 1, [], [factor])
        node = helper.make_node("Mul", ["x", "factor"], ["y"])
        shape = ["batch", 2]
        return self.write(name, [node], [("x", 1, shape)], [("y", 1, shape)], weights=[weight], **options)

    def slow(self, name: str, rounds: int = 300, **options: Any) -> Path:
        """A loop of matrix products: tens of milliseconds for one row."""
        from onnx import helper

        size = 128
        weight = helper.make_tensor("w", 1, [size, size], np.eye(size, dtype=np.float32).ravel())
        names = ["x", *[f"m{number}" for number in range(rounds - 1)], "y"]
        nodes = [helper.make_node("MatMul", [before, "w"], [after]) for before, after in itertools.pairwise(names)]
        shape = ["batch", size, size]
        return self.write(name, nodes, [("x", 1, shape)], [("y", 1, shape)], weights=[weight], **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A running server, by its addresses: this one here, another wherever the suite is pointed."""

    http: str
    grpc: str
    repository: Path

    def request(
        self, method: str, path: str, body: bytes | Mapping[str, Any] = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        host, port = self.http.rsplit(":", 1)
        with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=20)) as connection:
            connection.request(method, path, data, dict(headers or {}))
            answer = connection.getresponse()
            told = {key.lower(): value for key, value in answer.getheaders()}
            return answer.status, answer.read(), told

    def error(self, method: str, path: str, body: bytes | Mapping[str, Any] = b"", **options: Any) -> tuple[int, str]:
        status, answer, _ = self.request(method, path, body, **options)
        return status, json.loads(answer)["error"]


class Asker:
    """One of tritonclient's four clients, asked the same way."""

    def __init__(self, kind: str, engine: Engine) -> None:
        import importlib

        self.kind = kind
        self._address = engine.grpc if kind.startswith("grpc") else engine.http
        self._module = importlib.import_module(f"tritonclient.{kind}")

    @property
    def is_grpc(self) -> bool:
        return self.kind.startswith("grpc")

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        if not self.kind.endswith("aio"):
            client = self._module.InferenceServerClient(self._address)
            try:
                return getattr(client, name)(*arguments, **options)
            finally:
                client.close()

        async def ask() -> Any:
            client = self._module.InferenceServerClient(self._address)
            try:
                return await getattr(client, name)(*arguments, **options)
            finally:
                await client.close()

        return asyncio.run(ask())

    def inputs(self, arrays: Mapping[str, np.ndarray], **options: Any) -> list[Any]:
        from tritonclient.utils import np_to_triton_dtype

        made = []
        for name, array in arrays.items():
            datatype = "BF16" if array.dtype.name == "bfloat16" else np_to_triton_dtype(array.dtype)
            given = self._module.InferInput(name, list(array.shape), datatype)
            given.set_data_from_numpy(array, **options)
            made.append(given)
        return made

    def outputs(self, *names: str, **options: Any) -> list[Any]:
        return [self._module.InferRequestedOutput(name, **options) for name in names]

    def infer(self, model: str, arrays: Mapping[str, np.ndarray], **options: Any) -> Any:
        return self.call("infer", model, self.inputs(arrays), **options)

    def plain(self, name: str, *arguments: Any) -> Any:
        """Call a method that tells something, and return it as plain values."""
        options = {"as_json": True} if self.is_grpc else {}
        return self.call(name, *arguments, **options)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def models(repository: Path) -> Models:
    return Models(repository=repository)


@contextlib.contextmanager
def _serving(repository: Path, *load: str, limits: Any = None, **options: Any) -> Iterator[Engine]:
    from keynet_serving._run import ListenOptions, listening

    listen = ListenOptions(http_port=0, grpc_port=0, **({"limits": limits} if limits else {}))
    with ModelServer(repository, **options) as server, listening(server, listen) as addresses:
        server.load_at_start(load)
        yield Engine(http=addresses.http, grpc=addresses.grpc, repository=repository)


@pytest.fixture(scope="session")
def serving() -> Callable[..., contextlib.AbstractContextManager[Engine]]:
    """Start a server over a repository for as long as a context is open."""
    return _serving


@pytest.fixture(scope="session", params=["model server", "triton"])
def each_serving(request: pytest.FixtureRequest) -> Callable[..., contextlib.AbstractContextManager[Engine]]:
    """
    The same for every engine behind the seam: what holds for one must hold for the other.

    `strict` lets Triton complete no configuration; the model server leaves a complete one as it is.
    """
    if request.param == "model server":
        return lambda repository, *load, strict=False: _serving(repository, *load)  # noqa: PLW0108 - without `strict`
    triton = request.getfixturevalue("triton")

    @contextlib.contextmanager
    def serving(repository: Path, *load: str, strict: bool = False) -> Iterator[Engine]:
        arguments = [f"--load-model={name}" for name in load] + ["--disable-auto-complete-config"] * strict
        with triton.serve(repository, *arguments) as server:
            addresses = {"http": server.url.removeprefix("http://"), "grpc": server.grpc_url.removeprefix("grpc://")}
            yield Engine(**addresses, repository=repository)

    return serving


@pytest.fixture(scope="session")
def models_in() -> Callable[[Path], Models]:
    return lambda repository: Models(repository=repository)


@pytest.fixture
def serve(repository: Path) -> Iterator[Callable[..., Engine]]:
    """Start a server over this test's repository; keyword arguments are `limits` and those of `ModelServer`."""
    with contextlib.ExitStack() as stack:
        yield lambda *load, **options: stack.enter_context(_serving(repository, *load, **options))


@pytest.fixture(params=CLIENT_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "it did not happen within 30 s"
            time.sleep(0.01)

    return wait


@pytest.fixture
def asker() -> Callable[[str, Engine], Asker]:
    return Asker
