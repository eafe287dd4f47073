"""However a test run ends, its engines end with it and leave nothing; two runs at once do not meet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engines import _processes
from engines._errors import EngineFailed
from engines._ports import Ports
from engines.fixtures import skip_without
from engines.postgres import Postgres
from engines.triton import TritonServer

TESTS = Path(__file__).resolve().parents[2]
DEADLINE_S = 60

INNER = """
import json, os, signal, sys, time
from engines.postgres import Postgres
from engines.triton import TritonServer

how = {how!r}

def test_it(tmp_path, postgresql, triton):
    (tmp_path / "models").mkdir()
    with triton.serve(tmp_path / "models") as server:
        engines = [postgresql, server]
        told = [dict(
            directory=str(engine.directory), port=engine.port, pids=[daemon.pid for daemon in engine._daemons]
        ) for engine in engines]
        open({told!r}, "w").write(json.dumps(told))
        if how == "failure":
            raise AssertionError("as it happens")
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(60)
"""


@pytest.mark.parametrize("how", ["failure", "SIGINT", "SIGTERM", "SIGKILL"])
def test_nothing_is_left_when_a_test_run_ends_with(how, tmp_path):
    for kind in (Postgres, TritonServer):
        skip_without(kind)
    told = tmp_path / "told.json"
    (tmp_path / "test_inner.py").write_text(INNER.format(how=how, told=str(told)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "engines.fixtures"]
    environ = os.environ | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path)],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode != 0
    assert told.exists(), done.stdout + done.stderr
    engines = json.loads(told.read_text())
    assert [len(engine["pids"]) for engine in engines] == [1, 1]
    deadline = time.monotonic() + DEADLINE_S
    while left := remains(engines):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def remains(engines):
    left = [engine["directory"] for engine in engines if Path(engine["directory"]).exists()]
    left += [str(path) for engine in engines for path in Path("/dev/shm").glob(f"*-{engine['port']}-*")]
    pids = {pid for engine in engines for pid in engine["pids"]}
    return left + [str(pid) for pid in pids if _processes.family(pid)] + segments_of(pids)


def segments_of(pids):
    """Return the segments of System V's shared memory that these processes made."""
    rows = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    return [f"segment {row[1]}" for row in rows if int(row[4]) in pids]


def test_an_engine_that_does_not_start_says_why_and_leaves_nothing(tmp_path):
    skip_without(TritonServer)
    server = TritonServer(tmp_path / "nowhere")
    with pytest.raises(EngineFailed, match=r"(?s)Triton ended while it started\n--- triton.out\n.*nowhere"):
        server.start()
    assert not server.is_running
    assert not server.directory.exists()


def test_ports_are_reserved_among_runs_and_given_back():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from engines import _ports; print(_ports._hold(int(sys.argv[2])))"
    )

    def is_free(port):
        done = subprocess.run(
            [sys.executable, "-c", code, str(TESTS), str(port)], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() != "None"

    ports = Ports(3)
    assert [is_free(ports.first + number) for number in range(3)] == [False] * 3
    ports.close()
    assert is_free(ports.first)


def test_a_process_with_the_pid_of_another_is_not_taken_for_it():
    me = _processes.look(os.getpid())
    other = _processes.Entry(pid=me.pid, parent=me.parent, session=me.session, state=me.state, started=me.started - 1)
    assert _processes.is_same(me)
    assert not _processes.is_same(other)
    _processes.send([other], signal.SIGKILL)
    _processes.end([other], 1)


def test_children_in_sessions_of_their_own_belong_to_the_family():
    code = "import subprocess, sys; subprocess.run(['sleep', '60'], start_new_session=True)"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as process:
        deadline = time.monotonic() + DEADLINE_S
        while len(entries := _processes.family(process.pid)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert entries[0].pid == process.pid
        _processes.end(entries, 5)
    assert not any(_processes.is_same(entry) for entry in entries)


def test_without_its_engine_a_test_is_skipped_by_name(tmp_path):
    """And CI turns a reason that begins with `needs` into a failure: see test_ci_skips.py."""
    (tmp_path / "test_inner.py").write_text(
        "import engines.swift, pathlib\n"
        "engines.swift.ENVIRONMENT = pathlib.Path('/nowhere/.venv-swift')\n"
        "def test_it(swift): ...\n"
    )
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-p", "engines.fixtures"]
    environ = {name: value for name, value in os.environ.items() if name != "CI"} | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path)],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "needs Swift: make engines (no swift in .venv-swift)" in done.stdout
    assert "1 skipped" in done.stdout
