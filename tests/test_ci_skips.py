import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

INNER = """
import pytest

@pytest.mark.skipif(True, reason="needs a broker")
def test_marked(): ...

def test_called():
    pytest.skip("needs a store")

@pytest.mark.skipif(True, reason="only on another system")
def test_of_another_kind(): ...
"""


def run(directory, ci):
    environ = {name: value for name, value in os.environ.items() if name != "CI"} | ({"CI": ci} if ci else {})
    environ["PYTHONPATH"] = str(ROOT / "tests")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(directory)]
    return subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def project(tmp_path):
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "test_inner.py").write_text(INNER)
    return tmp_path


def test_a_skip_for_something_missing_fails_in_ci(project):
    done = run(project, "true")
    assert done.returncode == 1
    assert "1 failed, 1 skipped, 1 error" in done.stdout
    assert "needs a broker; with CI=true that is a failure" in done.stdout


def test_outside_ci_it_is_a_skip(project):
    done = run(project, None)
    assert done.returncode == 0
    assert "3 skipped" in done.stdout


def test_a_module_that_skips_itself_fails_in_ci(project):
    (project / "test_inner.py").write_text(
        "import pytest\npytest.importorskip('no_such_module_here', reason='needs no_such_module_here')\n"
    )
    done = run(project, "true")
    assert done.returncode != 0
    assert "needs no_such_module_here; with CI=true" in done.stdout
