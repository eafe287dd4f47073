"""The programs in examples/, run as their pages say; what they leave is looked up through MLflow's client."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def endpoints(directory):
    return json.loads((directory.path / ".keynet/run/endpoints.json").read_text())


def test_scikit_learn_model_is_published_deployed_and_asked(up, root):
    told = up.run("python", root / "examples/sklearn_onnx/train.py")
    assert re.search(r"iris, accuracy 0\.9\d+: file://\S+/packages/iris/[0-9a-f]{64}\n", told)
    up.wait_for("keynet models show iris", "iris: deployment 1 is live")
    asked = up.run(
        "python",
        "-c",
        "import numpy as np\n"
        "from keynet_inference import TritonPlugin\n"
        "rows = np.float32([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]])\n"
        "answer = TritonPlugin().predict(df={'input_0': rows}, model_name='iris')\n"
        "print(answer['label'].ravel().tolist(), answer['probabilities'].shape)\n",
    )
    assert asked == "[0, 2] (2, 3)\n"


@pytest.fixture
def mnist(up, root):
    told = up.run("python", root / "examples/mnist_lightning/make_mnist.py")
    assert told.startswith("1347 images to train and 450 to test")
    return up


LOOK_UP = """
import json, sys
import mlflow, torch
from mlflow import MlflowClient

run_id, example = sys.argv[1:]
run = MlflowClient().get_run(run_id)
sys.path.insert(0, example)
import train
sys.modules["__main__"].MnistCNN = train.MnistCNN  # the name the class had when it was pickled
model = mlflow.pytorch.load_model(f"runs:/{run_id}/model")
print(json.dumps({
    "status": run.info.status,
    "params": run.data.params,
    "metrics": run.data.metrics,
    "steps": [each.step for each in MlflowClient().get_metric_history(run_id, "val_loss")],
    "artifacts": [each.path for each in MlflowClient().list_artifacts(run_id, "model")],
    "answer": list(model(torch.rand(4, 1, 28, 28)).shape),
}))
"""


def test_lightning_example_records_into_keynet_up(mnist, root):
    tracking = endpoints(mnist)["tracking"]
    example = root / "examples/mnist_lightning"
    told = mnist.run("python", example / "train.py", EPOCHS="1", MLFLOW_TRACKING_URI=tracking)
    run_id = re.search(r"^run_id: (\w{32})$", told, re.MULTILINE)[1]
    looked_up = mnist.run("python", "-c", LOOK_UP, run_id, example, MLFLOW_TRACKING_URI=tracking)
    found = json.loads(looked_up.splitlines()[-1])
    assert found["status"] == "FINISHED"
    assert found["params"]["epochs"] == "1"
    assert found["params"]["optimizer_name"] == "Adam"
    assert found["metrics"].keys() >= {"acc", "loss", "val_acc", "val_loss"}
    assert found["metrics"]["val_acc"] > 0.3
    assert found["steps"] == [0]
    assert "model/MLmodel" in found["artifacts"]
    assert found["answer"] == [4, 10]


def test_mnist_files_have_the_format_that_its_readers_expect(directory, root):
    directory.run("python", root / "examples/mnist_lightning/make_mnist.py")
    raw = directory.path / "MNIST/raw"
    images, labels = (raw / f"train-{each}-ubyte" for each in ("images-idx3", "labels-idx1"))
    assert images.read_bytes()[:16] == bytes.fromhex("00000803 00000543 0000001c 0000001c")
    assert labels.read_bytes()[:8] == bytes.fromhex("00000801 00000543")
    pixels = np.frombuffer(images.read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
    assert pixels[:, :4].max() == 0
    assert pixels.max() == 255


REPLACED = [
    ("from mnist_files import MNIST, ToTensor", "from torchvision.datasets import MNIST"),
    (
        '        acc = accuracy(y_hat, y, task="multiclass", num_classes=10)',
        "        acc = accuracy(y_hat, y)",
    ),
    (
        '        acc = accuracy(pred_y, y, task="multiclass", num_classes=10)',
        "        acc = accuracy(pred_y, y)",
    ),
    (
        "                          transform=ToTensor(),",
        "                          transform=transforms.ToTensor(),",
    ),
    (
        "                            transform=ToTensor(),",
        "                            transform=transforms.ToTensor(),",
    ),
    (
        '    trainer = pl.Trainer(max_epochs=int(os.environ.get("EPOCHS", "20")))',
        "    trainer = pl.Trainer(max_epochs=20)",
    ),
]
"""Each line of the example that differs from the documented program, and what stands there."""

LEFT_OUT = (3, "import torchvision.transforms as transforms")
"""A line of the documented program that the example does without, and where it stands."""

DOCUMENTED = "4e45c3cad5dfebdfd9d09c7a65390c05816372dee4419156f6645301811babcc"
"""SHA-256 of the documented program."""


def test_lightning_example_differs_from_its_document_only_where_libraries_changed(root):
    lines = (root / "examples/mnist_lightning/train.py").read_text().splitlines()
    for ours, theirs in REPLACED:
        assert lines.count(ours) == 1
        lines[lines.index(ours)] = theirs
    lines.insert(*LEFT_OUT)
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == DOCUMENTED


PROJECT = """
import json, sys
from mlflow import MlflowClient

