"""What many tests need: a home, a receiver of events, a fresh process, a small disk, an export."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty MLflow database, as keynet itself makes it."""
    from keynet_train._mlflow_database import prepare_database

    home = tmp_path_factory.mktemp("template")
    prepare_database(home)
    return home / "mlflow.db"


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable that keynet reads is set, and the working directory is empty."""
    for name in list(os.environ):
        if name.startswith(("KEYNET_", "MLFLOW_", "AWS_", "RABBIT_", "MODEL_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def home(tmp_path: Path, mlflow_database: Path, clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a KEYNET_HOME with an MLflow database and nothing else."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    shutil.copyfile(mlflow_database, home / "mlflow.db")
    monkeypatch.setenv("KEYNET_HOME", str(home))
    return home


class Receiver:
    """A keynet server, as far as events go: it keeps what it is sent, and answers `first`, then `status` for ever."""

    def __init__(self) -> None:
        self.first: list[int] = []
        self.status = 202
        self.events: list[dict[str, Any]] = []
        self.hold = threading.Event()
        """While it is cleared, nobody is answered."""

        self.hold.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.hold.wait(30)
                receiver.events.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(receiver.first.pop(0) if receiver.first else receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def models(self) -> list[str]:
        """The models it was told of, in order."""
        return [each["subject"] for each in self.events]

    def close(self) -> None:
        """End it; its port refuses connections afterwards."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver of events; nothing is set to it yet, and what waits for it is tried once."""
    monkeypatch.setenv("KEYNET_PUBLISH_TIMEOUT_S", "0")
    receiver = Receiver()
    yield receiver
    receiver.close()


_NURSERY = """
import contextlib, io, json, os, sys, traceback
import mlflow.store.tracking.sqlalchemy_store, onnx, onnxruntime, torch, tritonclient.grpc
for line in sys.stdin:
    program, environ, directory, told = json.loads(line)
    child = os.fork()
    if child == 0:
        out, code = open(told, "w", buffering=1), 0
        os.dup2(out.fileno(), 1), os.dup2(out.fileno(), 2)
        os.environ.clear(), os.environ.update(environ), os.chdir(directory)
        try:
            exec(compile(program, "program", "exec"), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def nursery() -> Iterator[subprocess.Popen[str]]:
    """Return a process that has imported torch and MLflow, and nothing else that is large, and forks programs."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("KEYNET_", "MLFLOW_", "AWS_", "MODEL_"))}
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", _NURSERY], stdin=pipe, stdout=pipe, env=environ, text=True)
    yield process
    process.communicate(timeout=60)


@dataclass(frozen=True)
class Ended:
    """A program that has ended; `told` is all it wrote."""

    code: int
    told: str


@pytest.fixture
def run_python(tmp_path: Path, nursery: subprocess.Popen[str]) -> Callable[[str], Ended]:
    """Return a function that runs a program in a process of its own, with the environment as it is then."""

    def run(program: str) -> Ended:
        assert nursery.stdin and nursery.stdout
        told = tmp_path / "told.txt"
        order = [textwrap.dedent(program), dict(os.environ), str(tmp_path), str(told)]
        nursery.stdin.write(json.dumps(order) + "\n")
        nursery.stdin.flush()
        return Ended(int(nursery.stdout.readline()), told.read_text())

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    if os.geteuid() != 0:
        pytest.skip("root alone can mount a small file system")
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(path)], check=True, timeout=10)
    yield path
    # Lazily: the database of a home on it may still be open in this process.
    subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=10)


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Any]:
    """Return a function that exports a module, and checks that nothing but one file is left."""
    from keynet_train._export import export_verified
    from keynet_train._graph import validate
    from keynet_train._sample import Sample, check_dynamic_axes

    def run(model: Any, sample_input: Any, axes: Any = None) -> Any:
        sample = Sample.of(sample_input)
        exported = export_verified(model, sample, check_dynamic_axes(axes, sample), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
        assert validate(exported.path).signature == exported.signature
        return exported

    return run
