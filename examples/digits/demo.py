"""
The way of a model, shown: train, verify, package, publish, deploy, ask. State goes to `.keynet/` in this directory.

    python examples/digits/demo.py [--out demo-output]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keynet_core import CoreSettings, make_private_directory, read_endpoints, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keynet_core import Endpoints
    from keynet_train import TraceResult

START_TIMEOUT_S = 90
DEPLOY_TIMEOUT_S = 60
SHOWN = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="where the contact sheet goes")
    out = parser.parse_args().out
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    started = time.monotonic()
    home = read_settings(CoreSettings, os.environ).state_directory
    with running(home) as wait_until_up:
        headline("1  train", "a small CNN on 1,347 handwritten digits, metrics per epoch in MLflow")
        import train

        say_nothing_about_pickles()
        result = train.train.trace()
        show(result)
        headline("5  deploy", "the server fetches the package, checks every digest, loads it, and tries the probe")
        up = wait_until_up()
        deployment = wait_for(up, result)
        print(f"  deployed as version {deployment['served_version']} of {deployment['model']}")
        print(f"  engine says  {deployment['engine_answer']}")
        headline("6  ask", "the function reads an image it has never seen, asks the served model, and answers")
        accuracy, picture = ask(train.load(), out)
    print(f"\n  accuracy {accuracy:.1%} on 450 images it has not seen, each through the function and the model server")
    print(f"  picture  {picture}")
    print(f"  took     {time.monotonic() - started:.0f} s\n")
    print("next  .venv/bin/keynet up    start it again, with what was trained; it prints its addresses")
    print("then  .venv/bin/keynet models show digits")


def headline(step: str, what: str) -> None:
    print(f"\n{step}  {what}", flush=True)


def say_nothing_about_pickles() -> None:
    """Silence MLflow's advice about a file format that keynet chose knowingly."""
    import logging

    logging.getLogger("mlflow.pytorch").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)


def show(result: TraceResult) -> None:
    """Print each step between the end of training and the publication."""
    package, parity = result.package, result.package.parity or {}
    print(f"  run      {result.run_id} in experiment {result.experiment!r}, version {result.model_version}")
    headline("2  verify", "ONNX Runtime against PyTorch")
    for case in parity["cases"]:
        worst = max(each["max_abs_diff"] for each in case["outputs"])
        print(f"  {case['name']:<16} {case['shapes']}  differs by at most {worst:.1e}")
    headline("3  package", "immutable, named by what is served")
    print(f"  {package.digest}")
    print(f"  {package.signature}")
    for file in package.files:
        print(f"  {file.size_bytes:>8}  {file.path}")
    headline("4  publish", "objects first, manifest last, then one event")
    publication = result.publication
    print(f"  {publication.state}: {publication.url}")
    print(f"  seconds  {'  '.join(f'{step} {seconds:.2f}' for step, seconds in result.timings_s.items())}")


@contextmanager
def running(home: Path) -> Iterator[Any]:
    """Have `keynet up` run on `home`: the one that does, or one of our own, started beside the training."""
    if read_endpoints(home) is not None:
        yield lambda: read_endpoints(home)
        return
    command = [str(Path(sys.executable).with_name("keynet")), "up", "--home", str(home)]
    print("starting `keynet up`: MLflow, the model server and the keynet server", flush=True)
    make_private_directory(home)
    with (home / "demo-up.log").open("wb") as log:
        up = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield lambda: wait_for_endpoints(home, up)
    finally:
        up.terminate()
        up.wait(timeout=30)


def wait_for_endpoints(home: Path, up: subprocess.Popen[bytes]) -> Endpoints:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if (endpoints := read_endpoints(home)) is not None:
            return endpoints
        if up.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"`keynet up` did not start; it says:\n{(home / 'demo-up.log').read_text()}")


def wait_for(up: Endpoints, result: TraceResult) -> dict[str, Any]:
    """Return the deployment of what was just published, as the server's journal has it."""
    deadline = time.monotonic() + DEPLOY_TIMEOUT_S
    event = f"{up.server}/v1/events/{urllib.parse.quote(result.publication.event_id)}"
    while time.monotonic() < deadline:
        told = fetch(event)
        if told.get("outcome") == "failed":
            raise SystemExit(f"the deployment failed: {told['reason']}")
        if told.get("outcome"):
            deployment: dict[str, Any] = fetch(f"{up.server}/v1/models/{result.package.name}")["live"]
            return deployment
        time.sleep(0.1)
    raise SystemExit(f"not deployed within {DEPLOY_TIMEOUT_S} s; look at {up.server}")


def fetch(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            told: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return {}  # the event is still in the outbox
    return told


def ask(data: tuple[Any, Any, Any, Any], out: Path) -> tuple[float, Path]:
    """Ask the function about every test image, and write a contact sheet of the first ones."""
    import contact_sheet
    import function
    from PIL import Image

    from keynet_inference import Storage

    _, images, _, labels = data
    storage, answers = Storage(), []
    begin = time.monotonic()
    for image in images[:, 0].numpy():
        buffer = BytesIO()
        Image.fromarray((image * 255).astype("uint8")).save(buffer, format="PNG")
        answer = function.main({"image_url": storage.put(buffer)})
        answers.append((answer["digit"], answer["probability"]))
    print(f"  {len(answers)} calls in {time.monotonic() - begin:.1f} s, the last answered {answer}")
    correct = [digit == int(label) for (digit, _), label in zip(answers, labels, strict=True)]
    accuracy = sum(correct) / len(correct)
    wrong = [index for index, right in enumerate(correct) if not right]
    shown = sorted((wrong + [i for i in range(len(correct)) if i not in wrong])[:SHOWN])
    picture = out / "digits.png"
    contact_sheet.write(
        picture,
        images[shown, 0].numpy(),
        [answers[index] for index in shown],
        [int(labels[index]) for index in shown],
        f"{accuracy:.1%} of {len(correct)} unseen digits read right; every mistake is shown",
    )
    return accuracy, picture


if __name__ == "__main__":
    main()
