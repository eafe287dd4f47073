"""
Measure the model server against ONNX Runtime in process, in one run on one machine.

    python benchmarks/bench_serving.py [--quick] [--json PATH] [--check]

Rounds are interleaved, so that a busy machine disturbs every row alike. A ratio compares the best round of a row with
the best round of ONNX Runtime in process with the same session options; both sides run with one thread.

Three rows are no model server and say what one could reach on this machine, asked by the same client with the same
request: an empty application on uvicorn; a blocking socket that reads the request into memory it has and sends bytes it
has, which no server can be faster than; and the same with the inference between them. Prints Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnx_models import to_session, write_conv, write_mlp
from stand_ins import EMPTY, FLOOR, FLOOR_RUN, stand_in, stand_ins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Array = npt.NDArray[Any]
BUDGETS = {("mlp", "HTTP"): 45.0, ("conv", "HTTP"): 2.5, ("mlp", "in process, infer()"): 3.0}
CLIENTS = 8
IN_PROCESS = "in process, session.run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to ask one model."""

    model: str
    path: str
    p50_best_ms: float
    p50_median_ms: float
    p99_best_ms: float
    ratio: float
    budget: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: seconds, not a minute")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    parser.add_argument("--check", action="store_true", help="exit 1 when a ratio is over its budget")
    arguments = parser.parse_args()
    rounds, calls, seconds = (4, 300, 1.0) if arguments.quick else (9, 1500, 4.0)
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        samples = {"mlp": write_mlp(repository), "conv": write_conv(repository)}
        with contextlib.ExitStack() as stack:
            addresses = stack.enter_context(serving(repository))
            for way, command in stand_ins(repository).items():
                addresses[way] = stack.enter_context(stand_in(*command))
            rows = [
                row
                for model, (name, sample) in samples.items()
                for row in measure(repository, addresses, model, name, sample, rounds, calls)
            ]
            requests_per_s = throughput(addresses["http"], *samples["mlp"], seconds)
    print(to_markdown(rows, requests_per_s))
    if arguments.json:
        told = {"rows": [asdict(row) for row in rows], "mlp_http_requests_per_s": requests_per_s, "clients": CLIENTS}
        arguments.json.write_text(json.dumps(told, indent=2))
    over = [row for row in rows if row.budget is not None and row.ratio > row.budget]
    if arguments.check and over:
        sys.exit(f"over budget: {', '.join(f'{row.model} {row.path}' for row in over)}")


def measure(
    repository: Path, addresses: dict[str, str], model: str, name: str, sample: Array, rounds: int, calls: int
) -> list[Row]:
    with contextlib.ExitStack() as stack:
        ways = {
            IN_PROCESS: in_process(repository, model, name, sample),
            "in process, infer()": stack.enter_context(in_server(repository, model, name, sample)),
            "HTTP": stack.enter_context(over_http(addresses["http"], model, name, sample)),
            EMPTY: stack.enter_context(over_http(addresses[EMPTY], model, name, sample)),
            FLOOR: stack.enter_context(over_http(addresses[FLOOR], model, name, sample)),
            FLOOR_RUN: stack.enter_context(over_http(addresses[f"{FLOOR_RUN} {model}"], model, name, sample)),
            "gRPC": stack.enter_context(over_grpc(addresses["grpc"], model, name, sample)),
        }
        taken: dict[str, list[Array]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, ask in ways.items():
                taken[way].append(timed(ask, calls))
    base = min(float(np.percentile(each, 50)) for each in taken[IN_PROCESS])
    return [to_row(model, way, found, base) for way, found in taken.items()]


def to_row(model: str, way: str, rounds: list[Array], base: float) -> Row:
    medians = [float(np.percentile(each, 50)) for each in rounds]
    return Row(
        model=model,
        path=way,
        p50_best_ms=min(medians),
        p50_median_ms=statistics.median(medians),
        p99_best_ms=min(float(np.percentile(each, 99)) for each in rounds),
        ratio=min(medians) / base,
        budget=BUDGETS.get((model, way)),
    )


def timed(ask: Callable[[], object], calls: int) -> Array:
    for _ in range(20):
        ask()
    taken = np.empty(calls)
    for number in range(calls):
        begun = time.perf_counter_ns()
        ask()
        taken[number] = time.perf_counter_ns() - begun
    return taken / 1e6


def in_process(repository: Path, model: str, name: str, sample: Array) -> Callable[[], object]:
    session = to_session(repository / model / "1" / "model.onnx")
    return lambda: session.run(None, {name: sample})


@contextlib.contextmanager
def in_server(repository: Path, model: str, name: str, sample: Array) -> Iterator[Callable[[], object]]:
    from keynet_serving import ModelServer

    with ModelServer(repository) as server:
        server.load(model)
        yield lambda: server.infer(model, {name: sample})


@contextlib.contextmanager
def over_http(address: str, model: str, name: str, sample: Array) -> Iterator[Callable[[], object]]:
    import tritonclient.http as triton

    client = triton.InferenceServerClient(address)
    given = triton.InferInput(name, list(sample.shape), "FP32")
    given.set_data_from_numpy(sample)
    yield lambda: client.infer(model, [given]).as_numpy("output_0")
    client.close()


@contextlib.contextmanager
def over_grpc(address: str, model: str, name: str, sample: Array) -> Iterator[Callable[[], object]]:
    import tritonclient.grpc as triton

    client = triton.InferenceServerClient(address)
    given = triton.InferInput(name, list(sample.shape), "FP32")
    given.set_data_from_numpy(sample)
    yield lambda: client.infer(model, [given]).as_numpy("output_0")
    client.close()


def throughput(address: str, name: str, sample: Array, seconds: float) -> float:
    """Answers per second to clients that send prepared bytes, so that the load costs as little as it can."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": list(sample.shape),
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": sample.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    body = head + sample.tobytes()
    request = (
        f"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\n\r\n"
    ).encode() + body
    counts = [0] * CLIENTS
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=ask_until, args=(address, request, until, counts, number)) for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def ask_until(address: str, request: bytes, until: float, counts: list[int], number: int) -> None:
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.monotonic() < until:
            connection.sendall(request)
            answer = b""
            while not is_complete(answer):
                answer += connection.recv(65536)
            counts[number] += 1


def is_complete(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the server refused a request of the benchmark: {head!r}")
    return len(body) >= int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])


@contextlib.contextmanager
def serving(repository: Path) -> Iterator[dict[str, str]]:
    ready = repository.parent / "ready.json"
    command = [sys.executable, "-m", "keynet_serving", "--model-repository", str(repository), "--load-model", "*"]
    command += ["--http-port", "0", "--grpc-port", "0", "--ready-file", str(ready)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 30
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not start")
            time.sleep(0.02)
        yield json.loads(ready.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)


def to_markdown(rows: list[Row], requests_per_s: float) -> str:
    lines = [
        f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}",
        "",
        "| model | path | p50 best ms | p50 median ms | p99 best ms | ratio | budget |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        budget = f"{row.budget:g}x" if row.budget is not None else ""
        lines.append(
            f"| {row.model} | {row.path} | {row.p50_best_ms:.4f} | {row.p50_median_ms:.4f} | {row.p99_best_ms:.4f} "
            f"| {row.ratio:.1f}x | {budget} |"
        )
    return "\n".join([*lines, "", f"mlp over HTTP, {CLIENTS} clients: {requests_per_s:.0f} requests/s"])


if __name__ == "__main__":
    main()
