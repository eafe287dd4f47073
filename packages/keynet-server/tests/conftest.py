"""A home, a store with real packages, an engine in memory and the deployer between them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from consuming import broker, consume, publisher, send, serve, to_services  # noqa: F401 - fixtures
from keynet_core import (
    DataType,
    Lineage,
    LocalStore,
    ModelPackage,
    ModelPublished,
    Probe,
    Signature,
    TensorSpec,
    open_store,
    to_model_name,
    upload_package,
)
from keynet_server._database import migrate, open_database
from keynet_server._deployer import Deployer
from keynet_server._engine import IndexRow
from keynet_server._errors import EngineRefused, EngineUnavailable
from keynet_server._journal import Journal
from keynet_server._materialize import DirectoryRepository
from keynet_server._object_repository import ObjectRepository
from keynet_server._repository import Built
from keynet_server._sources import to_placement
from several_servers import new_server  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keynet_core import ObjectStore
    from keynet_server._records import Deployment
    from keynet_server._repository import ServingRepository

CONFIG = """name: "{name}"
backend: "onnxruntime"
max_batch_size: 8
input {{ name: "input_0" data_type: TYPE_FP32 dims: [3] }}
output {{ name: "output_0" data_type: TYPE_FP32 dims: [3] }}
instance_group {{ count: 1 }}
"""
SPEC = TensorSpec(name="input_0", dtype=DataType.FP32, shape=("batch", 3))
SIGNATURE = Signature(inputs=(SPEC,), outputs=(TensorSpec(name="output_0", dtype=DataType.FP32, shape=("batch", 3)),))
SAMPLE = np.arange(6, dtype=np.float32).reshape(2, 3)


def onnx_bytes(factor: float) -> bytes:
    """Return a model that multiplies by `factor`."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Mul", ["input_0", "factor"], ["output_0"])],
        "times",
        [helper.make_tensor_value_info("input_0", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("output_0", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


@dataclass
class Publishing:
    """Builds packages and puts them into a store."""

    store: LocalStore
    scratch: Path
    count: int = 0

    def package(
        self, name: str, factor: float, *, files: dict[str, bytes] | None = None, **options: Any
    ) -> ModelPackage:
        """Build a package; `answers` is the factor the probe was recorded with."""
        self.count += 1
        directory = self.scratch / f"package-{self.count}"
        directory.mkdir(parents=True)
        served = {"model.onnx": onnx_bytes(factor), "config.pbtxt": CONFIG.format(name=name).encode()} | (files or {})
        for path, data in served.items():
            (directory / path).parent.mkdir(exist_ok=True)
            (directory / path).write_bytes(data)
        probe = Probe(inputs={"input_0": SAMPLE}, outputs={"output_0": SAMPLE * options.get("answers", factor)})
        return ModelPackage.build(
            directory,
            name=to_model_name(name),
            signature=SIGNATURE,
            probe=probe if options.get("probed", True) else None,
            lineage=Lineage(run_id=options.get("run_id")),
        )

    def publish(
        self, name: str = "times", factor: float = 2.0, *, version: str | None = None, **options: Any
    ) -> ModelPublished:
        """Store a package and return what announces it."""
        package = self.package(name, factor, **options)
        upload_package(package, self.store)
        return ModelPublished(
            model=package.manifest.name,
            digest=package.digest,
            store=self.store.url,
            model_version=version,
            run_id=options.get("run_id") or f"run-{self.count}",
        )


@dataclass
class MemoryEngine:
    """A serving engine that loads what the links point at, with ONNX Runtime, and fails on demand."""

    models: Path
    loaded: dict[str, tuple[str, Any]] = field(default_factory=dict)
    served: dict[str, set[str]] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    down: bool = False
    refuse: str | None = None
    dies_on_load: bool = False
    never_ready: bool = False

    def load(self, name: str, config: str | None = None) -> None:
        self._answer("load", name)
        if self.dies_on_load:
            self.down = True
            raise EngineUnavailable("the engine closed the connection")
        if self.refuse:
            raise EngineRefused(self.refuse)
        import onnxruntime

        versions = [path for path in (self.models / name).iterdir() if path.name.isdigit()]
        newest = max(versions, key=lambda path: int(path.name))
        try:
            session = onnxruntime.InferenceSession(str(newest / "model.onnx"), providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EngineRefused(f"failed to load '{name}': {error}") from error
        self.loaded[name] = (newest.name, session)
        self.served[name] = {path.name for path in versions}

    def unload(self, name: str) -> None:
        self._answer("unload", name)
        self.loaded.pop(name, None)

    def is_live(self) -> bool:
        if self.down:
            raise EngineUnavailable("the engine is down")
        return True

    def is_ready(self, name: str, version: str) -> bool:
        self.is_live()
        return not self.never_ready and name in self.loaded and version in self.served[name]

    def index(self) -> list[IndexRow]:
        self.is_live()
        return [IndexRow(name=name, version=version, state="READY") for name, (version, _) in self.loaded.items()]

    def infer(self, name: str, version: str, inputs: Any) -> Any:
        self._answer("infer", name)
        session = self.loaded[name][1]
        names = [each.name for each in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def factor(self, name: str = "times") -> float:
        """Return the factor by which the model multiplies now."""
        return float(self.infer(name, "", {"input_0": SAMPLE})["output_0"][0, 1] / SAMPLE[0, 1])

    def _answer(self, what: str, name: str) -> None:
        self.is_live()
        self.calls.append((what, name))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def publishing(home: Path, tmp_path: Path) -> Publishing:
    return Publishing(store=LocalStore(home / "store"), scratch=tmp_path / "scratch")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """Make the tables once; each test gets a copy."""
    home = tmp_path_factory.mktemp("migrated")
    database = open_database(f"sqlite:///{home / 'keynet.db'}")
    migrate(database, home / "migrate.lock")
    database.dispose()
    return home / "keynet.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path: Path) -> str:
    """Return the URL of an empty database of each kind that a journal runs on."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'journal.db'}"
    return request.getfixturevalue("postgresql").database()


@pytest.fixture
def database(database_url: str):
    """Open the empty database."""
    database = open_database(database_url)
    yield database
    database.dispose()


@pytest.fixture
def journal(home: Path, migrated: Path):
    home.mkdir(exist_ok=True)
    shutil.copy(migrated, home / "keynet.db")
    database = open_database(f"sqlite:///{home / 'keynet.db'}")
    yield Journal(database)
    database.dispose()


@pytest.fixture
def repository(home: Path) -> DirectoryRepository:
    repository = DirectoryRepository(home / "serving")
    repository.prepare()
    return repository


def link_again(repository: ServingRepository, deployment: Deployment) -> None:
    """Link what was built for a deployment, whatever the journal says of it."""
    placement = to_placement(deployment)
    repository.link(Built(placement=placement, probe=None, versions=(placement.version,)))


@pytest.fixture(name="link_again")
def link_again_fixture():
    return link_again


@pytest.fixture
def engine(repository: DirectoryRepository) -> MemoryEngine:
    return MemoryEngine(repository.models)


@pytest.fixture
def deployer(
    journal: Journal, publishing: Publishing, repository: DirectoryRepository, engine: MemoryEngine
) -> Deployer:
    return Deployer(journal=journal, store=publishing.store, repository=repository, engine=engine)


@dataclass(frozen=True)
class Serving:
    """The real model server, on a repository of its own."""

    root: Path
    url: str
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="session")
def serving(tmp_path_factory):
    """Run `keynet_serving` once for all tests that need the real thing; each uses model names of its own."""
    root = tmp_path_factory.mktemp("serving")
    with model_server(root, root / "models") as serving:
        yield serving


@pytest.fixture(scope="module")
def own_serving(tmp_path_factory):
    """Run `keynet_serving` for one module of tests, which put links in order that they do not know."""
    root = tmp_path_factory.mktemp("own-serving")
    with model_server(root, root / "models") as serving:
        yield serving


@contextmanager
def model_server(root: Path, models: Path) -> Iterator[Serving]:
    """Run `keynet_serving` on a directory of models."""
    models.mkdir(exist_ok=True)
    ready = root / "ready.json"
    command = [sys.executable, "-m", "keynet_serving", "--model-repository", str(models)]
    command += ["--http-port", "0", "--grpc-port", "0", "--ready-file", str(ready)]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        eventually(ready.exists, timeout_s=60.0)
        yield Serving(root=root, url=f"http://{json.loads(ready.read_text())['http']}", process=process)
    finally:
        process.terminate()
        process.wait(60)


@dataclass(frozen=True)
class Stage:
    """An engine, the repository it reads, and a store with packages; model names are each test's own."""

    name: str
    url: str
    repository_url: str
    store: ObjectStore
    aside: Path

    def repository(self, on_step: Callable[[str], None] = lambda _step: None) -> ServingRepository:
        """Return the repository, prepared; of objects also where the store is a directory."""
        kind, _, address = self.repository_url.partition(":")
        if kind == "objects":
            repository = ObjectRepository(open_store(address), self.aside, on_step=on_step)
        else:
            repository = DirectoryRepository(Path(address), on_step=on_step)
        repository.prepare()
        return repository


STAGES = ("model server", "model server, objects", "Triton", "Triton, Ceph")


@pytest.fixture(scope="module", params=STAGES)
def stage(request, tmp_path_factory):
    """Run each engine on each kind of repository, once a module."""
    root = tmp_path_factory.mktemp("stage")
    engine, _, objects = request.param.partition(", ")
    with ExitStack() as ending:
        store, address, read = LocalStore(root / "store"), f"directory:{root}", root / "models"
        environ: dict[str, str] = {}
        if objects == "Ceph":
            ceph = request.getfixturevalue("ceph")
            environ, bucket = ceph.environ(), ceph.bucket()
            patch = ending.enter_context(pytest.MonkeyPatch.context())
            for name, value in environ.items():
                patch.setenv(name, value)
            store, address = open_store(f"s3://{bucket}/store"), f"objects:s3://{bucket}/models"
            read = f"s3://{ceph.url}/{bucket}/models"
        elif objects:
            address = f"objects:{root / 'models'}"
        stage = Stage(name=request.param, url="", repository_url=address, store=store, aside=root / "aside")
        stage.repository()
        if engine == "Triton":
            triton = request.getfixturevalue("triton")
            strict = "--disable-auto-complete-config"
            server = ending.enter_context(triton.serve(read, strict, environ=environ))
        else:
            server = ending.enter_context(model_server(root, read))
        yield replace(stage, url=server.url)


def eventually(holds: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Return what `holds` returns once it is true; fail when that takes too long."""
    deadline = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


@pytest.fixture(name="eventually")
def eventually_fixture():
    return eventually


@pytest.fixture(scope="session")
def publishing_class():
    return Publishing


@pytest.fixture
def publish(publishing, deployer):
    """Publish a package, receive its event and act on it; return the outcome."""

    def publish(factor=2.0, **options):
        event = publishing.publish("times", factor, **options).to_event()
        assert deployer.receive(event)
        return deployer.deploy(deployer.journal.event(event.id))

    return publish
