"""The routes, over a real socket, with the deployer behind them."""

from __future__ import annotations

import http.client
import json
import socket
import threading

import pytest
import uvicorn

from keynet_core import CONTENT_TYPE, MAX_EVENT_BYTES, EventRefused, EventUndelivered, HttpPublisher, Outbox, Secret
from keynet_server._app import Services
from keynet_server._pages import Links
from keynet_server._serve import with_life
from keynet_server._worker import Worker

TOKEN = "the-token"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
EVENT = AUTH | {"Content-Type": CONTENT_TYPE}
JSON = AUTH | {"Content-Type": "application/json"}


@pytest.fixture
def services(deployer, publishing, home):
    worker = Worker(deployer, Outbox(home / "outbox"), publishing.store, tick_s=0.05)
    links = Links(tracking="http://127.0.0.1:5000", serving=None)
    return Services(deployer=deployer, worker=worker, token=Secret(TOKEN), links=links)


@pytest.fixture
def port(services):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(with_life(services), log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def ask(port):
    def ask(method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        is_json = "json" in answer.getheader("content-type", "")
        return answer.status, json.loads(text) if is_json else text.decode(), answer.headers

    return ask


@pytest.fixture
def deployed(publishing, ask, eventually):
    def deployed(factor=2.0, **options):
        event = publishing.publish("times", factor, **options).to_event()
        status, _, _ = ask("POST", "/v1/events", event.to_json(), EVENT)
        assert status == 202
        return eventually(lambda: (told := ask("GET", f"/v1/events/{event.id}")[1])["outcome"] and told)

    return deployed


def test_an_event_becomes_a_deployment_that_can_be_asked_about(deployed, ask, engine):
    assert deployed(2.0, version="7")["outcome"] == "deployed"
    assert engine.factor() == 2.0
    _, told, _ = ask("GET", "/v1/models")
    assert [each["name"] for each in told["models"]] == ["times"]
    _, told, _ = ask("GET", "/v1/models/times")
    assert told["live"]["served_version"] == "7"
    _, told, _ = ask("GET", "/v1/models/times/history")
    assert [each["number"] for each in told["deployments"]] == [1]


def test_a_known_event_is_answered_200(publishing, ask, eventually):
    body = publishing.publish().to_event().to_json()
    assert ask("POST", "/v1/events", body, EVENT)[0] == 202
    status, told, _ = ask("POST", "/v1/events", body, EVENT)
    assert (status, told["received"]) == (200, "before")


def test_the_publisher_of_core_is_understood(publishing, port, journal):
    event = publishing.publish().to_event()
    url = f"http://127.0.0.1:{port}"
    HttpPublisher(url=url, token=Secret(TOKEN)).publish(event)
    assert journal.event(event.id)
    with pytest.raises(EventUndelivered):
        HttpPublisher(url=url, token=Secret("wrong")).publish(event)
    with pytest.raises(EventRefused):
        HttpPublisher(url=url, token=Secret(TOKEN)).publish(type(event)(id="1", source="/", type="other", data={}))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer töken".encode("latin-1")},
    ],
)
@pytest.mark.parametrize("path", ["/v1/events", "/v1/models/times/rollback"])
def test_without_the_token_nothing_changes(ask, journal, publishing, path, headers):
    body = publishing.publish().to_event().to_json()
    status, told, got = ask("POST", path, body, {"Content-Type": CONTENT_TYPE} | headers)
    assert (status, told["code"], got["www-authenticate"]) == (401, "request.token_refused", "Bearer")
    assert journal.unfinished() == []


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json", ""],
)
def test_what_a_form_on_another_site_can_send_is_refused(ask, journal, publishing, content_type):
    body = publishing.publish().to_event().to_json()
    status, told, _ = ask("POST", "/v1/events", body, AUTH | {"Content-Type": content_type})
    assert (status, told["code"]) == (415, "request.content_type")
    assert journal.unfinished() == []


def test_no_other_site_is_allowed_to_read_or_preflight(ask):
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    status, _, got = ask("OPTIONS", "/v1/events", None, headers)
    assert status == 405
    assert "access-control-allow-origin" not in got
    assert "access-control-allow-origin" not in ask("GET", "/v1/models", None, headers)[2]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8700", "127.0.0.1.evil.example", "localhost@evil", ""])
def test_a_host_that_is_not_ours_is_refused(ask, host):
    status, told, _ = ask("GET", "/v1/models", None, {"Host": host})
    assert (status, told["code"]) == (421, "request.host_refused")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8700", "[::1]:8700"])
def test_loopback_by_every_name_is_answered(ask, host):
    assert ask("GET", "/healthz", None, {"Host": host})[0] == 200


def test_a_body_that_says_it_is_too_large_is_refused_unread(ask):
    status, told, _ = ask("POST", "/v1/events", b"x" * (MAX_EVENT_BYTES + 1), EVENT)
    assert (status, told["code"]) == (413, "request.too_large")


