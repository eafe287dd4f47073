"""
What the store of packages costs over bare boto3: one package of 200 MB, and 500 small objects, on a real Ceph.

All ways use the same server and the same number of threads, and take turns, in another order each round. Bare boto3 is
`upload_file`, `download_file`, `put_object` and `get_object` as they come. keynet does that, and records a SHA-256 with
each object, compares it on the way back, and goes on with what was interrupted. What it downloads is on the disk
(fsync) before it says so: "boto3, synced" is bare boto3 that does this too. The bar is for bare boto3 alone.

    python benchmarks/bench_objects.py [--rounds 7] [--quick] [--check] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

BUDGET = 1.1
"""The most that keynet may take, as a multiple of bare boto3."""

THREADS = 8
PACKAGE_BYTES = 200 * 1024 * 1024
SMALL_COUNT, SMALL_BYTES = 500, 10 * 1024

Way = Callable[[str], object]
"""Does one round below a prefix that nothing else uses."""


@contextmanager
def started_server():
    """Start Ceph, and have this process find it."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from engines.ceph import Ceph

    if missing := Ceph.is_installed():
        raise SystemExit(f"needs {Ceph.NAME}: make engines ({missing})")
    with Ceph() as server:
        for name in [each for each in os.environ if each.startswith(("AWS_", "MLFLOW_S3_"))]:
            del os.environ[name]
        os.environ.update(server.environ())
        yield server


def make_package(directory: Path) -> Any:
    """Build a package whose model has 200 MB."""
    import numpy as np

    from keynet_core import DataType, ModelPackage, Probe, Signature, TensorSpec, to_model_name

    tensor = {"dtype": DataType.FP32, "shape": ("batch", 2)}
    signature = Signature(inputs=(TensorSpec(name="x", **tensor),), outputs=(TensorSpec(name="y", **tensor),))
    array = np.ones((1, 2), np.float32)
    directory.mkdir()
    (directory / "model.onnx").write_bytes(os.urandom(PACKAGE_BYTES))
    (directory / "config.pbtxt").write_text('name: "bench"\n')
    probe = Probe(inputs={"x": array}, outputs={"y": array})
    return ModelPackage.build(directory, name=to_model_name("bench"), signature=signature, probe=probe)


def bare_client(server: Any) -> Any:
    """Return boto3's client as it comes, with a connection for each thread."""
    import boto3
    from botocore.config import Config

    return boto3.client("s3", endpoint_url=server.url, config=Config(max_pool_connections=32))


