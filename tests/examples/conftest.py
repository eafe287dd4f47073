import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
FILES = re.compile(r"<!-- file: (?P<name>[\w.]+) -->\n```python\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Directory:
    """A working directory without any settings but its own, and what a user does in it."""

    path: Path

    @property
    def environ(self):
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("KEYNET_", "MLFLOW_", "AWS_", "TRITON_", "MODEL_"))
        }
        return kept | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def run(self, *command, timeout=240, **environ):
        """Run a command, and return what it printed."""
        done = subprocess.run(
            command,
            cwd=self.path,
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run_line(self, line):
        """Run a line as a shell does."""
        return self.run("bash", "-c", line)

    def write_files_of(self, page):
        """Write the files that a page shows; return their names."""
        found = FILES.findall((ROOT / page).read_text())
        for name, body in found:
            (self.path / name).write_text(body)
        return [name for name, _ in found]

    def wait_for(self, line, text, timeout_s=60):
        """Repeat a line, whether it succeeds or not, until it prints a text; return what it printed."""
        deadline = time.monotonic() + timeout_s
        while text not in (told := self.run_line(f"{line} 2>&1 || true")):
            assert time.monotonic() < deadline, f"{line} never printed {text!r}, but:\n{told}"
            time.sleep(0.3)
        return told


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture
def directory(tmp_path):
    return Directory(path=tmp_path)


@pytest.fixture
def up(directory):
    """`keynet up` in the directory, on any free ports; the Directory, once everything answers."""
    command = [BIN / "keynet", "up", *(f"--{each}=0" for each in ("port", "mlflow-port", "serving-port", "grpc-port"))]
    with (directory.path / "up.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=directory.path, env=directory.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        _wait_until_up(process, directory.path / "up.log")
        yield directory
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def _wait_until_up(process, log, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while "next:" not in (told := log.read_text()):
        assert process.poll() is None, told
        assert time.monotonic() < deadline, told
        time.sleep(0.2)
