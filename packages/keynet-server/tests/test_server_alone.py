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
        port = free_port()
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


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


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


@pytest.fixture
def nobody():
    """Return a port that nobody listens on, nor can while the test runs."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield closed.getsockname()[1]


@pytest.fixture
def refusal(environ):
    """Run a server that cannot start; return its exit code and the lines it says, which are no traceback."""

    def refusal(*options, **more):
        command = [*RUN, "--port", str(free_port()), *options]
        done = subprocess.run(
            command, env=environ | more, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        return done.returncode, done.stderr.splitlines()

    return refusal


def test_a_serving_repository_that_is_away_ends_the_server_in_a_sentence(refusal, nobody):
    place = {"KEYNET_SERVING_REPOSITORY": "s3://bucket/serving", "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{nobody}"}
    status, lines = refusal(**place, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
    assert status == 1
    assert lines[0].startswith("error: a first object cannot be read or written in the serving repository: ")
    assert lines[1:] == [f"  next  curl -sI http://127.0.0.1:{nobody}", "  code  repository.failed"]


def test_a_database_that_is_away_ends_the_server_in_a_sentence(refusal, nobody):
    url = f"postgresql+psycopg://keynet:hunter2@127.0.0.1:{nobody}/keynet"
    status, lines = refusal(KEYNET_DATABASE_URL=url)
    assert status == 6
    assert lines[0].startswith(f"error: the journal's database cannot be used: PostgreSQL at 127.0.0.1:{nobody} does ")
    assert lines[1:] == [f"  next  pg_isready -h 127.0.0.1 -p {nobody}", "  code  journal.unavailable"]


def test_a_model_that_cannot_be_put_right_ends_the_server_in_a_sentence(refusal, publishing, deployer, repository):
    event = publishing.publish("times", 2.0).to_event()
    deployer.receive(event)
    deployer.deploy(deployer.journal.event(event.id))
    (repository.models / "times").unlink()
    (repository.models / "times" / "1").mkdir(parents=True)
    status, lines = refusal()
    assert status == 1
    assert lines[0].startswith("error: the link of times cannot be written")
    assert lines[-1] == "  code  repository.failed"


def test_a_port_that_is_in_use_ends_the_server_in_a_sentence(refusal):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        status, lines = refusal("--port", str(port))
    assert (status, lines[0], lines[-1]) == (5, f"error: 127.0.0.1:{port} is in use", "  code  up.port_taken")


def test_a_name_that_cannot_be_one_ends_the_server_in_a_sentence(refusal):
    status, lines = refusal("--host", "a" * 70, "--port", "8700")
    assert (status, lines[-1]) == (2, "  code  settings.invalid")
    assert lines[0].startswith(f"error: the server cannot listen on {'a' * 70}:8700: ")


def test_an_address_of_another_machine_ends_the_server_in_a_sentence(refusal):
    status, lines = refusal("--host", "192.0.2.1", "--port", "8700")
    assert (status, lines[-1]) == (2, "  code  settings.invalid")
    assert lines[0] == "error: the server cannot listen on 192.0.2.1:8700: Cannot assign requested address"


def test_a_broker_that_is_away_is_told_once_and_stops_nothing(start, nobody, tmp_path):
    port, process = start(RABBIT_ENDPOINT_URL=f"amqp://keynet:hunter2@127.0.0.1:{nobody}/")
    deadline = time.monotonic() + DEADLINE_S
    while "no events come from RabbitMQ" not in (told := (tmp_path / "server.log").read_text()):
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    assert ask(port, "/healthz")[0] == 200
    process.send_signal(signal.SIGTERM)
    process.wait(DEADLINE_S)
    told = (tmp_path / "server.log").read_text()
    assert "aiormq" not in told
    assert "Traceback" not in told
    assert "hunter2" not in told


def test_without_names_the_server_answers_for_loopback_alone(tmp_path):
    assert read_settings(ServerSettings, {"KEYNET_ALLOWED_HOSTS": " "}).allowed_hosts == ()


@pytest.mark.parametrize("text", ["*", "*.example.com", "keynet:8700", "https://keynet", "keynet,,other", "a b", "-a"])
def test_what_is_no_name_of_a_host_is_refused(text):
    with pytest.raises(SettingsInvalid, match="KEYNET_ALLOWED_HOSTS"):
        read_settings(ServerSettings, {"KEYNET_ALLOWED_HOSTS": text})


def test_an_address_is_a_name_too():
    told = {"KEYNET_ALLOWED_HOSTS": "10.0.0.7,[fd00::7]"}
    assert read_settings(ServerSettings, told).allowed_hosts == ("10.0.0.7", "[fd00::7]")