def sync(path: Path) -> None:
    """Have a file, or a directory's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def of_the_package(client: Any, bucket: str, work: Path) -> dict[str, dict[str, Way]]:
    """Return the ways of a package there and back."""
    from boto3.s3.transfer import TransferConfig

    from keynet_core import download_package, open_store, upload_package

    package = make_package(work / "package")
    names = [each.name for each in sorted(package.directory.iterdir())]
    config, numbers = TransferConfig(max_concurrency=THREADS), itertools.count()

    def boto_up(prefix: str) -> None:
        for name in names:
            client.upload_file(str(package.directory / name), bucket, f"{prefix}/{name}", Config=config)

    def keynet_up(prefix: str) -> None:
        upload_package(package, open_store(f"s3://{bucket}/{prefix}"))

    def fresh() -> Path:
        target = work / f"back-{next(numbers)}"
        target.mkdir()
        return target

    def boto_down(_prefix: str, *, synced: bool = False) -> Path:
        target = fresh()
        for name in names:
            client.download_file(bucket, f"there/bare/{name}", str(target / name), Config=config)
        if synced:
            for each in (*target.iterdir(), target):
                sync(each)
        return target

    def keynet_down(_prefix: str) -> Path:
        target = fresh()
        download_package(open_store(f"s3://{bucket}/there"), package.manifest.name, package.digest, target)
        return target

    boto_up("there/bare")
    keynet_up("there")
    down = {"boto3": boto_down, "keynet": keynet_down, "boto3, synced": lambda prefix: boto_down(prefix, synced=True)}
    return {"200 MB package up": {"boto3": boto_up, "keynet": keynet_up}, "200 MB package down": down}


def of_small_objects(client: Any, bucket: str, threads: int) -> dict[str, dict[str, Way]]:
    """Return the ways of 500 small objects there and back."""
    from keynet_core import open_store

    store = open_store(f"s3://{bucket}")
    data = [os.urandom(SMALL_BYTES) for _ in range(SMALL_COUNT)]

    def each(work: Callable[[int], object]) -> None:
        if threads == 1:
            for number in range(SMALL_COUNT):
                work(number)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(SMALL_COUNT)))

    def boto_put(prefix: str) -> None:
        each(lambda number: client.put_object(Bucket=bucket, Key=f"{prefix}/{number}", Body=data[number]))

    def keynet_put(prefix: str) -> None:
        each(lambda number: store.put(f"{prefix}/{number}", data[number]))

    def boto_get(_prefix: str) -> None:
        each(lambda number: client.get_object(Bucket=bucket, Key=f"small/{number}")["Body"].read())

    def keynet_get(_prefix: str) -> None:
        each(lambda number: store.get(f"small/{number}", max_bytes=SMALL_BYTES))

    keynet_put("small")
    what = f"{SMALL_COUNT} objects of 10 KB %s, {threads} thread{'s'[: threads > 1]}"
    return {
        what % "up": {"boto3": boto_put, "keynet": keynet_put},
        what % "down": {"boto3": boto_get, "keynet": keynet_get},
    }


def measure(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Have the ways take turns, and return the seconds of each in each round."""
    names, times = list(ways), {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            prefix = f"round-{uuid4().hex}"
            start = time.perf_counter()
            made = ways[name](prefix)
            times[name].append(time.perf_counter() - start)
            if isinstance(made, Path):
                shutil.rmtree(made)
    return {name: seconds[1:] for name, seconds in times.items()}  # the first round opens the connections


def report(times: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Print a row for keynet against each other way, by the ratios of the rounds, and return the rows."""
    rows = []
    print("| what | against | it, s | keynet, s | ratio | least to most |\n|---|---|---|---|---|---|")
    for what, seconds in times.items():
        mine = seconds["keynet"]
        for against, theirs in seconds.items():
            if against == "keynet":
                continue
            ratios = [ours / bare for ours, bare in zip(mine, theirs, strict=True)]
            row = {"what": what, "against": against, "ratios": ratios, "ratio": statistics.median(ratios)}
            row |= {"seconds": statistics.median(theirs), "keynet_seconds": statistics.median(mine)}
            rows.append(row)
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            figures = f"{row['seconds']:.2f} | {row['keynet_seconds']:.2f} | {row['ratio']:.2f} | {spread}"
            print(f"| {what} | {against} | {figures} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check", action="store_true", help=f"exit 1 when keynet takes over {BUDGET} times as long")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args()
    rounds = 1 if chosen.quick else chosen.rounds
    with started_server() as server, tempfile.TemporaryDirectory() as work:
        client, bucket = bare_client(server), server.bucket()
        tasks = of_the_package(client, bucket, Path(work))
        for threads in (1, THREADS):
            tasks |= of_small_objects(client, bucket, threads)
        rows = report({what: measure(ways, rounds) for what, ways in tasks.items()})
    over = [row["what"] for row in rows if row["against"] == "boto3" and row["ratio"] > BUDGET]
    verdict = f"not {'; '.join(over)}" if over else "all of them"
    print(f"\nAt most {BUDGET} times as long as bare boto3, by the median of {rounds} rounds: {verdict}.")
    if chosen.json:
        chosen.json.write_text(json.dumps({"bar": BUDGET, "rounds": rounds, "rows": rows}, indent=2))
    if chosen.check and over:
        sys.exit(1)


if __name__ == "__main__":
    main()
