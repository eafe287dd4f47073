"""Two servers, as processes of their own, on one PostgreSQL, one store, one model server and its repository."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from keynet_core import CONTENT_TYPE
from keynet_server._database import migrate, open_database
from keynet_server._engine import KServeEngine
from keynet_server._journal import Journal

DEADLINE_S = 90.0
TOKEN = "the-token"
ONES = {"input_0": np.ones((1, 3), np.float32)}


class Server:
    """The keynet server, with a home of its own."""

    def __init__(self, home: Path, environ: dict[str, str]) -> None:
        home.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.log = home / "log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("KEYNET", "AWS", "RABBIT"))}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "keynet_server", "127.0.0.1", str(self.port)],
                env=clean | environ | {"KEYNET_HOME": str(home), "KEYNET_TOKEN": TOKEN},
                stdout=log,
                stderr=log,
            )

    def ask(self, method, path, body=None):
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": CONTENT_TYPE}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def is_ready(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.ask("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def outcomes(self):
        """Return what this server said it did, by event."""
        return re.findall(r"event (\S+) of \S+: (.+)", self.log.read_text())


@pytest.fixture
def url(postgresql):
    return postgresql.database()


@pytest.fixture
def journal(url, tmp_path):
    database = open_database(url)
    migrate(database, tmp_path / "migrate.lock")
    yield Journal(database)
    database.dispose()


@pytest.fixture
def two(url, publishing, own_serving, tmp_path, eventually):
    """Start two servers at once."""
    environ = {
        "KEYNET_DATABASE_URL": url,
        "KEYNET_STORE": publishing.store.url,
        "KEYNET_SERVING_REPOSITORY": str(own_serving.root),
        "TRITON_URL": own_serving.url,
    }
    servers = [Server(tmp_path / f"home-{number}", environ) for number in range(2)]
    try:
        for server in servers:
            eventually(server.is_ready, timeout_s=DEADLINE_S)
        yield servers
    finally:
        for server in servers:
            server.process.terminate()
        for server in servers:
            server.process.wait(60)


@pytest.fixture
def engine(own_serving):
    return KServeEngine(url=own_serving.url)


def factor_of(engine, journal, name):
    return float(engine.infer(name, journal.live(name).served_version, ONES)["output_0"][0, 0])


def test_thirty_events_of_five_models_have_one_outcome_and_one_deployment_each(
    two, publishing, journal, engine, eventually
):
    names = [f"shared-{number}" for number in range(5)]
    sent = []
    for number in range(30):
        event = publishing.publish(names[number % 5], 2.0 + number).to_event()
        for server in (two[number % 2], two[(number + 1) % 2]):  # and each to both, as a publisher in doubt does
            assert server.ask("POST", "/v1/events", event.to_json())[0] in {200, 202}
        sent.append(event)
    eventually(lambda: journal.unfinished() == [], timeout_s=DEADLINE_S)
    assert {journal.event(event.id).outcome for event in sent} == {"deployed"}
    for at, name in enumerate(names):
        history = journal.history(name)
        assert [each.number for each in history] == [6, 5, 4, 3, 2, 1]
        assert [each.event_id for each in reversed(history)] == [event.id for event in sent[at::5]]
        assert [each.state for each in history] == ["deployed", *["superseded"] * 5]
        assert factor_of(engine, journal, name) == 2.0 + 25 + at
    told = Counter(event_id for server in two for event_id, _ in server.outcomes())
    assert told == Counter(event.id for event in sent), "no event was acted on twice, by whomever"


def test_a_database_that_is_killed_and_started_again_loses_nothing(
    two, publishing, postgresql, journal, engine, eventually
):
    sent = [publishing.publish(f"lost-{number % 3}", 2.0 + number).to_event() for number in range(15)]
    for event in sent[:10]:
        assert two[0].ask("POST", "/v1/events", event.to_json())[0] == 202
    eventually(lambda: len(journal.unfinished()) < 10, timeout_s=DEADLINE_S)
    postgresql.kill()
    status, problem = two[1].ask("POST", "/v1/events", sent[10].to_json())
    assert (status, problem["code"]) == (503, "journal.unavailable")
    postgresql.start()
    for event in sent:
        assert two[1].ask("POST", "/v1/events", event.to_json())[0] in {200, 202}
    eventually(lambda: journal.unfinished() == [], timeout_s=DEADLINE_S)
    for number in range(3):
        history = journal.history(f"lost-{number}")
        assert len(history) == 5
        assert journal.live(f"lost-{number}").event_id == sent[12 + number].id
        assert factor_of(engine, journal, f"lost-{number}") == 2.0 + 12 + number
    assert len({each.event_id for number in range(3) for each in journal.history(f"lost-{number}")}) == 15
    assert all(server.is_ready() for server in two)


@pytest.mark.parametrize("step", ["begun", "fetched", "linked", "probed"])
def test_what_a_killed_server_had_begun_the_other_finishes(step, start, publishing, journal, engine, eventually):
    start("well")
    doomed = start("doomed", step)
    sent = []
    while doomed.poll() is None and len(sent) < 100:
        event = publishing.publish(f"{step}-{len(sent)}", 2.0 + len(sent)).to_event()
        assert journal.receive(event)
        sent.append(event)
        eventually(lambda: doomed.poll() is not None or journal.event(sent[-1].id).outcome, timeout_s=DEADLINE_S)
    assert doomed.wait(60) == -signal.SIGKILL
    eventually(lambda: journal.unfinished() == [], timeout_s=DEADLINE_S)
    for number, event in enumerate(sent):
        assert journal.event(event.id).outcome == "deployed"
        assert [each.number for each in journal.history(event.subject)] == [1]
        assert factor_of(engine, journal, event.subject) == 2.0 + number


@pytest.fixture
def start(url, publishing, own_serving, tmp_path, eventually):
    """Start servers that may die at a step; they are ended with the test."""
    started = []

    def start(name, *fatal):
        home = tmp_path / name
        home.mkdir()
        script = str(Path(__file__).with_name("state_server.py"))
        command = [sys.executable, script, str(home), url, str(publishing.store.root), str(own_serving.root)]
        with (home / "log").open("wb") as log:
            started.append(subprocess.Popen([*command, own_serving.url, *fatal], stdout=log, stderr=log))
        eventually(lambda: "acts on events" in (home / "log").read_text(), timeout_s=DEADLINE_S)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
