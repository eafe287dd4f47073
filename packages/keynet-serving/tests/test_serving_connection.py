"""Requests as they should be, byte by byte: one after the other, together, in pieces, in chunks, cut short."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading

import numpy as np
import pytest

from keynet_serving._http import HttpLimits
from keynet_serving._http_head import HEAD_BYTES
from raw_http import ASK, BODY, GONE, INFER, LIVE, Answers, ask, connected

LIMIT = 4 << 20


@pytest.fixture(scope="module")
def engine(tmp_path_factory, models_in, serving):
    repository = tmp_path_factory.mktemp("models")
    models_in(repository).identity("m")
    models_in(repository).identity("wide", shape=["batch", 1_000_000])
    models_in(repository).slow("slow", 200)
    with serving(repository, "m", "wide", "slow", limits=HttpLimits(max_body_bytes=LIMIT)) as engine:
        yield engine


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
