"""Where shared memory was asked for and cannot be used: the answer comes all the same, and the caller is told why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from keynet_inference import Retry, SharedMemoryUnused, TritonPlugin, TritonTimeout, TritonUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGE = np.zeros(100_000, np.float32)


def regions(pid: int | None = None) -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(f"keynet-shm-{pid or os.getpid()}-*")}


@dataclass
class Mapping:
    """A model server that says it can map shared memory, and what it was asked."""

    url: str = ""
    version: str = "2.51.0"
    can_map: bool = True
    answers: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def mapping() -> Iterator[Mapping]:
    told = Mapping()
    told.answers.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            rows = [{"name": "x", "datatype": "FP32", "shape": [-1]}]
            about = {"version": told.version, "extensions": ["system_shared_memory"], "inputs": rows, "outputs": rows}
            self.tell([] if self.path.endswith("/status") else about)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            verb = self.path.rpartition("/")[2]
            told.asked.append(verb)
            if verb == "infer":
                told.answers.wait(30)
                self.tell({"outputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]})
            elif told.can_map:
                self.tell({})
            else:
                self.tell({"error": "Unable to open shared memory region: '/x'"}, 500)

        def tell(self, value: object, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that went away while it was answered
    told.url = f"http://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield told
    told.answers.set()
    server.shutdown()
    server.server_close()
    thread.join(30)
    assert regions() == set()


@pytest.mark.parametrize("scheme", ["http", "grpc", "file"])
def test_keynet_s_own_server_does_not_share_and_the_caller_is_told_once(scheme: str, server: Any) -> None:
    given = np.arange(100_000, dtype=np.float32)
    with TritonPlugin(server.url(scheme), "vectors", shared_memory=True) as plugin:
        assert plugin.shared_memory_refusal is None
        with pytest.warns(SharedMemoryUnused, match="shared memory is not used") as told:
            outputs = [plugin.predict({"input_0": given})["output_0"] for _ in range(2)]

        np.testing.assert_array_equal(outputs, [given, given])
        assert len(told) == 1
        assert str(plugin.shared_memory_refusal) in str(told[0].message)


def test_a_server_that_cannot_map_the_region_is_sent_the_input(mapping: Mapping) -> None:
    """It runs as another user, or in another container."""
    mapping.can_map = False

    with TritonPlugin(mapping.url, "m", shared_memory=True) as plugin:
        with pytest.warns(SharedMemoryUnused, match="Unable to open shared memory region"):
            assert plugin.predict({"x": LARGE})["x"].tolist() == [1]
        assert plugin.predict({"x": LARGE})["x"].tolist() == [1]
        assert regions() == set()
    assert mapping.asked == ["register", "infer", "infer"]


@pytest.mark.parametrize(
    ("version", "asked"),
    [
        ("2.51.0", ["register", "infer", "infer", "unregister"]),
        # It would crash if it let go of what it is reading.
        ("2.49.0", ["register", "infer", "infer"]),
        ("unknown", ["register", "infer", "infer"]),
    ],
)
def test_a_server_that_does_not_protect_what_it_reads_is_not_asked_to_let_go(
    mapping: Mapping, version: str, asked: list[str]
) -> None:
    mapping.version = version
    with TritonPlugin(mapping.url, "m", timeout_s=2, shared_memory=True) as plugin:
        plugin.predict({"x": LARGE})
        mapping.answers.clear()
        with pytest.raises(TritonTimeout):
            plugin.predict({"x": LARGE})

    assert mapping.asked == asked
    assert regions() == set()


def test_where_no_room_is_left_the_input_is_sent(mapping: Mapping) -> None:
    code = """
import resource, sys, numpy as np
from keynet_inference import TritonPlugin
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
plugin = TritonPlugin(sys.argv[1], "m", shared_memory=True)
print(plugin.predict({"x": np.zeros(100_000, np.float32)})["x"].tolist(), plugin.shared_memory_refusal)
"""
    child = subprocess.Popen([sys.executable, "-c", code, mapping.url], stdout=-1, stderr=-1, text=True)
    out, told = child.communicate(timeout=60)

    assert out == "[1.0] none can be had here: File too large\n", told
    assert "SharedMemoryUnused" in told
    assert regions(child.pid) == set()


@pytest.mark.parametrize("url", ["http://192.0.2.1:8000", "http://nowhere.invalid:8000"])
def test_a_server_elsewhere_is_not_shared_with(url: str) -> None:
    plugin = TritonPlugin(url, "m", timeout_s=0.2, retry=Retry(attempts=1), shared_memory=True)

    with pytest.warns(SharedMemoryUnused, match="is no server at a loopback address"):
        refuse(lambda: plugin.predict({"x": LARGE}))


def refuse(ask: Callable[[], object]) -> None:
    with pytest.raises(TritonUnavailable):
        ask()


def test_without_being_asked_for_nothing_is_shared(mapping: Mapping) -> None:
    with TritonPlugin(mapping.url, "m") as plugin:
        plugin.predict({"x": LARGE})
        assert plugin.shared_memory_refusal is None

    assert mapping.asked == ["infer"]
