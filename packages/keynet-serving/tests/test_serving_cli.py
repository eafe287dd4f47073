"""The command: what it says, when it is ready, how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest


@pytest.fixture
def run(tmp_path, repository):
    """Start the command; every process is ended by the test's end."""
    started = []

    def start(*arguments, folder=repository):
        command = [sys.executable, "-m", "keynet_serving", "--model-repository", str(folder), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)


ANY_PORT = ("--http-port", "0", "--grpc-port", "0")


def ready_line(process):
    for line in process.stderr:
        if line.startswith("READY "):
            return dict(part.split("=") for part in line.split()[1:])
    raise AssertionError(f"it ended without being ready: {process.wait(60)}")


def test_it_serves_says_where_and_ends_on_sigterm(models, run, tmp_path):
    import tritonclient.grpc
    import tritonclient.http

    models.scaled("m", 2)
    models.identity("bad", config="max_batch_size: eight")
    file = tmp_path / "ready.json"
    process = run(*ANY_PORT, "--load-model", "*", "--ready-file", str(file))
    told = ready_line(process)
    assert json.loads(file.read_text()) == {**told, "pid": process.pid}
    for kind in ("http", "grpc"):
        module = getattr(tritonclient, kind)
        client = module.InferenceServerClient(told[kind])
        given = module.InferInput("x", [1, 2], "FP32")
        given.set_data_from_numpy(np.array([[1, 2]], np.float32))
        assert client.infer("m", [given]).as_numpy("y").tolist() == [[2, 4]]
        if kind == "grpc":
            client.close()
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_time_while_a_model_runs(models, run, number):
    models.slow("m", 60_000)  # most of a minute
    process = run(*ANY_PORT, "--load-model", "m")
    told = ready_line(process)
    host, port = told["http"].split(":")
    body = json.dumps({"inputs": [{"name": "x", "shape": [4, 128, 128], "datatype": "FP32", "data": [0] * 65536}]})
    asking = socket.create_connection((host, int(port)), timeout=60)
    head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    asking.sendall((head + body).encode())
    pending = pending_of(host, port)
    deadline = time.monotonic() + 60
    while pending() != 1:
        assert time.monotonic() < deadline
    begun = time.monotonic()
    process.send_signal(number)
    assert process.wait(30) == 0
    assert time.monotonic() - begun < 15
    asking.close()


def pending_of(host, port):
    import http.client

    def pending():
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return int(text.split('nv_inference_pending_request_count{model="m",version="1"} ')[1].split("\n")[0])

    return pending


def test_a_host_others_can_reach_is_refused(run):
    process = run("--host", "0.0.0.0", *ANY_PORT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "reachable from other machines" in said
    assert "--allow-remote" in said


def test_a_host_others_can_reach_is_taken_when_meant(run):
    assert ready_line(run("--host", "0.0.0.0", "--allow-remote", *ANY_PORT))["http"].startswith("0.0.0.0:")


@pytest.mark.parametrize("option", ["--http-port", "--grpc-port"])
def test_a_port_in_use_is_said(run, option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        other = "--grpc-port" if option == "--http-port" else "--http-port"
        port = taken.getsockname()[1]
        process = run(option, str(port), other, "0")
        _, said = process.communicate(timeout=20)
    assert process.returncode == 3
    assert f"cannot listen on 127.0.0.1:{port}" in said


def test_mode_none_loads_everything_at_start(models, run):
    models.identity("m")
    told = ready_line(run(*ANY_PORT, "--model-control-mode", "none"))
    host, port = told["http"].split(":")
    import http.client

    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.request("GET", "/v2/models/m/ready")
    assert connection.getresponse().status == 200
    connection.close()


def test_a_missing_repository_is_refused(run, tmp_path):
    process = run(*ANY_PORT, folder=tmp_path / "nowhere")
    _, said = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "nowhere" in said


def test_help_and_import_load_nothing_heavy():
    code = (
        "import sys\n"
        "import keynet_serving\n"
        "from keynet_serving._cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'numpy', 'onnxruntime', 'grpc', 'uvicorn', 'tritonclient', 'google.protobuf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "--model-repository" in done.stdout


def test_listening_in_process_ends_its_threads(models, serving, eventually):
    models.identity("m")
    before = set(threading.enumerate())
    with serving(models.repository, "m") as engine:
        assert engine.request("GET", "/v2/health/ready")[0] == 200
    eventually(lambda: not [t for t in set(threading.enumerate()) - before if t.name.startswith("keynet-serving")])
