"""`keynet server`: the server without the engines, called by the names it was told."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from keynet_core import SettingsInvalid, read_settings
from keynet_server import ServerSettings

RUN = [sys.executable, "-c", "from keynet_server._cli import main; main()", "server"]
DEADLINE_S = 60.0


@pytest.fixture
def environ(tmp_path):
    kept = {
        name: text for name, text in os.environ.items() if not name.startswith(("KEYNET", "TRITON", "AWS", "RABBIT"))
    }
    own = {"KEYNET_HOME": str(tmp_path / "home"), "KEYNET_TOKEN": "the-token", "TRITON_URL": "http://127.0.0.1:9"}
    return kept | own


@pytest.fixture
def start(environ, tmp_path):
    started = []

    def start(*options, **more):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with (tmp_path / "server.log").open("wb") as log:
            command = [*RUN, "--port", str(port), *options]
            process = subprocess.Popen(command, env=environ | more, stdout=log, stderr=log)
        started.append(process)
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                ask(port, "/healthz")
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.05)
            else:
                return port, process

    yield start
    for process in started:
        process.kill()
        process.wait()


def ask(port, path, host="localhost"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_the_server_answers_for_the_names_it_was_told_and_for_loopback(start):
    port, _ = start(KEYNET_ALLOWED_HOSTS="keynet, Keynet.example.com")
    for host in ("keynet", "keynet:8700", "KEYNET.example.com", "localhost", f"127.0.0.1:{port}"):
        assert ask(port, "/healthz", host)[0] == 200
    status, text = ask(port, "/healthz", "example.com")
    assert status == 421
    assert "KEYNET_ALLOWED_HOSTS" in json.loads(text)["hint"]


def test_the_landing_page_shows_where_people_find_mlflow(start):
    port, _ = start("--mlflow-url", "https://mlflow.example.com")
    assert "https://mlflow.example.com" in ask(port, "/")[1]


def test_the_server_ends_well_when_it_is_told_to(start):
    _, process = start()
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) in {0, -signal.SIGTERM}


@pytest.mark.parametrize("missing", ["KEYNET_TOKEN", "TRITON_URL"])
def test_a_server_that_was_not_told_enough_names_the_variable(environ, missing):
    del environ[missing]
    done = subprocess.run(RUN, env=environ, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 2
    assert missing in done.stderr


def test_without_names_the_server_answers_for_loopback_alone(tmp_path):
    assert read_settings(ServerSettings, {"KEYNET_ALLOWED_HOSTS": " "}).allowed_hosts == ()


@pytest.mark.parametrize("text", ["*", "*.example.com", "keynet:8700", "https://keynet", "keynet,,other", "a b", "-a"])
def test_what_is_no_name_of_a_host_is_refused(text):
    with pytest.raises(SettingsInvalid, match="KEYNET_ALLOWED_HOSTS"):
        read_settings(ServerSettings, {"KEYNET_ALLOWED_HOSTS": text})


def test_an_address_is_a_name_too():
    told = {"KEYNET_ALLOWED_HOSTS": "10.0.0.7,[fd00::7]"}
    assert read_settings(ServerSettings, told).allowed_hosts == ("10.0.0.7", "[fd00::7]")
