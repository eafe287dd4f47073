"""
What the decorator costs: from the end of training to a published package, against doing less by hand.

By hand: `torch.onnx.export` as it comes, and one MLflow run with the module, the ONNX file and three parameters.
keynet does that, and verifies, derives `config.pbtxt`, packages, registers a version and publishes. Each measurement
is a fresh process; the two ways alternate, so that a busy machine disturbs both.

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
from pathlib import Path
from typing import Any

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


def measure(way: str, name: str) -> dict[str, float]:
    """Run one way in a fresh process and an empty directory."""
    with tempfile.TemporaryDirectory() as directory:
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("KEYNET_", "MLFLOW_", "AWS_"))}
        environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, str(Path(__file__).resolve()), "--child", way, "--model", name]
        done = subprocess.run(
            command, cwd=directory, env=environ, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            raise SystemExit(f"{way} {name} failed:\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", action="store_true", help=f"exit 1 when a ratio is over {BUDGET}")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", choices=["hand", "keynet"], help=argparse.SUPPRESS)
    parser.add_argument("--model", choices=MODELS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        told = {"total": by_hand(chosen.model)} if chosen.child == "hand" else by_keynet(chosen.model)
        print(json.dumps(told))
        return
    figures = {name: compare(name, 1 if chosen.quick else chosen.rounds) for name in MODELS}
    print("| model | by hand, s | keynet, s | ratio | of it export | package | track | publish |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in figures.items():
        steps = " | ".join(f"{row['steps'][step]:.2f}" for step in ("export", "package", "track", "publish"))
        print(f"| {name} | {row['hand']:.2f} | {row['keynet']:.2f} | {row['ratio']:.2f} | {steps} |")
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2))
    if chosen.check and (over := [name for name, row in figures.items() if row["ratio"] > BUDGET]):
        sys.exit(f"over {BUDGET} times: {', '.join(over)}")


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
