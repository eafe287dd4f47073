"""What happens when a model server is away, slow, confused or replaced, over real sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from keynet_inference import (
    InferenceFailed,
    InputRefused,
    ModelNotServed,
    Retry,
    TritonPlugin,
    TritonTimeout,
    TritonUnavailable,
    TritonUnreachable,
)
from keynet_inference._deadlines import Deadline
from keynet_inference._sockets import ConnectionPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


ONCE = Retry(attempts=1)
QUICK = Retry(attempts=3, first_delay_s=0.01, max_delay_s=0.02)

METADATA = {
    "name": "m",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
}
ANSWER = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}


def http(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Told", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def told(value: object, status: int = 200) -> bytes:
    return http(status, json.dumps(value).encode())


class Scripted:
    """A server that answers the requests it gets, in order, with the bytes it was given; None hangs up instead."""

    def __init__(self, answers: list[bytes | None], *, drip_s: float = 0) -> None:
        self.answers = answers
        self.drip_s = drip_s
        self.connections = 0
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while self.answers:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        while self.answers:
            request = read_request(connection)
            if not request:
                return
            self.requests.append(request)
            answer = self.answers.pop(0)
            if answer is None:
                return
            try:
                for at in range(0, len(answer), 1 if self.drip_s else len(answer)):
                    connection.sendall(answer[at : at + 1] if self.drip_s else answer)
                    time.sleep(self.drip_s)
            except OSError:
                return
            if b"Connection: close" in answer:
                return


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    servers: list[Scripted] = []

    def start(*answers: bytes | None, drip_s: float = 0) -> Scripted:
        servers.append(Scripted(list(answers), drip_s=drip_s))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ask(url: str, **options: Any) -> dict[str, np.ndarray]:
    with TritonPlugin(url, "m", **({"retry": QUICK, "timeout_s": 10} | options)) as plugin:
        return plugin.predict({"x": np.zeros(2, np.float32)})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_is_away_is_unavailable_and_the_hint_starts_one(scheme: str) -> None:
    with pytest.raises(TritonUnreachable) as caught:
        ask(f"{scheme}://127.0.0.1:{free_port()}", retry=ONCE)

    assert "keynet up" in str(caught.value.hint)


def test_a_name_that_leads_nowhere_is_unavailable() -> None:
    with pytest.raises(TritonUnavailable, match=r"nowhere.invalid"):
        ask("http://nowhere.invalid:8000", retry=ONCE)


def test_a_connection_that_breaks_before_the_answer_is_tried_again(scripted: Callable[..., Scripted]) -> None:
    server = scripted(told(METADATA), None, None, told(ANSWER))

    assert ask(server.url)["y"].tolist() == [1, 2]
    assert server.connections == 3


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"], ids=["with its length", "in chunks"]
)
def test_an_answer_that_breaks_off_is_not_asked_for_again(scripted: Callable[..., Scripted], framing: bytes) -> None:
    cut = b"HTTP/1.1 200 OK\r\n" + framing + b"\r\nConnection: close\r\n\r\n64\r\n{"
    server = scripted(told(METADATA), cut, told(ANSWER))

    with pytest.raises(TritonUnavailable, match="broke off") as caught:
        ask(server.url)
    assert type(caught.value) is TritonUnavailable
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_server_that_says_it_cannot_now_is_not_asked_again(scripted: Callable[..., Scripted], status: int) -> None:
    server = scripted(told(METADATA), told({"error": "busy"}, status), told(ANSWER))

    with pytest.raises(TritonUnavailable, match=rf"busy \(HTTP {status}\)") as caught:
        ask(server.url)
    assert type(caught.value) is TritonUnavailable
    assert len(server.requests) == 2


def test_retries_end(scripted: Callable[..., Scripted]) -> None:
    server = scripted(None, None, None, told(METADATA))

    with pytest.raises(TritonUnavailable, match="was lost"):
        ask(server.url)
    assert len(server.requests) == 3


def test_retries_can_be_switched_off(scripted: Callable[..., Scripted]) -> None:
    server = scripted(None, told(METADATA))

    with pytest.raises(TritonUnavailable):
        ask(server.url, retry=ONCE)
    assert len(server.requests) == 1


def test_no_retry_waits_past_the_time_out(scripted: Callable[..., Scripted]) -> None:
    server = scripted(None, told(METADATA))

    with pytest.raises(TritonUnavailable):
        ask(server.url, retry=Retry(first_delay_s=60, max_delay_s=60), timeout_s=1)


@pytest.mark.parametrize("status", [400, 404, 500])
def test_an_answer_is_never_asked_for_again(scripted: Callable[..., Scripted], status: int) -> None:
    server = scripted(told(METADATA), told({"error": "no"}, status), told(METADATA), told(ANSWER))

    with pytest.raises((InputRefused, ModelNotServed, InferenceFailed), match="no"):
        ask(server.url)
    assert [b"/infer" in request.split(b"\r\n")[0] for request in server.requests] == [False, True]


def test_a_server_that_does_not_answer_times_out_and_is_not_asked_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(TritonTimeout, match=r"within 0\.3 s") as caught:
            ask(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3)

    assert isinstance(caught.value, TimeoutError)
    assert time.monotonic() - started < 5


def test_grpc_that_does_not_answer_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TritonTimeout):
        ask(f"grpc://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3)


def test_a_server_that_drips_does_not_outlast_the_time_out(scripted: Callable[..., Scripted]) -> None:
    server = scripted(told(METADATA), drip_s=0.05)

    started = time.monotonic()
    with pytest.raises(TritonTimeout):
        ask(server.url, timeout_s=0.5)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        http(200, b"not json"),
        http(200, b"\xff\xfe"),
        told([]),
        told({"outputs": [{"name": "y", "datatype": "FP9", "shape": [1], "data": [1]}]}),
        told({"outputs": [{"name": "y", "datatype": "FP32", "shape": [9], "data": [1]}]}),
        told({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}]}),
        told({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}]}),
        told({"unexpected": True}),
        http(200, b"", "Inference-Header-Content-Length: x"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
    ],
)
def test_an_answer_that_cannot_be_read_is_a_failure(scripted: Callable[..., Scripted], answer: bytes) -> None:
    server = scripted(told(METADATA), answer)

    with pytest.raises(InferenceFailed, match=r"127\.0\.0\.1"):
        ask(server.url)


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b"", b'"plain"'])
def test_an_error_that_is_no_json_is_told_as_it_is(scripted: Callable[..., Scripted], body: bytes) -> None:
    server = scripted(http(500, body))

    with pytest.raises(InferenceFailed, match=r"HTTP 500"):
        ask(server.url)


def test_an_answer_in_chunks_is_read(scripted: Callable[..., Scripted]) -> None:
    data = json.dumps(ANSWER).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:10], data[10:])) + b"0\r\n\r\n"
    server = scripted(told(METADATA), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)

    assert ask(server.url)["y"].tolist() == [1, 2]


def test_an_answer_that_ends_with_the_connection_is_read(scripted: Callable[..., Scripted]) -> None:
    body = json.dumps(METADATA).encode()
    server = scripted(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body, told(ANSWER))

    assert ask(server.url)["y"].tolist() == [1, 2]
    assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [http(200, b"123456789"), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n123456789\r\n0\r\n\r\n"],
    ids=["with its length", "in chunks"],
)
def test_an_answer_larger_than_the_cap_is_not_read(scripted: Callable[..., Scripted], answer: bytes) -> None:
    server = scripted(answer, answer)

    for cap, refusal in ((8, pytest.raises(InferenceFailed, match="more than 8 bytes")), (9, nullcontext())):
        pool = ConnectionPool(server.url, 5, max_answer_bytes=cap)
        with refusal:
            assert pool.ask("GET", "/", {}, (), Deadline(10)).body == b"123456789"
        pool.close()


def test_a_server_that_never_accepts_is_a_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as waiting:
        port = listener.getsockname()[1]
        for _ in range(4):
            fill = waiting.enter_context(socket.socket())
            fill.settimeout(0)
            fill.connect_ex(("127.0.0.1", port))

        with pytest.raises(TritonTimeout, match=r"accepted no connection within 0\.2 s"):
            ask(f"http://127.0.0.1:{port}", connect_timeout_s=0.2)


def test_a_request_that_has_no_time_is_a_time_out(server: Any) -> None:
    for scheme in ("http", "grpc"):
        with pytest.raises(TritonTimeout, match="no answer within 1e-09 s"):
            ask(server.url(scheme), timeout_s=1e-9)


def test_a_time_out_after_a_retry_is_the_time_out(scripted: Callable[..., Scripted]) -> None:
    server = scripted(None, told(METADATA), drip_s=0.05)

    with pytest.raises(TritonTimeout):
        ask(server.url, timeout_s=0.5)


def test_https_to_a_server_that_speaks_http_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: answer_plainly(listener), daemon=True)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TritonUnavailable, match=r"(?i)ssl"):
            ask(url, retry=ONCE)
        thread.join(10)


def answer_plainly(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(100)
        connection.sendall(told(METADATA))


def test_a_request_that_is_refused_before_it_is_sent_tells_why() -> None:
    def refuse() -> None:
        connection, _ = listener.accept()
        with connection:
            read_request(connection)
            connection.sendall(told(METADATA))
            connection.recv(100)
            connection.sendall(told({"error": "too large"}, 413))
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(10)
            while connection.recv(1 << 20):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with TritonPlugin(url, "m", retry=ONCE, timeout_s=10) as plugin, pytest.raises(InputRefused, match="too large"):
            plugin.predict({"x": np.zeros(1 << 20, np.float32)})
        thread.join(10)


def test_the_base_of_an_address_and_odd_names_are_kept(scripted: Callable[..., Scripted]) -> None:
    server = scripted(told(METADATA), told(ANSWER))

    with TritonPlugin(f"{server.url}/models/", "a/b ü", 3) as plugin:
        plugin.predict({"x": [1, 2]})

    lines = [request.split(b"\r\n")[0] for request in server.requests]
    assert lines[0] == b"GET /models/v2/models/a%2Fb%20%C3%BC/versions/3 HTTP/1.1"
    assert lines[1] == b"POST /models/v2/models/a%2Fb%20%C3%BC/versions/3/infer HTTP/1.1"


def test_metadata_is_asked_once(scripted: Callable[..., Scripted]) -> None:
    server = scripted(told(METADATA), *[told(ANSWER)] * 3)

    with TritonPlugin(server.url, "m") as plugin:
        for _ in range(3):
            plugin.predict({"x": [1, 2]})

    assert [request.split(b" ")[0] for request in server.requests] == [b"GET", b"POST", b"POST", b"POST"]
