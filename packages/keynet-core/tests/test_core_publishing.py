"""Events over HTTP against real servers: those that answer, those that refuse, and those that misbehave."""

from __future__ import annotations

import datetime as dt
import json
import socket
import ssl
import struct
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keynet_core import (
    Event,
    EventRefused,
    EventUndelivered,
    HttpPublisher,
    ModelPackage,
    Nowhere,
    Secret,
    SettingsInvalid,
    publish_entry,
)


@pytest.fixture
def event(published):
    return published.to_event()


class Server(ThreadingHTTPServer):
    """An HTTP server that gives one answer and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, status, body):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.body, self.asked = status, body, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format, *args):  # noqa: A002  # the name in the standard library
        pass


@contextmanager
def serving(status=202, body=b"{}"):
    with Server(status, body) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def listening(behave):
    """Yield the address of a socket that takes one connection and lets `behave` do with it what it likes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run():
            connection, _ = listener.accept()
            with connection:
                behave(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(timeout=60)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_an_event_that_was_taken_is_delivered(event, status):
    with serving(status, b"" if status == 204 else b"{}") as server:
        HttpPublisher(url=server.url).publish(event)
    (path, headers, body) = server.asked[0]
    assert path == "/v1/events"
    assert headers["Content-Type"] == "application/cloudevents+json"
    assert Event.from_json(body) == event
    assert "Authorization" not in headers


def test_a_path_in_the_address_is_kept(event):
    with serving() as server:
        HttpPublisher(url=f"{server.url}/keynet").publish(event)
    assert server.asked[0][0] == "/keynet/v1/events"


def test_the_token_is_sent(event):
    with serving() as server:
        HttpPublisher(url=server.url, token=Secret("hunter2")).publish(event)
    assert server.asked[0][1]["Authorization"] == "Bearer hunter2"


@pytest.mark.parametrize("token", ["hunter2\r\nX: y", "hunter2é", "hunter2\n"])
def test_a_token_no_header_carries_is_refused_and_not_shown(event, token):
    with pytest.raises(SettingsInvalid, match="token") as caught:
        HttpPublisher(url="http://127.0.0.1:9", token=Secret(token)).publish(event)
    assert "hunter2" not in str(caught.value) + repr(caught.value.__context__)


def test_proxies_of_the_environment_are_not_used(event, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with serving() as server:
        HttpPublisher(url=server.url).publish(event)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 409, 410, 413, 415, 422])
def test_an_answer_about_the_event_itself_is_final(event, status):
    with (
        serving(status, json.dumps({"detail": "the digest is no digest"}).encode()) as server,
        pytest.raises(EventRefused, match=f"answered {status}: the digest is no digest"),
    ):
        HttpPublisher(url=server.url).publish(event)


@pytest.mark.parametrize(
    "status", [203, 301, 302, 307, 308, 401, 403, 404, 405, 407, 408, 425, 429, 451, 500, 502, 503, 507]
)
def test_any_other_answer_leaves_the_event_waiting(event, status):
    with (
        serving(status, b'{"message": "not now"}') as server,
        pytest.raises(EventUndelivered, match=f"answered {status}: not now"),
    ):
        HttpPublisher(url=server.url).publish(event)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"plain words", "plain words"),
        (b"[1, 2]", "[1, 2]"),
        (b'{"other": 1}', "{'other': 1}"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"[" * 60_000, "[[["),
        (b'{"detail": "\\u001b[2Jred"}', "[2Jred"),
        (b"x" * 1_000_000, "xxx"),
    ],
)
def test_the_reason_is_short_and_printable_whatever_was_answered(event, body, shown):
    with serving(422, body) as server, pytest.raises(EventRefused) as caught:
        HttpPublisher(url=server.url).publish(event)
    reason = caught.value.message.partition("422: ")[2]
    assert reason.startswith(shown)
    assert reason.isprintable()
    assert len(reason) <= 500


def never_answer(connection):
    while connection.recv(65536):
        pass


def drip(connection):
    connection.settimeout(0.02)
    connection.sendall(b"HTTP/1.1 202 ")
    open_still = True
    while open_still:
        try:
            open_still = bool(connection.recv(65536))
        except TimeoutError:
            connection.sendall(b"x")


def test_a_server_that_never_answers_is_given_up(event):
    with listening(never_answer) as url, pytest.raises(EventUndelivered, match=r"does not answer: \w+"):
        HttpPublisher(url=url, timeout_s=0.2).publish(event)


def test_a_server_that_drips_is_given_up_as_well(event):
    start = time.monotonic()
    with listening(drip) as url, pytest.raises(EventUndelivered, match=r"no whole answer within 0\.3 s"):
        HttpPublisher(url=url, timeout_s=0.3).publish(event)
    assert time.monotonic() - start < 5


def reset(connection):
    connection.recv(10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def close(connection):
    connection.recv(65536)


def garbage(connection):
    connection.recv(65536)
    connection.sendall(b"\x00\xff\x1b[2J not http at all\r\n\r\n")


def endless_headers(connection):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500)


def half(connection):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 20")


@pytest.mark.parametrize("behave", [reset, close, garbage, endless_headers, half])
def test_a_server_that_misbehaves_leaves_the_event_waiting(event, behave):
    with listening(behave) as url, pytest.raises(EventUndelivered, match=r"does not answer: .+") as caught:
        HttpPublisher(url=url, timeout_s=5.0).publish(event)
    assert caught.value.message.isprintable()
    assert caught.value.hint == "keynet up"


def test_no_server_at_all_leaves_the_event_waiting(event):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(EventUndelivered, match="refused"):
        HttpPublisher(url=f"http://127.0.0.1:{port}").publish(event)


@pytest.mark.parametrize("url", ["http://a..b:1", "http://" + "x" * 64 + ".invalid:1"])
def test_a_host_that_cannot_be_looked_up_leaves_the_event_waiting(event, url):
    with pytest.raises(EventUndelivered):
        HttpPublisher(url=url).publish(event)


@pytest.mark.parametrize("url", ["http://h:99999", "ftp://h", "http://a b"])
def test_an_address_that_is_none_is_refused(event, url):
    with pytest.raises(SettingsInvalid):
        HttpPublisher(url=url).publish(event)


@pytest.fixture
def certificate(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_certificate_nobody_vouches_for_leaves_the_event_waiting(event, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def shake(connection):
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(connection, server_side=True)

    with listening(shake) as url, pytest.raises(EventUndelivered, match="CERTIFICATE_VERIFY_FAILED"):
        HttpPublisher(url=url.replace("http:", "https:"), token=Secret("hunter2")).publish(event)


def test_without_a_server_events_wait_and_say_so(event):
    with pytest.raises(EventUndelivered, match="no keynet server is known to announce mnist to"):
        Nowhere().publish(event)


class Log:
    """Takes events, and keeps the order of what happened."""

    def __init__(self):
        self.happened = []

    def publish(self, event):
        self.happened.append(event.id)


def test_an_entry_is_stored_before_it_is_announced(outbox, store, event, tmp_path, make_package):
    log = Log()
    with outbox.stage() as staged:
        staged.rmdir()
        package = make_package(staged)
        entry = outbox.add(event, package.directory)
    publish_entry(entry, store, log, log.happened.append)
    assert log.happened == [f"{store.url}/packages/mnist/{package.digest[7:]}", event.id]
    assert isinstance(entry.package(), ModelPackage)


def test_an_entry_without_a_package_is_announced_alone(outbox, store, event):
    log = Log()
    publish_entry(outbox.add(event), store, log, log.happened.append)
    assert log.happened == [event.id]
    assert list(store.list("")) == []
