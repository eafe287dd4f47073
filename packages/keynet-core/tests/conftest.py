"""What several tests of keynet_core need: a small package, a store, and Python in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import pytest

from keynet_core import (
    DataType,
    LocalStore,
    ModelPackage,
    ModelPublished,
    Outbox,
    Probe,
    Signature,
    TensorSpec,
    open_store,
    to_digest,
    to_model_name,
)
from keynet_core._fsspec_store import FsspecStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from keynet_core import ObjectStore

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype=DataType.FP32, shape=("batch", 2)),),
    outputs=(TensorSpec(name="y", dtype=DataType.FP32, shape=("batch", 1)),),
)


@pytest.fixture
def signature() -> Signature:
    return SIGNATURE


@pytest.fixture
def make_probe() -> Callable[[float], Probe]:
    def make(value: float = 1.0) -> Probe:
        return Probe(
            inputs={"x": np.full((1, 2), value, np.float32)}, outputs={"y": np.full((1, 1), 2 * value, np.float32)}
        )

    return make


@pytest.fixture
def make_package(make_probe: Callable[[float], Probe]) -> Callable[..., ModelPackage]:
    """Return a function that builds a package with a model, external data in a folder, a config and a probe."""

    def make(directory: Path, *, name: str = "mnist", model: bytes = b"weights", probe: float = 1.0) -> ModelPackage:
        (directory / "data").mkdir(parents=True)
        (directory / "model.onnx").write_bytes(model)
        (directory / "data" / "model.onnx.data").write_bytes(b"\x00" * 1000)
        (directory / "config.pbtxt").write_text(f'name: "{name}"\n')
        return ModelPackage.build(directory, name=to_model_name(name), signature=SIGNATURE, probe=make_probe(probe))

    return make


@pytest.fixture
def published() -> ModelPublished:
    return ModelPublished(
        model=to_model_name("mnist"),
        digest=to_digest("sha256:" + "ab" * 32),
        store="file:///srv/store",
        model_version="3",
        run_id="r1",
    )


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Return a function that makes an S3 server the one that this process, and what it starts, finds."""

    def use(server: Any) -> None:
        for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_S3_"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name, value in server.environ().items():
            monkeypatch.setenv(name, value)

    return use


@pytest.fixture(scope="session")
def buckets() -> dict[str, str]:
    """Engine to the bucket its tests share, each below a prefix of its own: making one takes a second."""
    return {}


@pytest.fixture
def open_engine(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    s3_environment: Callable[[Any], None],
    buckets: dict[str, str],
) -> Callable[[str], ObjectStore]:
    """Return a function that opens a new, empty store on the engine of a name."""

    def open_on(engine: str) -> ObjectStore:
        if engine == "local":
            return LocalStore(tmp_path / "store")
        if engine.startswith("fsspec-"):
            fsspec = pytest.importorskip("fsspec", reason="needs fsspec: pip install fsspec")
            filesystem = partial(fsspec.filesystem, engine.removeprefix("fsspec-"), auto_mkdir=True)
            root = f"{tmp_path}/fsspec"
            filesystem().mkdirs(root)
            return FsspecStore(f"{engine}://{root}", root, filesystem)
        server = request.getfixturevalue(engine)
        s3_environment(server)
        if engine not in buckets:
            buckets[engine] = server.bucket()
        return open_store(f"s3://{buckets[engine]}/tests/{uuid4()}")

    return open_on


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 KiB."""
    where = tmp_path / "tiny"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(where)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot be run here: {' '.join(command)}: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", str(where)], check=True)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a text as a program and waits for it."""

    def run(code: str, *arguments: object, **more: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)  # type: ignore[call-overload,no-any-return]

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a text as a program; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait(timeout=30)
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Return a function that waits until something holds, for a bounded time."""

    def wait(holds: Callable[[], object], *, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, "it never happened"
            os.sched_yield()

    return wait