def test_a_body_that_does_not_say_how_large_it_is_is_refused_while_reading(port):
    def chunk(data):
        return f"{len(data):x}\r\n".encode() + data + b"\r\n"

    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        head = f"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: {CONTENT_TYPE}\r\n"
        head += f"Authorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        for _ in range(5):
            connection.sendall(chunk(b" " * 65536))
        assert b" 413 " in connection.recv(4096).splitlines()[0]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "event.invalid"),
        (b"[]", "event.invalid"),
        (b'{"specversion":"0.3"}', "event.invalid"),
        (b'{"specversion":"1.0","id":"1","source":"/","type":"x","data":{}}', "event.refused"),
        (
            b'{"specversion":"1.0","id":"1","source":"/","type":"io.keynet.model.published.v1","data":{}}',
            "event.invalid",
        ),
    ],
)
def test_an_event_that_is_none_is_a_problem_with_a_code(ask, body, code):
    status, told, got = ask("POST", "/v1/events", body, EVENT)
    assert (status, told["code"], told["status"]) == (422, code, 422)
    assert got["content-type"] == "application/problem+json"
    assert told["request_id"] == got["x-request-id"]


def test_a_package_in_another_store_keeps_the_publisher_waiting(publishing, port, ask):
    from dataclasses import replace

    event = replace(publishing.publish(), digest="sha256:" + "0" * 64).to_event()
    assert ask("POST", "/v1/events", event.to_json(), EVENT)[1]["code"] == "package.elsewhere"
    with pytest.raises(EventUndelivered, match="not in this server's store"):
        HttpPublisher(url=f"http://127.0.0.1:{port}", token=Secret(TOKEN)).publish(event)


def test_what_is_not_there_is_a_problem_too(ask):
    assert ask("GET", "/v1/events/a/b/c")[1]["code"] == "event.unknown"
    assert ask("GET", "/v1/models/nope")[1]["code"] == "deployment.unknown"
    assert ask("GET", "/v1/models/..%2F..%2Fetc")[0] in {404, 422}
    assert ask("GET", "/v1/models/-bad/history")[1]["code"] == "name.refused"
    assert ask("GET", "/nothing/here")[1]["code"] == "request.no_route"
    assert ask("GET", "/docs")[0] == 404


def test_a_rollback_over_http(deployed, ask, eventually, engine):
    deployed(2.0)
    deployed(3.0)
    body = json.dumps({"to": 1, "why": "it was better", "who": "ada"})
    status, told, _ = ask("POST", "/v1/models/times/rollback", body, JSON)
    assert (status, told["restores"]) == (202, 1)
    eventually(lambda: ask("GET", f"/v1/events/{told['id']}")[1]["outcome"] == "deployed")
    assert engine.factor() == 2.0
    live = ask("GET", "/v1/models/times")[1]["live"]
    assert (live["requested_by"], live["why"], live["restores"]) == ("ada", "it was better", 1)
    assert ask("POST", "/v1/models/times/rollback", body, JSON)[0] == 409
    assert ask("POST", "/v1/models/times/rollback", b'{"to": 99}', JSON)[0] == 404


@pytest.mark.parametrize(
    "body", [b"[", b"[]", b'{"to": "1"}', b'{"to": 0}', b'{"to": true}', b'{"why": 3}', b'{"who": 3}', b'{"other": 1}']
)
def test_a_rollback_that_cannot_be_read_is_refused(ask, body):
    status, told, _ = ask("POST", "/v1/models/times/rollback", body, JSON)
    assert (status, told["code"]) == (422, "request.invalid")


def test_ready_says_which_part_is_not(ask, engine):
    assert ask("GET", "/readyz")[0] == 200
    engine.down = True
    status, told, _ = ask("GET", "/readyz")
    assert (status, told["engine"], told["worker"]) == (503, False, True)


def test_the_landing_page_shows_trouble_first_and_escapes_what_it_shows(deployed, ask, engine):
    deployed(2.0)
    engine.refuse = "<script>alert(1)</script>"
    deployed(3.0)
    status, page, headers = ask("GET", "/")
    assert status == 200
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.index("Not as it should be") < page.index("<h2>Live") < page.index("Last deployments")
    assert "http://127.0.0.1:5000" in page
    assert "default-src 'none'" in headers["content-security-policy"]


def test_the_landing_page_of_an_empty_server(ask):
    assert "Nothing is deployed yet" in ask("GET", "/")[1]


def test_an_unforeseen_error_is_a_problem_without_details(ask, journal, monkeypatch):
    def explode():
        raise ZeroDivisionError("secret detail")

    assert ask("GET", "/v1/models")[0] == 200
    monkeypatch.setattr(journal, "models", explode)
    status, told, _ = ask("GET", "/v1/models")
    assert (status, told["code"]) == (500, "server.internal")
    assert "secret" not in json.dumps(told)
