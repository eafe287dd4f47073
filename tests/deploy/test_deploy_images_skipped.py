"""Where no image can be built: what is missing fails with CI=true, what the machine refuses is skipped and named."""

import os
import shutil
import subprocess
import sys

import pytest

from deploy.buildah import PROGRAMS
from deploy.files import ROOT

INNER = """
from deploy.buildah import open_buildah

def test_inner():
    with open_buildah():
        pass
"""
NO_MIRROR = """
from deploy.debian import make_system

def test_inner(tmp_path):
    make_system(tmp_path / "system.tar", None, mirror="http://127.0.0.1:9/debian")
"""
# In a user namespace of its own a process is nobody.
NOBODY = ("unshare", "--user")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="images are built by root alone, and this is not root")


@pytest.fixture
def outcome(tmp_path):
    """Run a test that opens the store, with CI=true, and return what pytest said."""
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "tmp").mkdir()

    def run(*before, inner=INNER, **more):
        (tmp_path / "test_inner.py").write_text(inner)
        command = [*before, sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--rootdir", "."]
        room = tmp_path / "tmp"
        environ = os.environ | {"CI": "true", "PYTHONPATH": str(ROOT / "tests"), "TMPDIR": str(room), "COLUMNS": "999"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environ | more, capture_output=True, text=True, timeout=300, check=False
        )
        assert list(room.glob("keynet-images-*")) == []
        return done.stdout

    return run


def skip_without_programs():
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"needs {' and '.join(missing)}: make engines")


def only_with(before):
    """Return the beginning of a command line, or skip where it may not be."""
    environ = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    if subprocess.run([*before, "true"], env=environ, capture_output=True, timeout=60, check=False).returncode:
        pytest.skip(f"only where a process may run {before[0]}")
    return before


@needs_root
def test_buildah_that_is_not_installed_is_a_failure_in_ci(outcome):
    said = outcome(PATH="/nowhere")
    assert "1 failed" in said
    assert "needs buildah and mmdebstrap: make engines; with CI=true that is a failure" in said


@needs_root
def test_a_mirror_that_does_not_answer_is_named(outcome):
    skip_without_programs()
    said = outcome(inner=NO_MIRROR)
    assert "1 skipped" in said
    assert "mmdebstrap makes no Debian on this machine: E: " in said


@needs_root
@pytest.mark.parametrize("capability", ["sys_admin", "sys_chroot"])
def test_a_machine_that_runs_no_container_is_skipped_by_what_it_refused(outcome, capability):
    """Without a capability, root is what it is in many sandboxes."""
    skip_without_programs()
    said = outcome(*only_with(("setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}")))
    assert "1 skipped" in said
    assert "buildah is installed and cannot run a container on this machine: " in said


def test_who_is_not_root_is_told_so(outcome):
    only_with((*NOBODY, sys.executable, "-c", "import engines, pytest"))
    said = outcome(*only_with(NOBODY))
    assert "1 skipped" in said
    assert "images are built by root alone, and this is not root" in said