client = MlflowClient()
experiment = client.get_experiment_by_name("digits")
runs = {run.data.tags.get("mlflow.parentRunId"): run for run in client.search_runs([experiment.experiment_id])}
outer = runs.pop(None)
inner = runs.pop(outer.info.run_id)
print(json.dumps({
    "others": len(runs),
    "params": outer.data.params,
    "statuses": [outer.info.status, inner.info.status],
    "metrics": list(inner.data.metrics),
    "versions": [[each.version, each.run_id == inner.info.run_id] for each in
                 client.search_model_versions("name = 'digits'")],
}))
"""


def test_the_mlflow_project_runs_as_its_page_says(up, root):
    page = (root / "docs/how-to/mlflow.md").read_text()
    home, command = re.search(r"^(export KEYNET_HOME=.*)\n(mlflow run .*)$", page, re.MULTILINE).groups()
    readme = (root / "examples/mlflow_project/README.md").read_text()
    assert home in readme
    assert command in readme
    assert (root / "examples/mlflow_project/MLproject").read_text() in page
    tracking = endpoints(up)["tracking"]
    line = command.replace("examples/", f"{root}/examples/")
    up.run("bash", "-c", f"{home}\n{line}", MLFLOW_TRACKING_URI=tracking)
    assert not (root / "examples/mlflow_project/.keynet").exists()
    found = json.loads(up.run("python", "-c", PROJECT, MLFLOW_TRACKING_URI=tracking).splitlines()[-1])
    assert found == {
        "others": 0,
        "params": {"epochs": "1"},
        "statuses": ["FINISHED", "FINISHED"],
        "metrics": ["loss"],
        "versions": [["1", True]],
    }
    up.wait_for("keynet models show digits", "digits: deployment 1 is live")
    with urllib.request.urlopen(tracking, timeout=10) as ui:
        assert b"<title>MLflow</title>" in ui.read()


DEMO_TIMEOUT_S = 150
"""It takes 20 to 40 seconds on two idle processors."""


def test_the_demo_shows_the_whole_way_and_leaves_nothing_running(directory, root):
    home = directory.path / "a/new/home"
    told = directory.run("python", root / "examples/digits/demo.py", timeout=DEMO_TIMEOUT_S, KEYNET_HOME=str(home))
    assert float(re.search(r"accuracy ([\d.]+)% on 450 images", told)[1]) >= 95
    assert "deployed as version 1 of digits" in told
    assert not re.search(r"next.*http://", told)
    picture = Image.open(directory.path / "demo-output/digits.png")
    picture.load()
    assert picture.format == "PNG"
    assert 600 < picture.width < 1200
    assert 300 < picture.height < 1200
    assert len(picture.getcolors(maxcolors=1 << 20)) > 10
    assert processes_below(directory.path) == []


def processes_below(directory):
    """The command lines of the processes that work in a directory or were told of it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            works_in = (process / "cwd").readlink()
        except OSError:
            continue  # it ended, or belongs to somebody else
        if any(str(directory) in each for each in told) or works_in.is_relative_to(directory):
            found.append(told)
    return found


@pytest.mark.slow
def test_jax_example_is_exported_and_published_in_its_own_environment(directory, root, tmp_path_factory):
    copied = tmp_path_factory.mktemp("checkout")
    shutil.copytree(root / "packages", copied / "packages", ignore=shutil.ignore_patterns("tests", "__pycache__"))
    shutil.copytree(root / "examples/jax_onnx", copied / "examples/jax_onnx", ignore=shutil.ignore_patterns(".venv"))
    told = directory.run(copied / "examples/jax_onnx/run", timeout=900, PYTHON=sys.executable)
    assert re.search(r"jax-digits, accuracy 0\.9\d+: file://\S+/packages/jax-digits/[0-9a-f]{64}\n", told)


@pytest.mark.parametrize("name", ["tools/make-venv", ".ci/run", "examples/jax_onnx/run"])
def test_shell_scripts_parse_and_may_be_run(root, name):
    path = root / name
    assert path.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", path], check=False, timeout=10).returncode == 0
