"""What a connection does with clients that are slow, many at once, or not what they say, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from keynet_serving import ModelServer
from keynet_serving._http import HttpApp, HttpLimits
from keynet_serving._http_body import SizedBody
from keynet_serving._http_head import HEAD_BYTES, Head, read_head
from keynet_serving._http_response import Reply

LIMIT = 4 << 20
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
GONE = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).encode()
ASK = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\n"
INFER = ASK + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def engine(tmp_path_factory, models_in, serving):
    repository = tmp_path_factory.mktemp("models")
    models_in(repository).identity("m")
    models_in(repository).identity("wide", shape=["batch", 1_000_000])
    models_in(repository).slow("slow", 200)
    limits = HttpLimits(max_body_bytes=LIMIT, head_timeout_s=0.4, body_timeout_s=0.4, idle_timeout_s=1.5)
    with serving(repository, "m", "wide", "slow", limits=limits) as engine:
        yield engine


@contextlib.contextmanager
def connected(engine, *, receive_bytes=None):
    host, port = engine.http.split(":")
    with socket.socket() as connection:
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(10)
        connection.connect((host, int(port)))
        yield connection


class Answers:
    """Reads answers from a connection, one after the other."""

    def __init__(self, connection):
        self._connection = connection
        self._held = b""

    def next(self):
        """Return status, headers and body of the next answer."""
        while b"\r\n\r\n" not in self._held:
            self._more()
        head, _, self._held = self._held.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(headers.get(b"content-length", 0))
        while len(self._held) < length:
            self._more()
        body, self._held = self._held[:length], self._held[length:]
        return status, headers, body

    def is_over(self):
        """Whether the server ends the connection without another byte."""
        return not self._held and self._connection.recv(1) == b""

    def _more(self):
        chunk = self._connection.recv(1 << 20)
        assert chunk, f"the connection ended after {self._held!r}"
        self._held += chunk


def ask(engine, *parts):
    """Send parts of one request and return its answer, and whether the connection is over after it."""
    with connected(engine) as connection:
        for part in parts:
            connection.sendall(part)
        answers = Answers(connection)
        status, headers, body = answers.next()
        is_closed = headers.get(b"connection") == b"close" and answers.is_over()
        return status, body, is_closed


# Requests as they should be


def test_a_connection_is_used_again(engine):
    with connected(engine) as connection:
        answers = Answers(connection)
        for request, status in ((LIVE, 200), (INFER, 200), (GONE, 404), (INFER, 200), (INFER, 200), (LIVE, 200)):
            connection.sendall(request)
            assert answers.next()[0] == status


def test_requests_sent_together_are_answered_in_order(engine):
    slow = json.dumps({"inputs": [{"name": "x", "shape": [1, 128, 128], "datatype": "FP32", "data": [0] * 16384}]})
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(slow)}\r\n\r\n"
    with connected(engine) as connection:
        connection.sendall((head + slow).encode() + INFER + GONE * 3 + LIVE + INFER)
        answers = Answers(connection)
        told = [answers.next() for _ in range(7)]
    assert [status for status, _, _ in told] == [200, 200, 404, 404, 404, 200, 200]
    assert [json.loads(body)["model_name"] for _, _, body in (told[0], told[1], told[6])] == ["slow", "m", "m"]


def test_more_requests_than_a_page_holds_are_all_answered(engine):
    count = 5 * HEAD_BYTES // len(INFER)
    with connected(engine) as connection:
        sender = threading.Thread(target=connection.sendall, args=(INFER * count,))
        sender.start()
        answers = Answers(connection)
        assert [answers.next()[0] for _ in range(count)] == [200] * count
        sender.join(60)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_request_may_arrive_in_small_pieces(engine, size):
    with connected(engine) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(INFER), size):
            connection.sendall(INFER[at : at + size])
        assert Answers(connection).next()[0] == 200


def test_a_body_larger_than_its_first_buffer_arrives_whole(engine):
    rows = np.random.default_rng(0).random((1, 1_000_000)).astype(np.float32)
    told = {"name": "x", "shape": [1, 1_000_000], "datatype": "FP32", "parameters": {"binary_data_size": rows.nbytes}}
    for spaces in range(3):
        text = json.dumps({"inputs": [told], "parameters": {"binary_data_output": True}}).encode() + b" " * spaces
        head = f"POST /v2/models/wide/infer HTTP/1.1\r\nInference-Header-Content-Length: {len(text)}\r\n"
        request = f"{head}Content-Length: {len(text) + rows.nbytes}\r\n\r\n".encode() + text + rows.tobytes()
        with connected(engine) as connection:
            connection.sendall(request)
            status, headers, body = Answers(connection).next()
        assert status == 200
        assert body[int(headers[b"inference-header-content-length"]) :] == rows.tobytes()


def test_chunks_are_read_and_the_connection_is_used_again(engine):
    chunks = b"".join(b"%x;note=1\r\n%b\r\n" % (len(part), part) for part in (BODY[:3], BODY[3:]))
    with connected(engine) as connection:
        answers = Answers(connection)
        for _ in range(2):
            connection.sendall(ASK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
            connection.sendall(b"0\r\nTrailer: x\r\n\r\n")
            assert answers.next()[0] == 200
        connection.sendall(LIVE)
        assert answers.next()[0] == 200


def test_what_follows_a_chunked_body_at_once_is_left_to_another_connection(engine):
    chunked = ASK + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    assert ask(engine, chunked + LIVE) == (200, ask(engine, INFER)[1], True)


def test_a_client_that_asks_whether_to_go_on_is_told(engine):
    head = ASK + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    with connected(engine) as connection:
        connection.sendall(head)
        answers = Answers(connection)
        assert answers.next()[0] == 100
        connection.sendall(BODY)
        assert answers.next()[0] == 200


def test_a_client_that_asks_whether_to_send_too_much_is_refused(engine):
    head = ASK + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (LIMIT + 1)
    status, _, is_closed = ask(engine, head)
    assert (status, is_closed) == (413, True)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /v2/health/live HTTP/1.0\r\n\r\n",
        b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ],
    ids=["HTTP/1.0", "close"],
)
def test_a_client_that_wants_one_answer_gets_one(engine, request_):
    with connected(engine) as connection:
        connection.sendall(request_ + LIVE)
        answers = Answers(connection)
        assert answers.next()[:2] == (200, {b"connection": b"close", **json_type(0)})
        with contextlib.suppress(ConnectionResetError):
            assert answers.is_over()


def json_type(length):
    return {b"content-type": b"application/json", b"content-length": b"%d" % length}


def test_an_answer_to_head_has_no_body(engine):
    with connected(engine) as connection:
        connection.sendall(b"HEAD /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(1000)
        assert re.search(rb"content-length: [1-9]", received)
        connection.sendall(LIVE)
        assert Answers(connection).next()[0] == 200
        assert received.endswith(b"\r\n\r\n")


def test_an_offer_of_another_protocol_is_left_unanswered(engine):
    offer = b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    with connected(engine) as connection:
        connection.sendall(ASK + offer + BODY + LIVE)
        answers = Answers(connection)
        assert [answers.next()[0] for _ in range(2)] == [200, 200]


def test_an_address_may_be_written_with_percents_or_in_full(engine):
    for address in (b"/v2/health/l%69ve", b"http://host:1/v2/health/live", b"/v2/health/live?x=1"):
        assert ask(engine, b"GET %b HTTP/1.1\r\nConnection: close\r\n\r\n" % address)[0] == 200


def test_a_client_may_close_its_half_before_the_answer(engine):
    slow = json.dumps({"inputs": [{"name": "x", "shape": [1, 128, 128], "datatype": "FP32", "data": [0] * 16384}]})
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(slow)}\r\n\r\n"
    with connected(engine) as connection:
        connection.sendall((head + slow).encode())
        connection.shutdown(socket.SHUT_WR)
        answers = Answers(connection)
        assert answers.next()[0] == 200
        assert answers.is_over()


# Requests that could be read in two ways

DOUBTFUL = {
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "the same length twice": b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": b"Content-Length: 5, 5\r\n\r\nhello",
    "a length with a sign": b"Content-Length: +5\r\n\r\nhello",
    "a negative length": b"Content-Length: -5\r\n\r\nhello",
    "a length in hexadecimal": b"Content-Length: 0x5\r\n\r\nhello",
    "a length with a blank inside": b"Content-Length: 1 5\r\n\r\nhello",
    "an empty length": b"Content-Length:\r\n\r\nhello",
    "an endless length": b"Content-Length: " + b"9" * 40 + b"\r\n\r\nhello",
    "a blank before the colon": b"Content-Length : 5\r\n\r\nhello",
    "a folded header": b"X: 1\r\n Content-Length: 5\r\n\r\nhello",
    "an unknown encoding": b"Transfer-Encoding: gzip\r\n\r\nhello",
    "an encoding that only looks like chunks": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks after identity": b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "chunks with an offer": b"Connection: Upgrade\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a zero byte": b"X: a\x00b\r\n\r\n",
    "a return inside": b"X: a\rContent-Length: 5\r\n\r\nhello",
    "a line feed alone": b"X: 1\nContent-Length: 5\r\n\r\nhello",
    "a blank line of line feeds": b"X: 1\n\nGET /v2/health/live HTTP/1.1\r\n\r\n",
    "no colon": b"nonsense\r\n\r\n",
}


@pytest.mark.parametrize("rest", DOUBTFUL.values(), ids=DOUBTFUL.keys())
def test_a_request_whose_end_is_in_doubt_is_refused_and_nothing_after_it_is_read(engine, rest):
    with connected(engine) as connection:
        connection.sendall(ASK + rest + LIVE)
        answers = Answers(connection)
        status, headers, body = answers.next()
        assert (status, headers[b"connection"]) == (400, b"close")
        assert "error" in json.loads(body)
        assert answers.is_over()


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"GET",
        b"GET /",
        b"GET / HTTP/2.0",
        b"GET / HTTP/9.9",
        b"GET / FTP/1.1",
        b"GET  / HTTP/1.1",
        b"get / HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET /\x00 HTTP/1.1",
        b"GET http:// HTTP/1.1",
    ],
)
def test_a_line_that_is_no_request_is_refused(engine, line):
    status, _, is_closed = ask(engine, line + b"\r\nHost: localhost\r\n\r\n")
    assert (status, is_closed) == (400, True)


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"\r\n5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"1" + b"0" * 40 + b"\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_chunks_that_are_none_are_refused(engine, chunks):
    status, body, is_closed = ask(engine, ASK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert (status, is_closed) == (400, True)
    assert "not in chunks" in json.loads(body)["error"]


# Requests that cost too much


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (ASK + b"X: " + b"x" * HEAD_BYTES, 431),
        (ASK + b"X: " + b"x" * (64 * HEAD_BYTES), 431),
        (b"GET /" + b"x" * (9 << 10) + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /" + b"x" * HEAD_BYTES, 431),
        (ASK + b"X: 1\r\n" * 101 + b"\r\n", 431),
    ],
    ids=["a long header", "a very long header", "a long address", "an address without end", "many headers"],
)
def test_a_head_that_is_too_large_is_refused(engine, head, status):
    told, _, is_closed = ask(engine, head)
    assert (told, is_closed) == (status, True)


def test_a_head_within_the_limits_is_taken(engine):
    head = b"GET /v2/health/live HTTP/1.1\r\n" + b"X: 1\r\n" * 99
    head += b"Y: " + b"y" * (HEAD_BYTES - len(head) - 7) + b"\r\n\r\n"
    assert len(head) == HEAD_BYTES
    with connected(engine) as connection:
        connection.sendall(head)
        assert Answers(connection).next()[0] == 200


@pytest.mark.parametrize("begun", [b"G", ASK, ASK + b"X: 1\r\n\r"], ids=["a letter", "a line", "almost all"])
def test_a_head_that_stops_arriving_is_refused(engine, begun):
    status, body, is_closed = ask(engine, begun)
    assert (status, is_closed) == (408, True)
    assert b"did not arrive within 0.4 s" in body


def test_a_client_that_keeps_sending_a_little_is_refused_all_the_same(engine):
    begun = time.monotonic()
    with connected(engine) as connection:
        connection.sendall(ASK)
        connection.settimeout(0.05)
        received = b""
        while not received and time.monotonic() - begun < 60:
            connection.sendall(b"X: 1\r\n")
            with contextlib.suppress(TimeoutError):
                received = connection.recv(1000)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("head", [b"Content-Length: 100000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nffff\r\n"])
def test_a_body_that_drips_is_refused(engine, head):
    begun = time.monotonic()
    with connected(engine) as connection:
        connection.sendall(ASK + head)
        connection.settimeout(0.05)
        received = b""
        while not received and time.monotonic() - begun < 60:
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                received = connection.recv(1000)
    assert received.startswith(b"HTTP/1.1 408 ")


def test_a_connection_without_requests_is_closed(engine):
    with connected(engine) as connection:
        connection.sendall(LIVE)
        answers = Answers(connection)
        assert answers.next()[0] == 200
        assert answers.is_over()


def wide_request():
    data = np.arange(1_000_000, dtype=np.float32).tobytes()
    told = {"name": "x", "shape": [1, 1_000_000], "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
    text = json.dumps({"inputs": [told], "parameters": {"binary_data_output": True}}).encode()
    head = f"POST /v2/models/wide/infer HTTP/1.1\r\nInference-Header-Content-Length: {len(text)}\r\n"
    return f"{head}Content-Length: {len(text) + len(data)}\r\n\r\n".encode() + text + data


def test_a_client_that_takes_no_answers_is_cut_off(engine):
    """Its answers must not pile up, and its requests wait in the kernel."""
    with connected(engine, receive_bytes=4096) as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
        connection.sendall(wide_request() * 20)
    assert ask(engine, INFER.replace(b"Host", b"Connection: close\r\nHost"))[0] == 200


def test_a_client_that_takes_its_answers_slowly_gets_them_all(models, serve):
    """It takes longer than the time in which it has to take some of them."""
    models.identity("wide", shape=["batch", 1_000_000])
    engine = serve("wide", limits=HttpLimits(body_timeout_s=0.8))
    taken, begun = 0, time.monotonic()
    with connected(engine, receive_bytes=1 << 16) as connection:
        sender = threading.Thread(target=connection.sendall, args=(wide_request() * 3 + LIVE,))
        sender.start()
        end = b""
        while not end.endswith(b"content-length: 0\r\n\r\n"):
            end = connection.recv(1 << 16)
            assert end, f"the connection ended after {taken} bytes"
            taken += len(end)
            threading.Event().wait(0.01)
        sender.join(60)
    assert taken > 12_000_000
    assert time.monotonic() - begun > 0.8


def test_a_length_that_lies_costs_only_what_arrives():
    head = Head(method="POST", path=(), headers={}, length=1 << 40, keeps_alive=True, expects_continue=False)
    body = SizedBody(head, memoryview(b"abc"))
    assert len(body.room()) < 1 << 20
    sizes = []
    while len(sizes) < 4:
        room = body.room()
        sizes.append(len(room))
        body.add(len(room))
    assert [size >> 20 for size in sizes] == [0, 1, 2, 4]
    assert bytes(body.take()[:3]) == b"abc"


def test_a_name_that_came_twice_has_its_values_joined():
    head = read_head(b"GET /a/b%2Fc HTTP/1.1\r\nAccept-Encoding: gzip\r\nACCEPT-ENCODING: deflate\r\n\r\n")
    assert isinstance(head, Head)
    assert head.headers == {b"accept-encoding": b"gzip, deflate"}
    assert head.path == ("a", "b", "c")
    assert (head.length, head.keeps_alive) == (0, True)


# The application behind the connection


class Broken:
    """A model server with a fault that nobody foresaw."""

    def start(self, _):
        raise ZeroDivisionError

    def index(self, *, only_ready):
        raise ZeroDivisionError(only_ready)


@pytest.fixture
def to_app():
    with ThreadPoolExecutor(1) as pool:
        yield lambda server: HttpApp(server, inference=pool, control=pool, limits=HttpLimits())


def post(path):
    head = read_head(b"POST %b HTTP/1.1\r\n\r\n" % path)
    assert isinstance(head, Head)
    return head


def test_a_fault_of_the_server_itself_is_an_answer(to_app, caplog):
    app = to_app(Broken())
    at_once = app.answer(object(), post(b"/v2/models/m/infer"), memoryview(BODY))
    later = asyncio.run(as_coroutine(app.answer(object(), post(b"/v2/repository/index"), memoryview(b""))))
    assert at_once == later
    assert (at_once.status, at_once.body) == (500, b'{"error":"Internal Server Error"}')
    assert caplog.text.count("ZeroDivisionError") >= 2


async def as_coroutine(answer):
    return await answer


def test_requests_of_one_client_alone_are_not_held_to_be_merged(models, to_app):
    config = 'input { name: "x" data_type: TYPE_FP32 dims: [2] } output { name: "y" data_type: TYPE_FP32 dims: [2] }'
    models.identity("b", config=f"max_batch_size: 4 dynamic_batching {{}} {config}")
    with ModelServer(models.repository) as server:
        server.load("b")
        for _ in range(100):
            server.served()[0].pace.note(8, 500_000)
        app = to_app(server)
        first, second = object(), object()

        def is_at_once(client):
            answer = app.answer(client, post(b"/v2/models/b/infer"), memoryview(BODY))
            reply = answer if isinstance(answer, Reply) else asyncio.run(as_coroutine(answer))
            assert reply.status == 200
            return answer is reply

        assert is_at_once(first)
        assert not is_at_once(second)
        app.forget(first)
        assert any(is_at_once(second) for _ in range(10))
