"""Clients that cost too much: heads without end, bodies that drip, answers that nobody takes."""

from __future__ import annotations

import contextlib
import json
import threading
import time

import numpy as np
import pytest

from keynet_serving._http import HttpLimits
from keynet_serving._http_body import SizedBody
from keynet_serving._http_head import HEAD_BYTES, Head
from raw_http import ASK, INFER, LIVE, Answers, ask, connected


@pytest.fixture(scope="module")
def engine(tmp_path_factory, models_in, serving):
    repository = tmp_path_factory.mktemp("models")
    models_in(repository).identity("m")
    models_in(repository).identity("wide", shape=["batch", 1_000_000])
    limits = HttpLimits(max_body_bytes=4 << 20, head_timeout_s=0.4, body_timeout_s=0.4, idle_timeout_s=1.5)
    with serving(repository, "m", "wide", limits=limits) as engine:
        yield engine


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
