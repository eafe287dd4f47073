"""
What the decorator costs: from the end of training to a published package, against doing less by hand.

By hand: `torch.onnx.export` as it comes, and one MLflow run with the module, the ONNX file and three parameters.
keynet does that, and verifies, derives `config.pbtxt`, packages, registers a version and publishes. Each measurement
is a fresh process; the two ways alternate, so that a busy machine disturbs both.

And what it costs before: from the call to the first line of the training function, in a fresh process that has imported
torch, MLflow and keynet_train; in an empty directory, and again where a run has been.

    python benchmarks/bench_publish.py [--rounds 5] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MODELS = ("mlp", "cnn", "mlp-25m")
BUDGET = 1.5
"""The most that the whole way may cost, as a multiple of doing less by hand."""


def make(name: str) -> tuple[Any, Any]:
    """Return a module and its sample."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if name == "mlp":
        return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10)), torch.randn(1, 16)
    if name == "mlp-25m":
        return nn.Sequential(nn.Linear(1024, 12000), nn.ReLU(), nn.Linear(12000, 1024)), torch.randn(1, 1024)
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)), torch.randn(1, 3, 96, 96)


def by_hand(name: str) -> float:
    """Export and log as a careful user would who does not verify."""
    import mlflow.pytorch
    import torch

    model, sample = make(name)
    mlflow.set_tracking_uri(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    mlflow.set_experiment(name)
    with mlflow.start_run():
        start = time.perf_counter()
        torch.onnx.export(model.eval(), (sample,), "model.onnx", verbose=False)
        mlflow.log_params({"model": name, "inputs": "input_0", "outputs": "output_0"})
        mlflow.pytorch.log_model(model, name=name, pip_requirements=["torch==2.13.0"], serialization_format="pickle")
        for path in sorted(Path.cwd().glob("model.onnx*")):
            mlflow.log_artifact(str(path))
        return time.perf_counter() - start


def by_keynet(name: str) -> dict[str, float]:
    """Let the decorator do it; its own clock begins when the training function returns."""
    from keynet_train import trace_pytorch

    model, sample = make(name)
    result = trace_pytorch(name, sample)(lambda: model).trace()
    return {"total": sum(result.timings_s.values()), **result.timings_s}


def to_first_line() -> float:
    """Call a traced function, and return how long it took to begin."""
    import mlflow
    import torch

    from keynet_train import trace_pytorch

    begun: list[float] = []

    def train() -> torch.nn.Module:
        begun.append(time.perf_counter())
        return torch.nn.Linear(16, 10)

    traced = trace_pytorch("first", torch.randn(1, 16))(train)
    assert mlflow.active_run() is None
    start = time.perf_counter()
    traced.trace()
    return begun[0] - start


def measure(way: str, name: str, where: str | None = None) -> dict[str, float]:
    """Run one way in a fresh process, and in an empty directory unless one is given."""
    with tempfile.TemporaryDirectory() if where is None else nullcontext(where) as directory:
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("KEYNET_", "MLFLOW_", "AWS_", "RABBIT_"))}
        environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, str(Path(__file__).resolve()), "--child", way, "--model", name]
        done = subprocess.run(
            command, cwd=directory, env=environ, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            raise SystemExit(f"{way} {name} failed:\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1])


WAYS: dict[str, Callable[[str], dict[str, float]]] = {
    "hand": lambda name: {"total": by_hand(name)},
    "keynet": by_keynet,
    "begin": lambda _: {"total": to_first_line()},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", action="store_true", help=f"exit 1 when a ratio is over {BUDGET}")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--model", choices=MODELS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(WAYS[chosen.child](chosen.model)))
        return
    rounds = 1 if chosen.quick else chosen.rounds
    figures = {name: compare(name, rounds) for name in MODELS}
    print("| model | by hand, s | keynet, s | ratio | of it export | package | track | publish |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in figures.items():
        steps = " | ".join(f"{row['steps'][step]:.2f}" for step in ("export", "package", "track", "publish"))
        print(f"| {name} | {row['hand']:.2f} | {row['keynet']:.2f} | {row['ratio']:.2f} | {steps} |")
    begins = first_lines(rounds)
    print("\n| from the call to the first line of training | s |\n|---|---|")
    print("\n".join(f"| {when} | {seconds:.2f} |" for when, seconds in begins.items()))
    if chosen.json:
        chosen.json.write_text(json.dumps({**figures, "first line of training": begins}, indent=2))
    if chosen.check and (over := [name for name, row in figures.items() if row["ratio"] > BUDGET]):
        sys.exit(f"over {BUDGET} times: {', '.join(over)}")


def first_lines(rounds: int) -> dict[str, float]:
    """Return medians of the time before the first line: of the first run in a directory, and of the second."""
    told: dict[str, list[float]] = {"first run": [], "second run": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as directory:
            for seconds in told.values():
                seconds.append(measure("begin", MODELS[0], directory)["total"])
    return {when: statistics.median(seconds) for when, seconds in told.items()}


def compare(name: str, rounds: int) -> dict[str, Any]:
    """Alternate the two ways and return medians and the median of the pairwise ratios."""
    pairs = [(measure("hand", name), measure("keynet", name)) for _ in range(rounds)]
    return {
        "hand": statistics.median(hand["total"] for hand, _ in pairs),
        "keynet": statistics.median(keynet["total"] for _, keynet in pairs),
        "ratio": statistics.median(keynet["total"] / hand["total"] for hand, keynet in pairs),
        "steps": {step: statistics.median(k[step] for _, k in pairs) for step in pairs[0][1]},
        "rounds": rounds,
    }


if __name__ == "__main__":
    main()
