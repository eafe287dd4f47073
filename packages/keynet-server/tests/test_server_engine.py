"""The adapter, against both engines and against servers that misbehave."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from keynet_server._engine import KServeEngine
from keynet_server._errors import EngineRefused, EngineUnavailable
from keynet_server._repository import Earlier, Placement


@pytest.fixture
def engine(stage):
    return KServeEngine(url=stage.url)


@pytest.fixture
def place(stage, publishing):
    """Put a package where the engine finds it, as a deployment of this number."""
    repository = stage.repository()

    class Shelf:
        store = publishing.store

        def fetch(self, _placement, into):
            shutil.copytree(package.directory, into, dirs_exist_ok=True)
            return replace(package, directory=into)

        def earlier(self, _placement, _package):
            return Earlier()

    def place(name, number, factor, version="1"):
        nonlocal package
        package = publishing.package(name, factor)
        placement = Placement(model=name, number=number, version=version, digest=package.digest)
        repository.link(repository.build(placement, Shelf()))
        return repository

    package = None
    return place


@pytest.mark.parametrize("stage", ["model server", "Triton"], indirect=True)
class TestBothEngines:
    def test_load_ask_replace_and_unload(self, engine, place):
        place("adapter", 1, 2.0, "7")
        engine.load("adapter")
        assert engine.is_live()
        assert engine.is_ready("adapter", "7")
        assert not engine.is_ready("adapter", "8")
        sample = np.ones((2, 3), np.float32)
        assert engine.infer("adapter", "7", {"input_0": sample})["output_0"].tolist() == [[2.0] * 3] * 2
        place("adapter", 2, 5.0, "8")
        engine.load("adapter")
        assert engine.is_ready("adapter", "8")
        assert not engine.is_ready("adapter", "7")
        assert engine.infer("adapter", "8", {"input_0": sample})["output_0"][0, 0] == 5.0
        assert ("adapter", "8", "READY") in {(row.name, row.version, row.state) for row in engine.index()}
        engine.unload("adapter")
        assert not engine.is_ready("adapter", "8")

    def test_going_back_to_older_files_is_loaded(self, engine, place):
        place("back", 1, 2.0)
        engine.load("back")
        place("back", 2, 5.0)
        engine.load("back")
        place("back", 1, 2.0)
        engine.load("back")
        answer = engine.infer("back", "1", {"input_0": np.ones((1, 3), np.float32)})
        assert answer["output_0"][0, 0] == 2.0
        engine.unload("back")

    def test_a_configuration_that_is_told_is_loaded_whatever_the_times_say(self, engine, place):
        place("told", 1, 2.0)
        engine.load("told")
        config = {"name": "told", "backend": "onnxruntime", "max_batch_size": 3, "instance_group": [{"count": 1}]}
        for kind in ("input", "output"):
            config[kind] = [{"name": f"{kind}_0", "data_type": "TYPE_FP32", "dims": [3]}]
        engine.load("told", json.dumps(config))
        engine.infer("told", "1", {"input_0": np.ones((3, 3), np.float32)})
        with pytest.raises(EngineRefused, match="batch-size must be <= 3"):
            engine.infer("told", "1", {"input_0": np.ones((4, 3), np.float32)})
        with pytest.raises(EngineRefused, match="refused to load told"):
            engine.load("told", "{")
        engine.unload("told")

    def test_a_refusal_carries_the_engines_own_words(self, engine, place):
        with pytest.raises(EngineRefused, match="nosuchmodel"):
            engine.load("nosuchmodel")
        repository = place("broken", 1, 2.0)
        (repository.deployments / "broken" / "1" / "1" / "model.onnx").write_bytes(b"no onnx")
        with pytest.raises(EngineRefused, match="refused to load broken"):
            engine.load("broken")
        with pytest.raises(EngineRefused, match="does not answer for"):
            engine.infer("nosuchmodel", "1", {"x": np.zeros(1, np.float32)})


def test_a_closed_port_is_unavailable():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for ask in (KServeEngine(url=url).is_live, KServeEngine(url=url).index, lambda: KServeEngine(url=url).load("m")):
        with pytest.raises(EngineUnavailable, match="does not answer"):
            ask()


@contextmanager
def answering(reply):
    """Listen, read one request per connection, send `reply` and close; None sends nothing and stays."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def serve():
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    if reply is None:
                        stop.wait(60)
                    else:
                        connection.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield KServeEngine(url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.3, load_timeout_s=0.3)
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)


def http(status, body, headers=b""):
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n".encode()
    return head + headers + b"\r\n" + body


def test_an_engine_that_never_answers_is_unavailable_in_time():
    with answering(None) as engine, pytest.raises(EngineUnavailable, match="timed out"):
        engine.load("m")


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-OpenSSH\r\n", http(502, b"bad gateway"), http(504, b"")])
def test_what_a_dead_engine_or_a_proxy_sends_is_unavailable(reply):
    with answering(reply) as engine, pytest.raises(EngineUnavailable):
        engine.index()


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[1]", b"null"])
def test_an_index_that_is_none_is_refused(body):
    with answering(http(200, body)) as engine, pytest.raises(EngineRefused):
        engine.index()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"error":"out of memory"}', "out of memory"),
        (b"plain words", "plain words"),
        (b"", "status 500"),
        (b"[]", r"\[\]"),
    ],
)
def test_every_form_of_a_refusal_is_told(body, told):
    with answering(http(500, body)) as engine:
        with pytest.raises(EngineRefused, match=told):
            engine.load("m")
        with pytest.raises(EngineRefused, match=told):
            engine.index()


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"outputs":[{}]}',
        b'{"outputs":[{"name":"o","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}]}',
        b'{"outputs":[{"name":"o","datatype":"WHAT","shape":[1],"parameters":{"binary_data_size":0}}]}',
        b"text",
    ],
)
def test_an_answer_that_is_cut_off_or_strange_is_refused(body):
    with answering(http(200, body)) as engine, pytest.raises(EngineRefused):
        engine.infer("m", "1", {"x": np.zeros(1, np.float32)})
