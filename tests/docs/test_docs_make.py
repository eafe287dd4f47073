"""What the Makefile names is there."""

import os
import re
import subprocess

import pytest

TARGETS = ["reference", "fix", "docs", "check", "test", "demo", "bench"]
PATH = re.compile(r"(?<![\w/.-])((?:[\w-]+/)+[\w*-]+\.(?:py|txt))\b")


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_can_be_made(root, target):
    """Told to make says nothing that is missing: a rule without its files fails here, with nothing run."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", target]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "tools/make-venv demo" in done.stdout
    named = PATH.findall(done.stdout)
    assert [each for each in named if not list(root.glob(each))] == []


def test_every_file_the_makefile_names_exists(root):
    named = PATH.findall((root / "Makefile").read_text())
    assert {"examples/digits/demo.py", "tools/reference.py", "benchmarks/bench_*.py"} <= set(named)
    assert [each for each in named if not list(root.glob(each))] == []
