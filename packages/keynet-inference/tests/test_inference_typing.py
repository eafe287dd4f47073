"""The types users see, as mypy reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_right_uses_pass_and_wrong_ones_do_not() -> None:
    pytest.importorskip("mypy", reason="needs mypy")
    command = [sys.executable, "-m", "mypy", str(HERE / "typing/inference_api.py")]

    done = subprocess.run(command, cwd=HERE.parents[2], capture_output=True, text=True, timeout=200, check=False)

    assert done.returncode == 0, done.stdout
