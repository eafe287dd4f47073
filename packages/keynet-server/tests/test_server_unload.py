"""Unloading a model: asked over HTTP and by the command, journaled, acted on in order, kept after a restart."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading

import pytest
import uvicorn

from keynet_core import EventInvalid, Outbox, Secret
from keynet_server._app import Services
from keynet_server._errors import DeploymentConflict, DeploymentPostponed, DeploymentUnknown, EngineRefused
from keynet_server._pages import Links
from keynet_server._requests import to_request
from keynet_server._serve import with_life
from keynet_server._unload import UnloadRequested
from keynet_server._worker import Worker

KEYNET = [sys.executable, "-c", "from keynet_server._cli import main; main()"]
JSON = {"Authorization": "Bearer the-token", "Content-Type": "application/json"}


@pytest.fixture
def worker(deployer, publishing, home):
    return Worker(deployer, Outbox(home / "outbox"), publishing.store, tick_s=0.05)


@pytest.fixture
def receive(publishing, deployer):
    def receive(factor=2.0, **options):
        event = publishing.publish("times", factor, **options).to_event()
        deployer.receive(event)
        return event.id

    return receive


@pytest.fixture
def unload(deployer):
    def unload(why=None):
        return deployer.request_unload("times", who="ada", why=why).id

    return unload


@pytest.fixture
def run(worker):
    def run():
        while worker.run_once():
            pass

    return run


def test_what_is_unloaded_is_not_live_and_says_who_and_why(receive, unload, run, journal, engine, repository):
    receive()
    run()
    event = unload("memory is short")
    run()
    assert journal.event(event).outcome == "unloaded"
    assert journal.live("times") is None
    [last] = journal.history("times")
    assert (last.state, last.reason) == ("unloaded", "unloaded by ada: memory is short")
    assert engine.loaded == {}
    assert repository.links() == []


def test_a_restart_leaves_it_unloaded(receive, unload, run, deployer, engine, repository):
    receive()
    run()
    unload()
    run()
    assert deployer.repair_links() == []
    assert deployer.ensure_served() == []
    assert (engine.loaded, repository.links()) == ({}, [])


def test_deploying_again_and_a_rollback_load_it(receive, unload, run, deployer, journal, engine):
    receive(2.0)
    run()
    unload()
    run()
    deployer.request_rollback("times", to=None, who="ada", why=None)
    run()
    assert engine.factor() == 2.0
    unload()
    run()
    receive(3.0)
    run()
    assert engine.factor() == 3.0
    assert [each.state for each in journal.history("times")] == ["deployed", "unloaded", "unloaded"]


def test_what_is_asked_in_order_is_done_in_order(receive, unload, run, engine, journal):
    receive(2.0)
    run()
    unload()
    after = receive(3.0)
    run()
    assert engine.factor() == 3.0
    assert journal.event(after).outcome == "deployed"


def test_an_engine_that_is_away_is_waited_for(receive, unload, run, deployer, journal, engine):
    receive(2.0)
    run()
    event = unload()
    engine.down = True
    with pytest.raises(DeploymentPostponed, match="unloading times waits"):
        deployer.deploy(journal.event(event))
    assert journal.event(event).outcome is None
    assert journal.live("times") is not None
    engine.down = False
    run()
    assert journal.event(event).outcome == "unloaded"
    assert engine.loaded == {}


def test_what_waited_before_it_is_overtaken(receive, unload, run, deployer, journal, engine):
    receive(2.0)
    run()
    engine.dies_on_load = True
    waiting = receive(3.0)
    with pytest.raises(DeploymentPostponed):
        deployer.deploy(journal.event(waiting))
    engine.dies_on_load = engine.down = False
    event = unload()
    assert deployer.deploy(journal.event(event)) == "unloaded"
    run()
    assert journal.event(waiting).outcome == "failed"
    assert "newer event" in journal.event(waiting).reason
    assert engine.loaded == {}


def test_an_engine_that_refuses_keeps_serving_and_the_request_fails(receive, unload, run, journal, engine, repository):
    receive(2.0)
    run()

    def refuse(_name):
        raise EngineRefused("explicit model load / unload is not allowed")

    engine.unload = refuse
    event = unload()
    run()
    assert journal.event(event).outcome == "failed"
    assert "not allowed" in journal.event(event).reason
    assert (repository.linked("times"), engine.factor(), journal.live("times").number) == (1, 2.0, 1)


def test_an_engine_that_never_lets_go_is_waited_for(receive, unload, run, deployer, journal, engine, monkeypatch):
    monkeypatch.setattr("keynet_server._rollout.READY_TIMEOUT_S", 0.1)
    receive(2.0)
    run()
    engine.unload = lambda _name: None
    event = unload()
    with pytest.raises(DeploymentPostponed, match="still answers"):
        deployer.deploy(journal.event(event))


def test_a_second_request_finds_nothing_to_do(receive, unload, run, journal):
    receive()
    run()
    first, second = unload(), unload()
    run()
    assert [journal.event(each).outcome for each in (first, second)] == ["unloaded", "unloaded"]
    assert "nothing of times was live" in journal.event(second).reason


def test_what_is_not_live_cannot_be_unloaded(receive, unload, run):
    with pytest.raises(DeploymentUnknown):
        unload()
    receive()
    run()
    unload()
    run()
    with pytest.raises(DeploymentConflict, match="nothing of times is live"):
        unload()


def test_a_request_that_was_given_up_leaves_the_model_served(receive, unload, run, deployer, journal, repository):
    receive()
    run()
    event = unload()
    repository.unlink("times")
    deployer.give_up(journal.event(event), EngineRefused("an unforeseen error"))
    assert journal.event(event).outcome == "failed"
    assert repository.linked("times") == 1


def test_the_event_is_read_as_it_was_written(journal):
    asked = UnloadRequested(model="times", who="ada", why=None)
    journal.receive(asked.to_event())
    [received] = journal.unfinished()
    assert to_request(received) == asked
    with pytest.raises(EventInvalid):
        UnloadRequested.from_event(asked.to_event().__class__(id="1", source="/x", type="other", data={}))


@pytest.fixture
def url(deployer, worker):
    services = Services(
        deployer=deployer, worker=worker, token=Secret("the-token"), links=Links(tracking=None, serving=None)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(with_life(services), log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(60)


def post(url, body, headers=JSON):
    import httpx2

    answer = httpx2.post(f"{url}/v1/models/times/unload", content=body, headers=headers)
    return answer.status_code, answer.json()


def test_over_http(url, receive, journal, engine, eventually):
    assert post(url, b"{}")[0] == 404
    receive()
    eventually(lambda: journal.live("times") if journal.models() else None)
    assert post(url, b"{}", {"Content-Type": "application/json"})[0] == 401
    for body in (b'{"to": 3}', b"[]", b'{"why": 1}', b"{"):
        assert post(url, body)[0] == 422
    status, told = post(url, b'{"who": "ada", "why": "memory"}')
    assert (status, told["model"]) == (202, "times")
    eventually(lambda: journal.event(told["id"]).outcome == "unloaded")
    assert engine.loaded == {}
    assert post(url, b"{}")[0] == 409


def test_the_command_waits_until_it_is_gone(url, receive, journal, engine, eventually, home):
    def keynet(*arguments):
        environ = {"KEYNET_HOME": str(home), "KEYNET_URL": url, "KEYNET_TOKEN": "the-token"}
        command = [*KEYNET, "models", *arguments]
        return subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=60)

    receive()
    eventually(lambda: journal.live("times") if journal.models() else None)
    done = keynet("unload", "times", "--why", "memory is short")
    assert done.returncode == 0, done.stderr
    assert "times: nothing is live" in done.stdout
    assert "memory is short" in done.stdout
    assert "asked that times is served no more" in done.stderr
    assert engine.loaded == {}
    assert json.loads(keynet("show", "times", "--json").stdout)["last"]["state"] == "unloaded"
    again = keynet("unload", "times")
    assert (again.returncode, "nothing of times is live" in again.stderr) == (5, True)
    assert keynet("unload", "never").returncode == 4
    assert keynet("rollback", "times").returncode == 0
    assert engine.factor() == 2.0
