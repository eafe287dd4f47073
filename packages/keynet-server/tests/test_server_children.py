"""Child processes: they run, they come back, and none survives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from keynet_core import Secret
from keynet_server._children import Child, Children, Program, answers, rotate
from keynet_server._errors import ChildFailed, PortTaken
from keynet_server._ports import Ports, _is_free, _take_any, listens, reserved_ports
from keynet_server._programs import mlflow_program, server_program, serving_program

SERVE = """
import http.server, os, subprocess, sys, pathlib, signal
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
grand = subprocess.Popen(sleep, start_new_session="session" in sys.argv)
pathlib.Path("pids").write_text(f"{os.getpid()} {grand.pid}")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def program(tmp_path):
    def program(*arguments, script=SERVE, timeout_s=20.0):
        port = _take_any(_is_free)
        return Program(
            name="engine",
            command=(sys.executable, "-c", script, str(port), *arguments),
            environ=dict(os.environ),
            directory=tmp_path,
            log=tmp_path / "logs" / "engine.log",
            health_url=f"http://127.0.0.1:{port}/health",
            timeout_s=timeout_s,
        )

    return program


def pids_of(program):
    return [int(pid) for pid in (program.directory / "pids").read_text().split()]


@pytest.mark.parametrize("arguments", [(), ("session",), ("stubborn",)])
def test_a_child_and_what_it_started_end_together(program, eventually, arguments, monkeypatch):
    monkeypatch.setattr("keynet_server._children.GRACE_S", 0.5)
    children = Children(print)
    child = children.start(program(*arguments))
    assert child.wait_until_ready(lambda: True) >= 0
    pids = pids_of(child.program)
    assert all(map(is_running, pids))
    children.stop()
    eventually(lambda: not any(map(is_running, pids)))
    assert child.exit_status() is not None


def test_a_killed_guardian_takes_its_child_along(program, eventually):
    child = Child(program())
    child.wait_until_ready(lambda: True)
    served, grandchild = pids_of(child.program)
    os.kill(child.pid, signal.SIGKILL)
    eventually(lambda: not is_running(served))
    os.kill(grandchild, signal.SIGKILL)
    child.let_go()
    child.wait(60)


def test_children_do_not_outlive_a_parent_that_is_killed(program, eventually, tmp_path):
    wanted = program()
    script = (
        "import sys, os, time; from pathlib import Path; from keynet_server._children import *;"
        "d = Path(sys.argv[1]); p = sys.argv[2]; c = Child(Program(name='x', command=tuple(sys.argv[3:]),"
        "environ=dict(os.environ), directory=d, log=d/'log', health_url=f'http://127.0.0.1:{p}/'));"
        "c.wait_until_ready(lambda: True); print('ready', flush=True); time.sleep(600)"
    )
    port = wanted.health_url.split(":")[2].split("/")[0]
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), port, *wanted.command], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "ready\n"
    pids = pids_of(wanted)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not any(map(is_running, pids)))


def test_a_child_that_ends_is_told_with_the_end_of_its_log(program):
    child = Child(program(script="import sys; print('the reason'); sys.exit(7)"))
    with pytest.raises(ChildFailed, match=r"status 7(.|\n)*the reason"):
        child.wait_until_ready(lambda: True)
    child.let_go()
    child.wait(60)


def test_a_child_that_is_not_ready_in_time_is_told(program):
    child = Child(program(script="import time; time.sleep(600)", timeout_s=0.3))
    with pytest.raises(ChildFailed, match="not ready after"):
        child.wait_until_ready(lambda: True)
    child.let_go()
    child.wait(60)


def test_a_child_that_ends_is_started_again_and_said_so(program, eventually):
    said = []
    children = Children(said.append)
    child = children.start(program())
    child.wait_until_ready(lambda: True)
    first, _ = pids_of(child.program)
    os.kill(first, signal.SIGKILL)

    def is_back():
        children.tend()
        return answers(child.program.health_url) and pids_of(child.program)[0] != first

    eventually(is_back)
    assert "ended with status 137" in said[0]
    assert said[1] == "engine started again"
    children.stop()


def test_pauses_grow_while_a_child_keeps_ending_and_shrink_after_a_steady_time(program, eventually):
    children = Children(lambda _line: None)
    child = children.start(program(script="raise SystemExit(1)"))
    now = child.started_at
    pauses = []
    for _ in range(8):
        pauses.append(children._pause_after(child, now))
        child.restarts += 1
    assert pauses == [0.5, 1.5, 3.5, 7.5, 15.5, 30.0, 30.0, 30.0]
    assert children._pause_after(child, now + 61) == 0.5
    children.stop()


