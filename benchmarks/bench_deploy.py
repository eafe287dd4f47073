"""
From an event to an answer, on both engines, split by step; and both engines asked for the same models.

First: packages of 10 MB, each with weights of its own, are in the store before the clock starts. It starts when the
event is sent over HTTP. "answered" is when a client that keeps asking is answered by the new version, "journaled" when
the server has probed it and counts it; the steps between are the server's own. The engines take turns.

Then: the model server and the real Triton read the same repository, and answer the same clients by turns. Triton runs
ONNX Runtime behind a backend in Python here, one process for each instance: what NVIDIA's image has is faster.

    python benchmarks/bench_deploy.py [--rounds 7] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench_serving import CLIENTS, over_grpc, over_http, serving, throughput, timed
from onnx_models import write_conv, write_mlp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keynet_core import Event, ObjectStore
    from keynet_server._repository import ServingRepository

WEIGHTS = 2_560_000
"""In FP32: the model is of 10 MB."""

STEPS = ("receive", "begin", "fetch", "build", "link", "load", "ready", "probe", "journal")
ENDS = {
    "received": "receive",
    "begun": "begin",
    "fetched": "fetch",
    "materialized": "build",
    "linked": "link",
    "loaded": "load",
    "ready": "ready",
    "probed": "probe",
    "journaled": "journal",
}
"""The deployer's name of what was done, and this page's."""

TOTALS = ("answered", "journaled")

TOKEN = "a-token-for-a-benchmark"  # noqa: S105 - it guards nothing
NAME = "ten-megabytes"
DEADLINE_S = 120.0


@dataclass
class Place:
    """An engine with its repository, and a keynet server in this process that deploys to it."""

    store: ObjectStore
    engine_url: str
    server_url: str
    marks: dict[str, float] = field(default_factory=dict)
    journaled: threading.Event = field(default_factory=threading.Event)
    published: int = 0

    def deploy(self) -> dict[str, float]:
        """Publish one more package, and return how long each step took, and all of it, in seconds."""
        from keynet_core import HttpPublisher, Secret

        self.published += 1
        event = publish(self.store, self.published)
        publisher = HttpPublisher(url=self.server_url, token=Secret(TOKEN))
        self.marks.clear()
        self.journaled.clear()
        asking = threading.Thread(target=self._ask_until_answered)
        asking.start()
        begun = time.perf_counter()
        publisher.publish(event)
        asking.join(DEADLINE_S)
        if not self.journaled.wait(DEADLINE_S) or "answered" not in self.marks:
            raise SystemExit(f"{self.engine_url} does not answer for version {self.published}")
        return self._split(begun)

    def on_step(self, step: str) -> None:
        """Note when a step ended."""
        self.marks[step] = time.perf_counter()
        if step == "journaled":
            self.journaled.set()

    def _split(self, begun: float) -> dict[str, float]:
        at = begun
        taken = {}
        for end, step in ENDS.items():
            taken[step] = self.marks[end] - at
            at = self.marks[end]
        return taken | {name: self.marks[name] - begun for name in TOTALS}

    def _ask_until_answered(self) -> None:
        """Ask for the new version as a client would that waits for it."""
        from keynet_inference import TritonPlugin

        ready = f"{self.engine_url}/v2/models/{NAME}/versions/{self.published}/ready"
        deadline = time.monotonic() + DEADLINE_S
        while not is_ok(ready):
            if time.monotonic() > deadline:
                return
            time.sleep(0.005)
        with TritonPlugin(self.engine_url, NAME, self.published) as plugin:
            plugin.predict({"input_0": np.ones((1, 1), np.float32)})
        self.marks["answered"] = time.perf_counter()


def is_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE_S):  # noqa: S310 - an engine of this program
            return True
    except OSError:
        return False


def publish(store: ObjectStore, number: int) -> Event:
    """Put a package of 10 MB into a store, and return the event that announces it."""
    from keynet_core import (
        DataType,
        ModelPackage,
        ModelPublished,
        Probe,
        Signature,
        TensorSpec,
        to_model_name,
        upload_package,
    )

    weights = np.random.default_rng(number).standard_normal(WEIGHTS).astype(np.float32)
    specs = [TensorSpec(name=name, dtype=DataType.FP32, shape=("batch", 1)) for name in ("input_0", "output_0")]
    probe = Probe(inputs={"input_0": np.ones((1, 1), np.float32)}, outputs={"output_0": weights[:1].reshape(1, 1)})
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory), weights)
        package = ModelPackage.build(
            Path(directory),
            name=to_model_name(NAME),
            signature=Signature(inputs=(specs[0],), outputs=(specs[1],)),
            probe=probe,
        )
        upload_package(package, store)
    told = ModelPublished(
        model=package.manifest.name, digest=package.digest, store=store.url, model_version=str(number), run_id=None
    )
    return told.to_event()


def write_model(directory: Path, weights: Any) -> None:
    """Write a model that keeps all its weights and multiplies by the first."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Gather", ["weights", "first"], ["factor"]),
        helper.make_node("Mul", ["input_0", "factor"], ["output_0"]),
    ]
    shapes = [
        helper.make_tensor_value_info(f"{kind}_0", TensorProto.FLOAT, ["batch", 1]) for kind in ("input", "output")
    ]
    stored = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([0]), "first")]
    graph = helper.make_graph(nodes, "main", shapes[:1], shapes[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    (directory / "config.pbtxt").write_text(
        f'name: "{NAME}" backend: "onnxruntime" instance_group {{ count: 1 }}\n'
        'input { name: "input_0" data_type: TYPE_FP32 dims: [-1, 1] }\n'
        'output { name: "output_0" data_type: TYPE_FP32 dims: [-1, 1] }\n'
        'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
    )


@contextlib.contextmanager
def keynet_server(
    home: Path, store: ObjectStore, repository: ServingRepository, engine_url: str, place: Place
) -> Iterator[str]:
    """Run the server's routes and its worker in this process, and note when each step ended."""
    import uvicorn

    from keynet_core import Outbox, Secret
    from keynet_server._app import Services
    from keynet_server._database import migrate, open_database
    from keynet_server._deployer import Deployer
    from keynet_server._engine import KServeEngine
    from keynet_server._journal import Journal
    from keynet_server._pages import Links
    from keynet_server._serve import with_life
    from keynet_server._worker import Worker

    database = open_database(f"sqlite:///{home / 'keynet.db'}")
    migrate(database, home / "migrate.lock")
    deployer = Deployer(
        journal=Journal(database),
        store=store,
        repository=repository,
        engine=KServeEngine(url=engine_url),
        on_step=place.on_step,
    )
    worker = Worker(deployer, Outbox(home / "outbox"), store)
    links = Links(tracking=None, serving=None)
    services = Services(deployer=deployer, worker=worker, token=Secret(TOKEN), links=links)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(with_life(services), log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            database.dispose()


@contextlib.contextmanager
def places(folder: Path) -> Iterator[dict[str, Place]]:
    """Start every engine that is installed, each with a repository of its own."""
    from keynet_core import LocalStore, open_store
    from keynet_server._materialize import DirectoryRepository
    from keynet_server._object_repository import ObjectRepository

    with contextlib.ExitStack() as ending:
        found: dict[str, Place] = {}

        def add(name: str, store: ObjectStore, repository: ServingRepository, url: str) -> None:
            (folder / name).mkdir(exist_ok=True)
            found[name] = place = Place(store=store, engine_url=url, server_url="")
            place.server_url = ending.enter_context(keynet_server(folder / name, store, repository, url, place))

        for name in ("model server", "Triton"):
            (folder / name).mkdir()
            repository = DirectoryRepository(folder / name)
            repository.prepare()
            if name == "Triton":
                url = ending.enter_context(triton(repository.models)).url
            else:
                url = f"http://{ending.enter_context(serving(repository.models))['http']}"
            add(name, LocalStore(folder / name / "store"), repository, url)
        ceph = ending.enter_context(require("ceph", "Ceph")())
        os.environ.update(ceph.environ())
        bucket = ceph.bucket()
        objects = ObjectRepository(open_store(f"s3://{bucket}/models"), folder / "aside")
        objects.prepare()
        url = ending.enter_context(triton(f"s3://{ceph.url}/{bucket}/models", ceph.environ())).url
        add("Triton, S3", open_store(f"s3://{bucket}/store"), objects, url)
        yield found


def require(module: str, name: str) -> Any:
    """Return a class of the test suite's engines, when it can be started."""
    from importlib import import_module

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    kind = getattr(import_module(f"engines.{module}"), name)
    if missing := kind.is_installed():
        raise SystemExit(f"needs {kind.NAME}: make engines ({missing})")
    return kind


def triton(repository: Path | str, environ: dict[str, str] | None = None, *arguments: str) -> Any:
    """Return a real Triton on a repository, to be entered."""
    return require("triton", "TritonServer")(repository, ("--disable-auto-complete-config", *arguments), environ)


def measure_deployments(rounds: int) -> dict[str, dict[str, float]]:
    """Deploy to each engine by turns; return the median of each step, in seconds."""
    with tempfile.TemporaryDirectory() as folder, places(Path(folder)) as found:
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in found}
        for number in range(rounds + 1):
            for name, place in found.items():
                steps = place.deploy()
                if number:  # the first opens connections and imports what is needed
                    taken[name].append(steps)
    return {name: medians(each) for name, each in taken.items()}


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {step: statistics.median(each[step] for each in rounds) for step in (*STEPS, *TOTALS)}


def measure_engines(rounds: int, calls: int, seconds: float) -> dict[str, Any]:
    """Ask both engines for the same models by turns; return each median, in milliseconds, and requests a second."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ending:
        repository = Path(folder) / "models"
        samples = {"mlp": write_mlp(repository), "conv": write_conv(repository)}
        embedded = ending.enter_context(serving(repository))
        real = ending.enter_context(triton(repository, None, "--load-model=*"))
        addresses = {
            "model server": embedded,
            "Triton": {"http": real.url.removeprefix("http://"), "grpc": real.grpc_url.removeprefix("grpc://")},
        }
        asking = {
            (model, protocol, engine): ending.enter_context(way(address[protocol], model, *sample))
            for model, sample in samples.items()
            for protocol, way in (("http", over_http), ("grpc", over_grpc))
            for engine, address in addresses.items()
        }
        taken: dict[tuple[str, str, str], list[float]] = {key: [] for key in asking}
        rates: dict[str, list[float]] = {engine: [] for engine in addresses}
        for _ in range(rounds):
            for key, ask in asking.items():
                taken[key].append(float(np.percentile(timed(ask, calls), 50)))
            for engine, address in addresses.items():
                rates[engine].append(throughput(address["http"], *samples["mlp"], seconds))
        p50 = {key: statistics.median(each) for key, each in taken.items()}
        return {
            "p50_ms": [
                {"model": model, "protocol": protocol, **{engine: p50[model, protocol, engine] for engine in addresses}}
                for model in samples
                for protocol in ("http", "grpc")
            ],
            "mlp_http_requests_per_s": {engine: statistics.median(each) for engine, each in rates.items()},
            "clients": CLIENTS,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    chosen = parser.parse_args()
    rounds, calls, seconds = (2, 200, 1.0) if chosen.quick else (chosen.rounds, 1000, 3.0)
    deployments = measure_deployments(rounds)
    engines = measure_engines(rounds, calls, seconds)
    print(to_markdown(deployments, engines))
    if chosen.json:
        chosen.json.write_text(json.dumps({"deployments_s": deployments, "engines": engines}, indent=2))


def to_markdown(deployments: dict[str, dict[str, float]], engines: dict[str, Any]) -> str:
    lines = [
        f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}",
        "",
        "From an event sent to an answer of the new version, a model of 10 MB, medians in ms:",
        "",
        f"| engine, repository | {' | '.join((*STEPS, *TOTALS))} | ratio |",
        "|---" * (len(STEPS) + len(TOTALS) + 2) + "|",
    ]
    base = deployments["model server"]["answered"]
    for name, steps in deployments.items():
        cells = " | ".join(f"{steps[step] * 1e3:.1f}" for step in (*STEPS, *TOTALS))
        lines.append(f"| {name} | {cells} | {steps['answered'] / base:.2f} |")
    lines += [
        "",
        "Triton against the model server on the same repository, medians of p50 in ms:",
        "",
        "| model | protocol | model server | Triton | ratio |",
        "|---|---|---|---|---|",
    ]
    for row in engines["p50_ms"]:
        ours, theirs = row["model server"], row["Triton"]
        lines.append(f"| {row['model']} | {row['protocol']} | {ours:.3f} | {theirs:.3f} | {theirs / ours:.2f} |")
    rates = engines["mlp_http_requests_per_s"]
    ratio = rates["Triton"] / rates["model server"]
    told = ", ".join(f"{engine} {rate:.0f}" for engine, rate in rates.items())
    lines += ["", f"mlp over HTTP, {engines['clients']} clients, requests/s: {told}; ratio {ratio:.2f}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
