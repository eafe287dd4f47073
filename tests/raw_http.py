"""A client of the model server that sends bytes as they are, and reads the answers one after the other."""

from __future__ import annotations

import contextlib
import json
import socket

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
GONE = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).encode()
ASK = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\n"
INFER = ASK + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


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
