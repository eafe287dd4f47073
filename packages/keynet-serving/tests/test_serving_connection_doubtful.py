"""Requests that could be read in two ways, or are none: refused, and nothing behind them is read."""

from __future__ import annotations

import json

import pytest

from raw_http import ASK, LIVE, Answers, ask, connected


@pytest.fixture(scope="module")
def engine(tmp_path_factory, models_in, serving):
    repository = tmp_path_factory.mktemp("models")
    models_in(repository).identity("m")
    with serving(repository, "m") as engine:
        yield engine


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