def test_logs_of_earlier_starts_are_kept_aside(tmp_path):
    log = tmp_path / "a.log"
    for text in "12345":
        rotate(log)
        log.write_text(text)
    rotate(log)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.log.1": "5",
        "a.log.2": "4",
        "a.log.3": "3",
    }


def test_an_answer_of_somebody_else_is_not_readiness(program, eventually):
    """Another program has the port; ours fails to bind it long after the other has answered."""
    first = Child(program())
    first.wait_until_ready(lambda: True)
    script = f"import time; time.sleep(1)\n{SERVE}"
    other = replace(
        first.program, name="late", command=(*first.program.command[:2], script, *first.program.command[3:])
    )
    late = Child(other)
    with pytest.raises(ChildFailed, match=r"late ended with status 1(.|\n)*in use"):
        late.wait_until_ready(lambda: True)
    for child in (first, late):
        child.let_go()
        child.wait(60)


def test_who_listens_is_known_by_descent_or_not_at_all():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert listens(port, os.getpid()) is True
        other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            assert listens(port, other.pid) is False
        finally:
            other.communicate(b"\n")
    assert listens(port, os.getpid()) is None


ANY = dict.fromkeys(("port", "mlflow-port", "serving-port", "grpc-port"), 0)


@pytest.fixture
def runtime(tmp_path):
    """An environment whose port locks are the test's own."""
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


def test_a_usual_port_in_use_is_replaced_and_said(runtime, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        said = []
        monkeypatch.setattr("keynet_server._ports.DEFAULT_PORTS", ANY | {"port": taken})
        with reserved_ports({}, runtime, said.append) as ports:
            assert ports.server not in {0, taken}
        assert str(taken) in said[0]
        with pytest.raises(PortTaken, match=str(taken)), reserved_ports({"port": taken}, runtime, said.append):
            pass


def test_no_two_engines_get_one_port(runtime):
    port = _take_any(_is_free)
    asked = ANY | {"port": port, "mlflow-port": port}
    with pytest.raises(PortTaken), reserved_ports(asked, runtime, print):
        pass


def test_a_port_that_was_given_to_one_up_is_not_given_to_another_before_it_is_bound(runtime, monkeypatch):
    usual = _take_any(_is_free)
    monkeypatch.setattr("keynet_server._ports.DEFAULT_PORTS", ANY | {"port": usual})
    said = []
    with reserved_ports({}, runtime, said.append) as first:
        assert first.server == usual
        with reserved_ports({}, runtime, said.append) as second:
            assert second.server != usual
        with pytest.raises(PortTaken), reserved_ports({"port": usual}, runtime, said.append):
            pass
    with reserved_ports({"port": usual}, runtime, said.append) as third:
        assert third.server == usual


def test_locks_are_not_written_where_another_user_could_lead_them(runtime, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"keynet-ports-{os.getuid()}").symlink_to("elsewhere")
    with pytest.raises(PermissionError, match="not a directory of this user"), reserved_ports(ANY, runtime, print):
        pass
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_locks_are_for_this_user_only_wherever_they_stand(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with reserved_ports(ANY, {"XDG_RUNTIME_DIR": "relative"}, print):
        [locks] = tmp_path.iterdir()
        assert locks.stat().st_mode & 0o777 == 0o700
        assert len(list(locks.iterdir())) >= 4


def test_the_surroundings_of_the_engines_do_not_mislead(tmp_path):
    ports = Ports(server=1, mlflow=2, serving=3, grpc=4)
    environ = {
        "NO_PROXY": "intranet",
        "MLFLOW_GUNICORN_OPTS": "--reload",
        "KEYNET_STORE": "relative",
        "TRITON_URL": "x",
        "KEYNET_TOKEN": "the user's",
        "KEYNET_DATABASE_URL": "postgresql://u:password@db/keynet",
    }
    mlflow = mlflow_program(tmp_path, ports, environ)
    server = server_program(tmp_path, ports, environ, Secret("token"))
    serving = serving_program(tmp_path, ports, environ)
    assert {name for name in mlflow.environ if name.startswith("MLFLOW")} == {
        "MLFLOW_DISABLE_TELEMETRY",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION",
    }
    assert mlflow.environ["no_proxy"] == mlflow.environ["NO_PROXY"] == "intranet,127.0.0.1,localhost,::1"
    assert server.environ["TRITON_URL"] == "http://127.0.0.1:3"
    assert server.directory == Path.cwd()
    assert not {"KEYNET_TOKEN", "KEYNET_DATABASE_URL"} & {*mlflow.environ, *serving.environ}
    assert server.environ["KEYNET_TOKEN"] == "token"
    assert server.environ["KEYNET_DATABASE_URL"] == environ["KEYNET_DATABASE_URL"]
