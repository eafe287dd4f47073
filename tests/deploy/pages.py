"""The how-to pages, run as somebody would who copies their blocks into a shell."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from deploy.files import DEPLOY, ROOT
from deploy.rehearsal import BIN, DEADLINE_S, OURS, answers, end, free_port

FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)

TRAIN = """
import sys
from onnx import TensorProto, helper, save
from keynet_train import log_onnx_model

name, factor = (sys.argv[1:] + ["times", "2"][len(sys.argv) - 1:])[:2]
shape = ["batch", 3]
graph = helper.make_graph(
    [helper.make_node("Mul", ["input_0", "factor"], ["output_0"])],
    name,
    [helper.make_tensor_value_info("input_0", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info("output_0", TensorProto.FLOAT, shape)],
    [helper.make_tensor("factor", TensorProto.FLOAT, [1], [float(factor)])],
)
save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "model.onnx")
print(log_onnx_model(experiment_name=name, onnx_model_path="model.onnx", model_name=name))
"""
ASK = """
import numpy
from keynet_inference import TritonPlugin

values = numpy.array([[1, 2, 3]], dtype="float32")
print(TritonPlugin().predict(df={"input_0": values}, model_name="times")["output_0"].tolist())
"""


def blocks(page: str, language: str = "bash") -> list[str]:
    """Return the blocks of one language, in order."""
    text = (ROOT / "docs/how-to" / page).read_text()
    return [each["body"] for each in FENCE.finditer(text) if each["language"] == language]


def replaced(text: str, changes: dict[str, str]) -> str:
    """Return a block with this machine's addresses and keys; each change has to be one."""
    for there, here in changes.items():
        assert there in text, there
        text = text.replace(there, here)
    return text


class Shell:
    """A shell in a directory with a training script, in which variables stay from block to block."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        self.environ["PATH"] = f"{BIN}:{self.environ['PATH']}"
        (directory / "train.py").write_text(TRAIN)
        (directory / "ask.py").write_text(ASK)
        shutil.copytree(DEPLOY, directory / "deploy", ignore=shutil.ignore_patterns(".env", "secrets.env"))

    def run(self, block: str, **more: str) -> str:
        """Run a block to its end, keep what it exported, and return what it printed."""
        marker = "-- what is exported --"
        script = f"set -euo pipefail\n{block}\nprintf '%s' '{marker}'\nenv -0\n"
        done = self._call(["bash", "-c", script], **more)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        printed, _, exported = done.stdout.rpartition(marker)
        self.environ |= dict(each.split("=", 1) for each in exported.split("\0") if "=" in each)
        return printed

    def python(self, block: str) -> str:
        done = self._call([sys.executable, "-c", block])
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _call(self, command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
        environ = self.environ | more
        return subprocess.run(
            command, cwd=self.directory, env=environ, capture_output=True, text=True, timeout=300, check=False
        )

    @contextmanager
    def keynet_up(self):
        """Run `keynet up` in the directory, on free ports; yield its addresses."""
        ports = [part for name in ("port", "mlflow-port", "serving-port", "grpc-port") for part in (f"--{name}", "0")]
        with self._running("up", ["keynet", "up", *ports]) as (process, log):
            found = self.directory / ".keynet/run/endpoints.json"
            await_true(found.exists, process, log)
            yield json.loads(found.read_text())

    @contextmanager
    def keynet_server(self):
        """Run `keynet server` in the directory, on a free port; yield its address."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        with self._running("server", ["keynet", "server", "--port", str(port)]) as (process, log):
            await_true(lambda: answers(f"{url}/healthz"), process, log)
            yield url

    @contextmanager
    def _running(self, name: str, command: list[str]):
        log = self.directory / f"{name}.log"
        with log.open("wb") as told:
            process = subprocess.Popen(
                command, cwd=self.directory, env=self.environ, stdout=told, stderr=told, start_new_session=True
            )
        try:
            yield process, log
        finally:
            end(process)

    def await_live(self, name: str) -> None:
        """Wait until a model is live, as somebody would who asks again and again."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            done = self._call(["keynet", "models", "show", name])
            if re.search(r"deployment \d+ is live", done.stdout):
                return
            assert time.monotonic() < deadline, done.stdout + done.stderr
            time.sleep(0.5)


def await_true(is_true, process, log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
