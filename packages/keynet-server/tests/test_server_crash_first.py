"""A server is killed after it had a model's first deployment loaded: a client that asks all the time is answered on."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from keynet_core import LocalStore, Outbox
from keynet_server._database import open_database
from keynet_server._deployer import Deployer
from keynet_server._engine import KServeEngine
from keynet_server._journal import Journal
from keynet_server._worker import Worker

NAME = "first"
QUESTION = json.dumps({"inputs": [{"name": "input_0", "shape": [1, 3], "datatype": "FP32", "data": [1, 1, 1]}]})
PATIENT_S = 60.0


class Client:
    """Asks one model all the time, from a thread of its own, without naming a version."""

    def __init__(self, url):
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self.answers = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self._thread.join(PATIENT_S)

    def ask(self):
        connection = http.client.HTTPConnection(*self._address, timeout=PATIENT_S)
        try:
            connection.request("POST", f"/v2/models/{NAME}/infer", QUESTION, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _run(self):
        while not self._stopping.wait(0.005):
            self.answers.append(self.ask())


@pytest.fixture(scope="module")
def killed(stage, migrated, tmp_path_factory, publishing_class):
    """Kill a server that had a first deployment loaded; return home and store, and what announces the package."""
    home = tmp_path_factory.mktemp("killed-first")
    shutil.copy(migrated, home / "keynet.db")
    publishing = publishing_class(store=LocalStore(home / "store"), scratch=home / "scratch")
    event = publishing.publish(NAME, 2.0, version="1").to_event()
    command = [sys.executable, str(Path(__file__).with_name("killed_server.py"))]
    command += [str(home), stage.repository_url, str(stage.aside), stage.url]
    told = json.dumps({"loaded": event.to_json().decode()})
    done = subprocess.run(command, input=told, capture_output=True, text=True, timeout=180, check=False)
    assert json.loads(done.stdout) == {"loaded": -signal.SIGKILL}, done.stderr
    return home, publishing.store, event


def test_the_next_server_finishes_it_and_nobody_is_refused_meanwhile(stage, killed):
    home, store, event = killed
    database = open_database(f"sqlite:///{home / 'keynet.db'}")
    journal, repository = Journal(database), stage.repository()
    deployer = Deployer(journal=journal, store=store, repository=repository, engine=KServeEngine(url=stage.url))
    with Client(stage.url) as client:
        assert client.ask()[0] == 200
        repaired = deployer.repair_links()
        assert repaired == [NAME]
        assert repository.linked(NAME) is None, "an engine that starts now finds nothing that was never tried"
        worker = Worker(deployer, Outbox(home / "outbox"), store)
        worker._stale = set(repaired)
        deadline = time.monotonic() + PATIENT_S
        while journal.event(event.id).outcome is None:
            assert time.monotonic() < deadline
            worker.run_once()
        asked = len(client.answers)
        while len(client.answers) < asked + 3:
            assert time.monotonic() < deadline + PATIENT_S
            time.sleep(0.01)
    assert (journal.event(event.id).outcome, repository.linked(NAME)) == ("deployed", 1)
    assert {(status, body) for status, body in client.answers if status != 200} == set()
    database.dispose()
