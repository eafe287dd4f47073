"""What the doctor says where `keynet server` runs alone, as in a container: its own words, its own engines."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from keynet_core import EventRefused, EventUndelivered, ModelPublished, Outbox, locked, read_settings, up_lock
from keynet_server import ServerSettings
from keynet_server._options import settings_for
from keynet_server._running import announced, find_running, read_address, server_lock

KEYNET = [sys.executable, "-c", "from keynet_server._cli import main; main()"]
OURS = ("KEYNET", "TRITON", "AWS", "RABBIT")
DEADLINE_S = 60.0


@pytest.fixture
def environ(home):
    """Return the surroundings of a container, as far as keynet's settings go, without an address of an engine."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(OURS)}
    return kept | {"KEYNET_HOME": str(home), "KEYNET_TOKEN": "the-token"}


@pytest.fixture
def keynet(environ):
    def keynet(*arguments, **more):
        return subprocess.run(
            [*KEYNET, *arguments], env=environ | more, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )

    return keynet


@pytest.fixture
def findings(keynet):
    def findings(**more):
        done = keynet("doctor", "--json", **more)
        assert "keynet up" not in done.stdout + done.stderr
        return done.returncode, {each["check"]: each for each in json.loads(done.stdout)["findings"]}

    return findings


@pytest.fixture(params=["0.0.0.0"])
def server(request, environ, own_serving, home, tmp_path):
    """Run `keynet server` on the model server; nobody but its home says where it listens."""
    host = "127.0.0.1" if request.param == "0.0.0.0" else request.param
    with socket.create_server((host, 0)) as free:
        port = free.getsockname()[1]
    repository = {"TRITON_URL": own_serving.url, "KEYNET_SERVING_REPOSITORY": str(own_serving.root)}
    with (tmp_path / "server.log").open("wb") as log:
        command = [*KEYNET, "server", "--host", request.param, "--port", str(port)]
        process = subprocess.Popen(command, env=environ | repository, stdout=log, stderr=log)
    deadline = time.monotonic() + DEADLINE_S
    while not answers(host, port):
        assert process.poll() is None, (tmp_path / "server.log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
        time.sleep(0.05)
    yield process, f"http://{host}:{port}"
    process.kill()
    process.wait()


def answers(host, port):
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError:
        return False
    return True


def test_where_a_server_runs_alone_it_and_its_model_server_are_asked(server, findings, own_serving):
    _, found = findings(TRITON_URL=own_serving.url)
    assert found["server"]["finding"] == f"the keynet server at {server[1]} answers"
    assert found["serving"]["finding"] == f"the model server at {own_serving.url} answers"
    assert found["served"]["finding"] == "0 live in the journal, the same ready in the model server"
    assert "endpoints" not in found
    assert found["journal"]["level"] == "ok"


def test_the_model_server_that_the_server_uses_is_told_when_it_is_away(server, findings):
    status, found = findings(TRITON_URL="http://127.0.0.1:9")
    assert status == 1
    assert found["serving"]["level"] == "error"
    assert "the model server at http://127.0.0.1:9 does not answer" in found["serving"]["finding"]
    assert found["serving"]["remedy"] == "curl -i http://127.0.0.1:9/v2/health/live"


def test_without_its_address_the_model_server_is_not_guessed(server, findings):
    _, found = findings()
    assert (found["serving"]["level"], "TRITON_URL" in found["serving"]["remedy"]) == ("warning", True)
    assert "served" not in found


@pytest.mark.parametrize("server", ["0.0.0.0", "127.0.0.2"], indirect=True)
def test_commands_ask_the_server_that_holds_the_home(server, keynet):
    done = keynet("models", "list")
    assert done.returncode == 0
    assert done.stderr == "", "the journal was read past the server"
    assert keynet("models", "rollback", "nope").returncode == 4


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_alone_that_ended_is_to_be_started_as_one(server, findings, keynet, home, end):
    process, _ = server
    process.send_signal(end)
    process.wait(DEADLINE_S)
    _, found = findings(TRITON_URL="http://127.0.0.1:9")
    assert found["server"]["finding"] == f"no keynet server runs on {home}"
    assert found["server"]["remedy"] == "keynet server"
    assert read_address(home) is None
    assert "what the journal remembers" in keynet("models", "list").stderr


def test_a_home_where_nothing_ran_yet_is_to_be_begun_by_the_server(findings, home, keynet):
    status, found = findings(TRITON_URL="http://127.0.0.1:9")
    assert (status, list(found), found["home"]["remedy"]) == (0, ["home"], "keynet server")
    home.mkdir()
    _, found = findings(TRITON_URL="http://127.0.0.1:9")
    assert (found["server"]["remedy"], found["journal"]["remedy"]) == ("keynet server", "keynet server")
    assert "  next  keynet server\n" in keynet("models", "list", TRITON_URL="http://127.0.0.1:9").stderr


def test_a_server_elsewhere_is_asked_without_a_home_here(findings, server, keynet, tmp_path):
    elsewhere = str(tmp_path / "nobody" / "home")
    _, found = findings(KEYNET_URL=server[1], KEYNET_HOME=elsewhere)
    assert found["server"]["level"] == "ok"
    status, found = findings(KEYNET_URL="http://127.0.0.1:9", KEYNET_HOME=elsewhere)
    assert (status, found["server"]["level"], found["server"]["remedy"]) == (1, "error", "keynet server")
    assert not (tmp_path / "nobody").exists()


def test_where_the_engines_are_not_installed_up_is_not_advised(environ):
    script = "import sys; sys.modules['keynet_serving'] = None; from keynet_server._cli import main; main()"
    without_token = {name: text for name, text in environ.items() if name != "KEYNET_TOKEN"}
    command = [sys.executable, "-c", script, "doctor"]
    done = subprocess.run(command, env=without_token, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0
    assert "next       keynet server" in done.stdout


def test_an_address_that_only_a_function_can_use_stops_no_command(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TRITON_URL", "grpc://127.0.0.1:8001")
    settings = settings_for(tmp_path)
    assert settings.triton_url is None
    assert find_running(settings).start == "keynet up"
    monkeypatch.setenv("TRITON_URL", "http://triton:8000")
    assert settings_for(tmp_path).triton_url == "http://triton:8000"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8700"),
        ("::", "http://[::1]:8700"),
        ("::1", "http://[::1]:8700"),
        ("10.0.0.7", "http://10.0.0.7:8700"),
    ],
)
def test_the_address_of_a_server_is_believed_while_it_holds_the_home(home, host, url):
    with locked(server_lock(home), timeout_s=1):
        with announced(home, host, 8700):
            assert read_address(home) == url
            assert stat.S_IMODE((home / "run" / "server.json").stat().st_mode) == 0o600
            assert stat.S_IMODE((home / "run").stat().st_mode) == 0o700
            assert find_running(read_settings(ServerSettings, {}, home=home)).start == "keynet server"
        assert read_address(home) is None
    (home / "run" / "server.json").write_text(json.dumps({"url": url, "host": socket.gethostname()}))
    assert read_address(home) is None


def test_an_address_of_another_host_that_shares_the_volume_is_not_believed(home):
    with locked(server_lock(home), timeout_s=1):
        (home / "run" / "server.json").write_text(json.dumps({"url": "http://127.0.0.1:8700", "host": "elsewhere"}))
        assert read_address(home) is None


def test_a_server_that_begins_takes_away_what_an_earlier_one_left(keynet, home):
    """Else the token would go to whoever listens there now, until this one listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken, locked(server_lock(home), timeout_s=1):
        left = home / "run" / "server.json"
        left.write_text(json.dumps({"url": "http://127.0.0.1:9", "host": socket.gethostname()}))
        assert read_address(home) == "http://127.0.0.1:9"
        port = str(taken.getsockname()[1])
    with socket.create_server(("127.0.0.1", int(port))):
        assert keynet("server", "--port", port, TRITON_URL="http://127.0.0.1:9").returncode == 5
    assert not left.exists()


def test_an_up_that_does_not_answer_yet_is_not_taken_for_a_server_alone(home):
    with locked(up_lock(home), timeout_s=1), locked(server_lock(home), timeout_s=1):
        running = find_running(read_settings(ServerSettings, {}, home=home))
        assert (running.start, running.server, running.is_held) == ("keynet up", None, True)


@pytest.mark.parametrize("text", ["", "[]", '{"url": 3}', "{"])
def test_an_address_that_cannot_be_read_is_none(home, text):
    with locked(server_lock(home), timeout_s=1):
        (home / "run" / "server.json").write_text(text)
        assert read_address(home) is None


def test_what_waits_in_the_outbox_has_the_command_that_hands_it_over(keynet, home):
    outbox = Outbox(home / "outbox")

    def deliver(entry):
        if entry.event.subject == "refused":
            raise EventRefused("not wanted here")
        raise EventUndelivered("nobody there", hint="keynet up")

    for name in ("waits", "refused"):
        outbox.add(ModelPublished(model=name, digest="sha256:" + "0" * 64, store="x").to_event())
    outbox.flush(deliver)
    (refused,) = outbox.entries("refused")
    done = keynet("doctor")
    assert (
        f"! outbox     waits waits: nobody there\n  next       keynet-train outbox flush --home {home}\n" in done.stdout
    )
    assert f"next       keynet-train outbox show {refused.id} --home {home}\n" in done.stdout
