"""The adapter, against the real model server and against servers that misbehave."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from keynet_server._engine import KServeEngine
from keynet_server._errors import EngineRefused, EngineUnavailable
from keynet_server._materialize import ServingRepository


@pytest.fixture
def engine(serving):
    return KServeEngine(url=serving.url)


@pytest.fixture
def place(serving, publishing):
    """Put a package where the real model server finds it."""
    repository = ServingRepository(serving.root)
    repository.prepare()

    def place(name, number, factor, version="1"):
        package = publishing.package(name, factor)

        def fetch(into):
            for path in package.directory.iterdir():
                path.rename(into / path.name)
            return type(package)(directory=into, manifest=package.manifest)

        repository.build(name, number, version, fetch)
        repository.link(name, number)
        return repository

    return place


def test_load_ask_replace_and_unload(engine, place):
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


def test_going_back_to_older_files_is_loaded(engine, place):
    place("back", 1, 2.0)
    engine.load("back")
    repository = place("back", 2, 5.0)
    engine.load("back")
    repository.link("back", 1)
    engine.load("back")
    answer = engine.infer("back", "1", {"input_0": np.ones((1, 3), np.float32)})
    assert answer["output_0"][0, 0] == 2.0


def test_a_refusal_carries_the_engines_own_words(engine, serving, place):
    with pytest.raises(EngineRefused, match="nosuchmodel"):
        engine.load("nosuchmodel")
    place("broken", 1, 2.0)
    (serving.root / "deployments" / "broken" / "1" / "1" / "model.onnx").write_bytes(b"no onnx")
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
