"""
What TritonPlugin costs on top of what it is made of, and what importing it costs.

Over HTTP and gRPC: against Triton's own client, set up once, with the smallest request it can make. In process:
against ONNX Runtime's session for a tiny network. Every way asks the same model of the same server. The two ways take
turns, request by request, so that a busy machine disturbs both alike; a round's ratio is that of the medians of its
requests, and the ratio told is the median of the rounds.

To NVIDIA Triton, where it is installed, large inputs through shared memory are measured against the same without.

Importing and `--help`: processor time of a fresh interpreter above one that imports numpy, or nothing; the least of
the rounds, as everything else that runs only adds to it.

    python benchmarks/bench_predict.py [--rounds 31] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_S = 60
LARGE = 5 * 1024 * 1024 // 4
SIZES = {"1 KB": (1, 256), "5 MB": (1, LARGE)}
CONFIG = 'backend: "onnxruntime"\nmax_batch_size: 8\n'

Ask = "Callable[[np.ndarray], np.ndarray]"


def save_models(repository: Path) -> None:
    """Write a model that sums its row, and a network of 16-64-64-10."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    widths = (16, 64, 64, 10)
    weights = [
        numpy_helper.from_array(rng.standard_normal(pair, np.float32), f"w{number}")
        for number, pair in enumerate(itertools.pairwise(widths))
    ]
    layers = [
        helper.make_node("MatMul", ["input_0", "w0"], ["m0"]),
        helper.make_node("Relu", ["m0"], ["r0"]),
        helper.make_node("MatMul", ["r0", "w1"], ["m1"]),
        helper.make_node("Relu", ["m1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "w2"], ["output_0"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    total = [helper.make_node("ReduceSum", ["input_0", "axes"], ["output_0"], keepdims=1)]
    for name, nodes, constants, dims in (("total", total, [axes], ("n", 1)), ("tiny", layers, weights, (16, 10))):
        takes, gives = (
            helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["batch", dim])
            for tensor, dim in zip(("input_0", "output_0"), dims, strict=True)
        )
        graph = helper.make_graph(nodes, name, [takes], [gives], constants)
        folder = repository / name / "1"
        folder.mkdir(parents=True)
        opset = [helper.make_opsetid("", 17)]
        (folder / "model.onnx").write_bytes(
            helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
        )
        (folder.parent / "config.pbtxt").write_text(
            CONFIG + "".join(_row(side, row, dim) for side, row, dim in _rows(dims))
        )


def _rows(dims: tuple[Any, Any]) -> list[tuple[str, str, Any]]:
    return [("input", "input_0", dims[0]), ("output", "output_0", dims[1])]


def _row(side: str, name: str, dim: Any) -> str:
    return f'{side} {{ name: "{name}" data_type: TYPE_FP32 dims: [ {-1 if dim == "n" else dim} ] }}\n'


@contextlib.contextmanager
def serving(repository: Path) -> Iterator[dict[str, str]]:
    """Serve a repository in another process, and say where."""
    ready = repository.parent / "ready.json"
    command = [sys.executable, "-m", "keynet_serving", "--model-repository", str(repository), "--load-model", "*"]
    command += ["--http-port", "0", "--grpc-port", "0", "--ready-file", str(ready)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + START_S
    try:
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the model server did not start")
            time.sleep(0.05)
        yield json.loads(ready.read_text())
    finally:
        process.terminate()
        process.wait(START_S)


def bare(module: Any, address: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the shortest request of one of Triton's clients."""
    client = module.InferenceServerClient(address)

    def ask(array: np.ndarray) -> np.ndarray:
        tensor = module.InferInput("input_0", array.shape, "FP32")
        tensor.set_data_from_numpy(array)
        return client.infer("total", [tensor]).as_numpy("output_0")

    return ask


def plugin(url: str, model: str, **options: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return a request of ours."""
    from keynet_inference import TritonPlugin

    asked = TritonPlugin(url, model, **options)
    return lambda array: asked.predict(df={"input_0": array})["output_0"]


def session(repository: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a run of ONNX Runtime alone."""
    import onnxruntime

    run = onnxruntime.InferenceSession(repository / "tiny/1/model.onnx", providers=["CPUExecutionProvider"]).run
    return lambda array: run(None, {"input_0": array})[0]


def compare(name: str, base: Any, ours: Any, array: np.ndarray, rounds: int) -> dict[str, Any]:
    """Let two ways take turns; a round is as many requests of each as take about a tenth of a second."""
    np.testing.assert_allclose(base(array), ours(array), rtol=1e-3)
    count = max(7, int(0.1 / statistics.median(sum(pair) for pair in _take_turns(base, ours, array, 7))))
    pairs = []
    for _ in range(rounds):
        turns = _take_turns(base, ours, array, count)
        pairs.append(tuple(statistics.median(each) for each in zip(*turns, strict=True)))
    ratios = [mine / theirs for theirs, mine in pairs]
    return {
        "name": name,
        "base_ms": statistics.median(theirs for theirs, _ in pairs) * 1e3,
        "keynet_ms": statistics.median(mine for _, mine in pairs) * 1e3,
        "ratio": statistics.median(ratios),
        "quartiles": statistics.quantiles(ratios, n=4)[::2],
        "rounds": rounds,
    }


def _take_turns(base: Any, ours: Any, array: np.ndarray, count: int) -> list[tuple[float, float]]:
    """Return how long each of `count` pairs of requests took; who is first alternates."""
    pairs = []
    for number in range(count):
        first, second = (base, ours) if number % 2 else (ours, base)
        times = {first: _time(first, array), second: _time(second, array)}
        pairs.append((times[base], times[ours]))
    return pairs


def _time(ask: Any, array: np.ndarray) -> float:
    start = time.perf_counter()
    ask(array)
    return time.perf_counter() - start


def measure_sharing(repository: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield what shared memory makes of large inputs to NVIDIA Triton, against the same plugin without."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from engines.triton import TritonServer

    if TritonServer.is_installed() is not None:
        print("shared memory is not measured: it needs Triton (make engines)", file=sys.stderr)
        return
    with TritonServer(repository, ["--load-model=total"]) as server:
        for megabytes in (5, 50):
            array = np.random.default_rng(1).random((1, megabytes * 1024 * 1024 // 4), np.float32)
            for scheme, url in (("http", server.url), ("grpc", server.grpc_url)):
                name = f"{scheme}, {megabytes} MB, shared memory over none, Triton"
                yield compare(name, plugin(url, "total"), plugin(url, "total", shared_memory=True), array, rounds)


STARTS = {
    "import": ("from keynet_inference import keynet_function, UserInput, TritonPlugin, Storage", "import numpy"),
    "--help": ("import sys; sys.argv[1:] = ['--help']; from keynet_inference._cli import main; main()", "pass"),
}


def measure_starts(rounds: int) -> Iterator[dict[str, Any]]:
    """Yield what a start costs, and what it is measured above, in milliseconds of processor time."""
    for name, (code, base) in STARTS.items():
        with_numpy = f"{base}\n{code}" if base != "pass" else code
        with tempfile.TemporaryDirectory() as cache:
            pairs = [(_cpu_ms(base, cache), _cpu_ms(with_numpy, cache)) for _ in range(rounds + 1)]
        theirs, mine = (min(each) for each in zip(*pairs, strict=True))
        yield {"name": name, "above": base, "base_ms": theirs, "keynet_ms": mine - theirs, "rounds": rounds}


def _cpu_ms(code: str, cache: str) -> float:
    environ = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": cache}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=environ, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def measure(directory: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield one row per way and size."""
    import tritonclient.grpc
    import tritonclient.http

    rng = np.random.default_rng(1)
    repository = directory / "models"
    save_models(repository)
    with serving(repository) as addresses:
        for size, shape in SIZES.items():
            array = rng.random(shape, np.float32)
            for scheme, module in (("http", tritonclient.http), ("grpc", tritonclient.grpc)):
                base = bare(module, addresses[scheme])
                ours = plugin(f"{scheme}://{addresses[scheme]}", "total")
                yield compare(f"{scheme}, {size}, over tritonclient", base, ours, array, rounds)
    yield from measure_sharing(repository, rounds)
    tiny = rng.random((1, 16), np.float32)
    ours = plugin(repository.as_uri(), "tiny")
    yield compare("file, tiny network, over ONNX Runtime", session(repository), ours, tiny, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--quick", action="store_true", help="five rounds")
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args()
    rounds = 5 if chosen.quick else chosen.rounds
    with tempfile.TemporaryDirectory() as directory:
        figures = list(measure(Path(directory), rounds))
    starts = list(measure_starts(rounds))
    print("| way | base, ms | keynet, ms | ratio | quartiles |")
    print("|---|---|---|---|---|")
    for row in figures:
        low, high = row["quartiles"]
        print(
            f"| {row['name']} | {row['base_ms']:.4f} | {row['keynet_ms']:.4f} | {row['ratio']:.3f} "
            f"| {low:.3f} to {high:.3f} |"
        )
    print("\n| start | above | processor time, ms |\n|---|---|---|")
    for row in starts:
        print(f"| {row['name']} | {row['above']} | {row['keynet_ms']:.1f} |")
    if chosen.json:
        chosen.json.write_text(json.dumps({"requests": figures, "starts": starts}, indent=2))


if __name__ == "__main__":
    main()
