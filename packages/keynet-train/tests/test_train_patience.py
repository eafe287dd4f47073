"""How long a tracking server is waited for: not there, silent, slow, behind a proxy, as the user has it."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pytest

from keynet_core import read_settings
from keynet_train import _patience as patience
from keynet_train import _tracking as tracking
from keynet_train._errors import TrackingUnreachable
from keynet_train._settings import TrainSettings

EXPERIMENT = {"experiment_id": "7", "name": "first", "artifact_location": "s3://b/x", "lifecycle_stage": "active"}
TIMEOUT, RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


@pytest.fixture
def settings(tmp_path):
    return read_settings(TrainSettings, {}, home=tmp_path / "home")


@pytest.fixture(autouse=True)
def _own_variables(monkeypatch):
    for name in (TIMEOUT, RETRIES, "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield
    mlflow.set_tracking_uri(None)  # as if nobody ever chose one


class _Server(BaseHTTPRequestHandler):
    """Answers with a status, with an experiment when it is 200, once it may; never when the status is None."""

    def do_GET(self) -> None:
        self.server.seen.append((os.environ.get(TIMEOUT), os.environ.get(RETRIES)))
        self.server.may_answer.wait(60)
        if self.server.status is None:
            return
        body = json.dumps({"experiment": EXPERIMENT}).encode() if self.server.status == 200 else b""
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - http.server's own name

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    server.daemon_threads = True
    server.status, server.may_answer, server.seen = 200, threading.Event(), []
    server.address = f"127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mlflow.set_tracking_uri(f"http://{server.address}")
    yield server
    server.may_answer.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def full():
    """Return the port of a listener that takes no connection, as a host behind a firewall takes none."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)  # noqa: FBT003 - the method's only argument
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def refusal(settings):
    with pytest.raises(TrackingUnreachable) as refused:
        tracking.open_experiment(settings, "first")
    return refused.value.message


def test_a_server_that_refuses_connections_is_an_error_at_once(settings):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    mlflow.set_tracking_uri(f"http://user:secret@127.0.0.1:{port}")
    message = refusal(settings)
    assert message == f"the MLflow server at http://127.0.0.1:{port} does not answer: [Errno 111] Connection refused"


def test_a_server_that_takes_no_connection_is_waited_for_shortly(settings, full, monkeypatch):
    monkeypatch.setattr(patience, "CONNECT_TIMEOUT_S", 0.5)
    mlflow.set_tracking_uri(f"http://127.0.0.1:{full}")
    assert refusal(settings).endswith("does not answer: it took no connection for 0.5 s")


def test_to_connect_takes_less_patience_than_to_answer():
    assert patience.CONNECT_TIMEOUT_S < patience.ANSWER_TIMEOUT_S <= 20


@pytest.mark.parametrize("status", [503, 500])
def test_a_server_that_does_not_answer_rightly_is_an_error_after_two_bounded_requests(settings, server, status):
    server.status = status
    server.may_answer.set()
    refusal(settings)
    assert server.seen in ([("15", "1")], [("15", "1")] * 2)
    assert not {TIMEOUT, RETRIES} & os.environ.keys()


def test_a_server_that_takes_a_connection_and_never_answers_is_given_up(settings, server, monkeypatch):
    monkeypatch.setattr(patience, "ANSWER_TIMEOUT_S", 1)
    server.status = None
    assert f"the MLflow server at http://{server.address} does not answer" in refusal(settings)
    assert not {TIMEOUT, RETRIES} & os.environ.keys()


def test_a_slow_server_is_waited_for_and_that_is_said(settings, server, monkeypatch):
    told = []

    class Said(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())
            server.may_answer.set()

    said = Said(logging.WARNING)
    logging.getLogger("keynet_train").addHandler(said)
    monkeypatch.setattr(patience, "NOTICE_AFTER_S", 0.5)
    try:
        assert tracking.open_experiment(settings, "first").id == "7"
    finally:
        logging.getLogger("keynet_train").removeHandler(said)
    assert told == [
        f"the MLflow server at http://{server.address} takes longer than 0.5 s; a request is given up after 30 s"
    ]


def test_a_server_that_answers_at_once_is_nothing_to_tell(settings, server, monkeypatch):
    monkeypatch.setattr(patience, "NOTICE_AFTER_S", 60)
    server.may_answer.set()
    assert tracking.open_experiment(settings, "first").id == "7"
    deadline = time.monotonic() + 30
    while any(isinstance(thread, threading.Timer) for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the notice was not cancelled"
        time.sleep(0.01)


def test_patience_that_the_user_set_is_the_users(settings, full, monkeypatch):
    monkeypatch.setattr(patience, "CONNECT_TIMEOUT_S", 0.01)
    monkeypatch.setenv(TIMEOUT, "1")
    monkeypatch.setenv(RETRIES, "0")
    mlflow.set_tracking_uri(f"http://127.0.0.1:{full}")
    assert "took no connection" not in refusal(settings)
    assert os.environ[TIMEOUT] == "1"


def test_a_server_behind_a_proxy_is_left_to_the_proxy(settings, server, monkeypatch):
    server.may_answer.set()
    monkeypatch.setenv("http_proxy", f"http://{server.address}")
    monkeypatch.setenv("no_proxy", "elsewhere")
    mlflow.set_tracking_uri("http://mlflow.invalid:5000")
    assert tracking.open_experiment(settings, "first").id == "7"


def test_a_password_in_the_address_is_not_told(settings, server):
    server.status = 503
    server.may_answer.set()
    mlflow.set_tracking_uri(f"http://user:secret@{server.address}")
    message = refusal(settings)
    assert "secret" not in message
    assert server.address in message
