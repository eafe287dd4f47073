"""The application behind a connection: what it reads of a head, its own faults, and which requests are held."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from keynet_serving import ModelServer
from keynet_serving._http import HttpApp, HttpLimits
from keynet_serving._http_head import Head, read_head
from keynet_serving._http_response import Reply
from raw_http import BODY


def test_a_name_that_came_twice_has_its_values_joined():
    head = read_head(b"GET /a/b%2Fc HTTP/1.1\r\nAccept-Encoding: gzip\r\nACCEPT-ENCODING: deflate\r\n\r\n")
    assert isinstance(head, Head)
    assert head.headers == {b"accept-encoding": b"gzip, deflate"}
    assert head.path == ("a", "b", "c")
    assert (head.length, head.keeps_alive) == (0, True)


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
