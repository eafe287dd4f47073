"""How many connections a plugin opens, and which it uses again."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from keynet_inference import Retry, TritonPlugin

if TYPE_CHECKING:
    from collections.abc import Iterator

ROW = {"name": "x", "datatype": "FP32", "shape": [-1]}


@dataclass
class Counting:
    """A model server that counts connections, and answers inference only when so many wait for it."""

    url: str = ""
    together: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    connections: list[socket.socket] = field(default_factory=list)
    ended: int = 0


@pytest.fixture
def counting() -> Iterator[Counting]:
    told = Counting()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            told.connections.append(self.connection)

        def finish(self) -> None:
            super().finish()
            told.ended += 1

        def do_GET(self) -> None:
            self.tell({"inputs": [ROW], "outputs": [ROW]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            told.together.wait(30)
            self.tell({"outputs": [ROW | {"shape": [1], "data": [2]}]})

        def tell(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield told
    server.shutdown()
    server.server_close()
    thread.join(30)


def ask(plugin: TritonPlugin) -> list[float]:
    return list(plugin.predict({"x": [1, 2]})["x"])


def test_one_connection_serves_one_request_after_another(counting: Counting) -> None:
    with TritonPlugin(counting.url, "m") as plugin:
        assert [ask(plugin) for _ in range(5)] == [[2]] * 5

    assert len(counting.connections) == 1


def test_each_thread_has_a_connection_and_they_are_used_again(counting: Counting) -> None:
    """As many as there are requests at a time, and not one more, however many there are in all."""
    threads, turns = 6, 5
    with TritonPlugin(counting.url, "m", timeout_s=60) as plugin, ThreadPoolExecutor(threads) as pool:
        ask(plugin)
        counting.together = threading.Barrier(threads)  # nobody is answered before all have asked
        answers = list(pool.map(lambda _: [ask(plugin) for _ in range(turns)], range(threads)))

    assert answers == [[[2]] * turns] * threads
    assert len(counting.connections) == threads


def test_a_connection_the_server_gave_up_is_not_used_again(counting: Counting) -> None:
    with TritonPlugin(counting.url, "m", retry=Retry(attempts=1), timeout_s=30) as plugin:
        ask(plugin)
        counting.connections[0].shutdown(socket.SHUT_RDWR)
        assert ask(plugin) == [2]

    assert len(counting.connections) == 2


def test_a_plugin_that_is_closed_gives_its_connections_back(counting: Counting) -> None:
    plugin = TritonPlugin(counting.url, "m")
    ask(plugin)
    plugin.close()

    deadline = time.monotonic() + 30
    while not counting.ended:
        assert time.monotonic() < deadline, "it was not closed"
        time.sleep(0.01)
