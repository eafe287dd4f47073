"""What fails is run once more in CI: it is told, and a fault stays a failure."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

INNER = """
from pathlib import Path
import pytest

@pytest.fixture
def broken():
    raise ValueError("never there")

def test_without_its_engine(broken):
    pass

def test_that_loses_a_race():
    once = Path("once")
    if not once.exists():
        once.touch()
        raise ValueError("lost the race")

def test_with_a_fault():
    raise ValueError("broken")
"""


def test_a_race_is_told_and_a_fault_fails(tmp_path):
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "test_inner.py").write_text(INNER)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "--reruns", "1"]
    environ = {"PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "1 failed, 1 passed, 1 error, 3 rerun" in done.stdout
    first, _, told = done.stdout.partition("PASSED ONLY THE SECOND TIME: test_inner.py::test_that_loses_a_race")
    assert "ValueError: broken" in first
    assert "ValueError: lost the race" in told
    assert "never there" in first
    assert done.stdout.count("PASSED ONLY THE SECOND TIME") == 1
    assert "broken" not in told.partition("short test summary")[0]


def test_the_gate_runs_what_fails_once_more_and_a_developer_does_not():
    told = {
        ci: subprocess.run(
            ["make", "-n", "-o", ".venv/.stamp-dev", "test", f"CI={ci}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for ci in ("true", "")
    }
    assert "--reruns 1" in told["true"]
    assert "--reruns" not in told[""]
