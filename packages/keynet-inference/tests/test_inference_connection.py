"""What happens when a model server is away, slow, confused or replaced, over real sockets."""

from __future__ import annotations

import json
import multiprocessing
import socket
import ssl
import subprocess
import threading
import time
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import onnx
import pytest

from keynet_inference import (
    InferenceFailed,
    InputRefused,
    ModelNotServed,
    Retry,
    TritonPlugin,
    TritonTimeout,
    TritonUnavailable,
    TritonUnreachable,
)
from keynet_inference._client import Deadline
from keynet_inference._sockets import ConnectionPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


ONCE = Retry(attempts=1)
QUICK = Retry(attempts=3, first_delay_s=0.01, max_delay_s=0.02)

METADATA = {
    "name": "m",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
}
ANSWER = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}


def http(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Told", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def told(value: object, status: int = 200) -> bytes:
    return http(status, json.dumps(value).encode())


class Scripted:
    """A server that answers the requests it gets, in order, with the bytes it was given; None hangs up instead."""

    def __init__(self, answers: list[bytes | None], *, drip_s: float = 0) -> None:
        self.answers = answers
        self.drip_s = drip_s
        self.connections = 0
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while self.answers:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        while self.answers:
            request = read_request(connection)
            if not request:
                return
            self.requests.append(request)
            answer = self.answers.pop(0)
            if answer is None:
                return
            try:
                for at in range(0, len(answer), 1 if self.drip_s else len(answer)):
                    connection.sendall(answer[at : at + 1] if self.drip_s else answer)
                    time.sleep(self.drip_s)
            except OSError:
                return
            if b"Connection: close" in answer:
                return


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    servers: list[Scripted] = []

    def start(*answers: bytes | None, drip_s: float = 0) -> Scripted:
        servers.append(Scripted(list(answers), drip_s=drip_s))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ask(url: str, **options: Any) -> dict[str, np.ndarray]:
    with TritonPlugin(url, "m", **({"retry": QUICK, "timeout_s": 10} | options)) as plugin:
        return plugin.predict({"x": np.zeros(2, np.float32)})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_is_away_is_unavailable_and_the_hint_starts_one(scheme: str) -> None:
    with pytest.raises(TritonUnreachable) as caught:
        ask(f"{scheme}://127.0.0.1:{free_port()}", retry=ONCE)

    assert "keynet up" in str(caught.value.hint)


def test_a_name_that_leads_nowhere_is_unavailable() -> None:
    with pytest.raises(TritonUnavailable, match=r"nowhere.invalid"):
        ask("http://nowhere.invalid:8000", retry=ONCE)


def test_a_connection_that_breaks_before_the_answer_is_tried_again(scripted: Callable[..., Scripted]) -> None:
    server = scripted(told(METADATA), None, None, told(ANSWER))

    assert ask(server.url)["y"].tolist() == [1, 2]
    assert server.connections == 3


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"], ids=["with its length", "in chunks"]
)
def test_an_answer_that_breaks_off_is_not_asked_for_again(scripted: Callable[..., Scripted], framing: bytes) -> None:
    cut = b"HTTP/1.1 200 OK\r\n" + framing + b"\r\nConnection: close\r\n\r\n64\r\n{"
    server = scripted(told(METADATA), cut, told(ANSWER))

    with pytest.raises(TritonUnavailable, match="broke off") as caught:
        ask(server.url)
    assert type(caught.value) is TritonUnavailable
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_server_that_says_it_cannot_now_is_not_asked_again(scripted: Callable[..., Scripted], status: int) -> None:
    server = scripted(told(METADATA), told({"error": "busy"}, status), told(ANSWER))

    with pytest.raises(TritonUnavailable, match=rf"busy \(HTTP {status}\)") as caught:
        ask(server.url)
    assert type(caught.value) is TritonUnavailable
    assert len(server.requests) == 2


def test_retries_end(scripted: Callable[..., Scripted]) -> None:
    server = scripted(None, None, None, told(METADATA))

    with pytest.raises(TritonUnavailable, match="was lost"):
        ask(server.url)
    assert len(server.requests) == 3


def test_retries_can_be_switched_off(scripted: Callable[..., Scripted]) -> None:
    server = scripted(None, told(METADATA))

    with pytest.raises(TritonUnavailable):
        ask(server.url, retry=ONCE)
    assert len(server.requests) == 1


def test_no_retry_waits_past_the_time_out(scripted: Callable[..., Scripted]) -> None:
    server = scripted(None, told(METADATA))

    with pytest.raises(TritonUnavailable):
        ask(server.url, retry=Retry(first_delay_s=60, max_delay_s=60), timeout_s=1)


@pytest.mark.parametrize("status", [400, 404, 500])
def test_an_answer_is_never_asked_for_again(scripted: Callable[..., Scripted], status: int) -> None:
    server = scripted(told(METADATA), told({"error": "no"}, status), told(METADATA), told(ANSWER))

    with pytest.raises((InputRefused, ModelNotServed, InferenceFailed), match="no"):
        ask(server.url)
    assert [b"/infer" in request.split(b"\r\n")[0] for request in server.requests] == [False, True]


def test_a_server_that_does_not_answer_times_out_and_is_not_asked_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(TritonTimeout, match=r"within 0\.3 s") as caught:
            ask(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3)

    assert isinstance(caught.value, TimeoutError)
    assert time.monotonic() - started < 5


def test_grpc_that_does_not_answer_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TritonTimeout):
        ask(f"grpc://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3)


def test_a_server_that_drips_does_not_outlast_the_time_out(scripted: Callable[..., Scripted]) -> None:
    server = scripted(told(METADATA), drip_s=0.05)

    started = time.monotonic()
    with pytest.raises(TritonTimeout):
        ask(server.url, timeout_s=0.5)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        http(200, b"not json"),
        http(200, b"\xff\xfe"),
        told([]),
        told({"outputs": [{"name": "y", "datatype": "FP9", "shape": [1], "data": [1]}]}),
        told({"outputs": [{"name": "y", "datatype": "FP32", "shape": [9], "data": [1]}]}),
        told({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}]}),
        told({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}]}),
        told({"unexpected": True}),
        http(200, b"", "Inference-Header-Content-Length: x"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
    ],
)
def test_an_answer_that_cannot_be_read_is_a_failure(scripted: Callable[..., Scripted], answer: bytes) -> None:
    server = scripted(told(METADATA), answer)

    with pytest.raises(InferenceFailed, match=r"127\.0\.0\.1"):
        ask(server.url)


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b"", b'"plain"'])
def test_an_error_that_is_no_json_is_told_as_it_is(scripted: Callable[..., Scripted], body: bytes) -> None:
    server = scripted(http(500, body))

    with pytest.raises(InferenceFailed, match=r"HTTP 500"):
        ask(server.url)


def test_an_answer_in_chunks_is_read(scripted: Callable[..., Scripted]) -> None:
    data = json.dumps(ANSWER).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:10], data[10:])) + b"0\r\n\r\n"
    server = scripted(told(METADATA), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)

    assert ask(server.url)["y"].tolist() == [1, 2]


def test_an_answer_that_ends_with_the_connection_is_read(scripted: Callable[..., Scripted]) -> None:
    body = json.dumps(METADATA).encode()
    server = scripted(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body, told(ANSWER))

    assert ask(server.url)["y"].tolist() == [1, 2]
    assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [http(200, b"123456789"), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n123456789\r\n0\r\n\r\n"],
    ids=["with its length", "in chunks"],
)
def test_an_answer_larger_than_the_cap_is_not_read(scripted: Callable[..., Scripted], answer: bytes) -> None:
    server = scripted(answer, answer)

    for cap, refusal in ((8, pytest.raises(InferenceFailed, match="more than 8 bytes")), (9, nullcontext())):
        pool = ConnectionPool(server.url, 5, max_answer_bytes=cap)
        with refusal:
            assert pool.ask("GET", "/", {}, (), Deadline(10)).body == b"123456789"
        pool.close()


def test_a_server_that_never_accepts_is_a_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as waiting:
        port = listener.getsockname()[1]
        for _ in range(4):
            fill = waiting.enter_context(socket.socket())
            fill.settimeout(0)
            fill.connect_ex(("127.0.0.1", port))

        with pytest.raises(TritonTimeout, match=r"accepted no connection within 0\.2 s"):
            ask(f"http://127.0.0.1:{port}", connect_timeout_s=0.2)


def test_a_request_that_has_no_time_is_a_time_out(server: Any) -> None:
    for scheme in ("http", "grpc"):
        with pytest.raises(TritonTimeout, match="no answer within 1e-09 s"):
            ask(server.url(scheme), timeout_s=1e-9)


def test_a_time_out_after_a_retry_is_the_time_out(scripted: Callable[..., Scripted]) -> None:
    server = scripted(None, told(METADATA), drip_s=0.05)

    with pytest.raises(TritonTimeout):
        ask(server.url, timeout_s=0.5)


def test_https_to_a_server_that_speaks_http_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: answer_plainly(listener), daemon=True)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TritonUnavailable, match=r"(?i)ssl"):
            ask(url, retry=ONCE)
        thread.join(10)


def answer_plainly(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(100)
        connection.sendall(told(METADATA))


def test_a_request_that_is_refused_before_it_is_sent_tells_why() -> None:
    def refuse() -> None:
        connection, _ = listener.accept()
        with connection:
            read_request(connection)
            connection.sendall(told(METADATA))
            connection.recv(100)
            connection.sendall(told({"error": "too large"}, 413))
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(10)
            while connection.recv(1 << 20):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with TritonPlugin(url, "m", retry=ONCE, timeout_s=10) as plugin, pytest.raises(InputRefused, match="too large"):
            plugin.predict({"x": np.zeros(1 << 20, np.float32)})
        thread.join(10)


def test_the_base_of_an_address_and_odd_names_are_kept(scripted: Callable[..., Scripted]) -> None:
    server = scripted(told(METADATA), told(ANSWER))

    with TritonPlugin(f"{server.url}/models/", "a/b ü", 3) as plugin:
        plugin.predict({"x": [1, 2]})

    lines = [request.split(b"\r\n")[0] for request in server.requests]
    assert lines[0] == b"GET /models/v2/models/a%2Fb%20%C3%BC/versions/3 HTTP/1.1"
    assert lines[1] == b"POST /models/v2/models/a%2Fb%20%C3%BC/versions/3/infer HTTP/1.1"


def test_one_connection_serves_one_request_after_another(scripted: Callable[..., Scripted]) -> None:
    server = scripted(told(METADATA), *[told(ANSWER)] * 5)

    with TritonPlugin(server.url, "m") as plugin:
        for _ in range(5):
            plugin.predict({"x": [1, 2]})

    assert server.connections == 1


def test_metadata_is_asked_once(scripted: Callable[..., Scripted]) -> None:
    server = scripted(told(METADATA), *[told(ANSWER)] * 3)

    with TritonPlugin(server.url, "m") as plugin:
        for _ in range(3):
            plugin.predict({"x": [1, 2]})

    assert [request.split(b" ")[0] for request in server.requests] == [b"GET", b"POST", b"POST", b"POST"]


def test_a_connection_the_server_gave_up_is_not_used_again(scripted: Callable[..., Scripted]) -> None:
    server = scripted(told(METADATA), told(ANSWER), told(ANSWER))
    closing = http(200, json.dumps(METADATA).encode())
    server.answers[0] = closing

    with TritonPlugin(server.url, "m", retry=ONCE) as plugin:
        plugin.predict({"x": [1, 2]})
        pool = plugin._asker._client._pool
        pool._idle[0].shutdown(socket.SHUT_RD)
        plugin.predict({"x": [1, 2]})

    assert server.connections == 2


def test_https_refuses_a_certificate_nobody_signed(tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    with TlsServer(tmp_path) as server:
        with pytest.raises(InferenceFailed, match=r"certificate of https://localhost:\d+ is not trusted") as caught:
            ask(server.url)
        assert "SSL_CERT_FILE" in str(caught.value.hint)


def test_https_speaks_with_a_server_it_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    with TlsServer(tmp_path) as server:
        assert ask(server.url)["y"].tolist() == [1, 2]


class TlsServer:
    """Answers one connection after another over TLS."""

    def __init__(self, directory: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
        self._listener = context.wrap_socket(socket.create_server(("localhost", 0)), server_side=True)
        self.url = f"https://localhost:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except ssl.SSLError:
                continue
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                while request := read_request(connection):
                    connection.sendall(told(ANSWER if b"/infer" in request else METADATA))


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_model_replaced_by_one_of_another_type_is_asked_anew(
    scheme: str, start_server: Callable[..., Any], tmp_path: Path, models: Any
) -> None:

    models.linear(tmp_path)
    server = start_server(tmp_path)
    with TritonPlugin(server.url(scheme), "mlp") as plugin:
        plugin.predict({"input_0": np.ones((1, 4), np.float32)})
        models.identity(tmp_path, "mlp", onnx.TensorProto.DOUBLE, ["rows", 4])
        load(server, "mlp")

        assert plugin.predict({"input_0": np.ones((1, 4))})["output_0"].dtype == np.float64
        with pytest.raises(InputRefused, match=r"takes input_0 FP64"):
            plugin.predict({"input_0": np.ones((1, 4), np.float32)})


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_stale_belief_is_corrected_by_the_server_s_refusal(
    scheme: str, start_server: Callable[..., Any], tmp_path: Path, models: Any
) -> None:

    models.linear(tmp_path)
    server = start_server(tmp_path)
    with TritonPlugin(server.url(scheme), "mlp") as plugin:
        plugin.predict({"input_0": [[1, 2, 3, 4]]})
        models.identity(tmp_path, "mlp", onnx.TensorProto.INT64, ["rows", 4])
        load(server, "mlp")

        assert plugin.predict({"input_0": [[1, 2, 3, 4]]})["output_0"].dtype == np.int64


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_model_unloaded_and_loaded_is_found_again(
    scheme: str, start_server: Callable[..., Any], tmp_path: Path, models: Any
) -> None:

    models.linear(tmp_path)
    server = start_server(tmp_path)
    with TritonPlugin(server.url(scheme), "mlp") as plugin:
        plugin.predict({"input_0": [[1, 2, 3, 4]]})
        load(server, "mlp", "unload")
        with pytest.raises(ModelNotServed) as caught:
            plugin.predict({"input_0": [[1, 2, 3, 4]]})
        assert caught.value.hint == "keynet models show mlp; ready there: none"
        load(server, "mlp")
        assert plugin.predict({"input_0": [[1, 2, 3, 4]]})["output_0"].tolist() == [[2, 4, 6, 8]]


def load(server: Any, model: str, verb: str = "load") -> None:
    import urllib.request

    request = urllib.request.Request(f"{server.http}/v2/repository/models/{model}/{verb}", b"{}", method="POST")
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_was_started_again_is_found_again(
    scheme: str, start_server: Callable[..., Any], tmp_path: Path, models: Any
) -> None:

    models.linear(tmp_path)
    first = start_server(tmp_path)
    port = int(first.url(scheme).rpartition(":")[2])
    retry = Retry(attempts=200, first_delay_s=0.05, max_delay_s=0.1)
    with TritonPlugin(first.url(scheme), "mlp", retry=retry) as plugin:
        plugin.predict({"input_0": [[1, 2, 3, 4]]})
        first.process.kill()
        first.process.wait(20)
        start_server(tmp_path, **{f"{scheme}_port": port})

        assert plugin.predict({"input_0": [[1, 2, 3, 4]]})["output_0"].tolist() == [[2, 4, 6, 8]]


def _ask_in_child(plugin: TritonPlugin, answers: Any) -> None:
    answers.put(plugin.predict({"input_0": [[1, 2, 3, 4]]}, "mlp")["output_0"].tolist())


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_forked_process_asks_over_connections_of_its_own(scheme: str, server: Any) -> None:
    forking = multiprocessing.get_context("fork")
    with TritonPlugin(server.url(scheme)) as plugin:
        plugin.predict({"input_0": [[1, 2, 3, 4]]}, "mlp")
        answers = forking.Queue()
        children = [forking.Process(target=_ask_in_child, args=(plugin, answers)) for _ in range(2)]
        for child in children:
            child.start()
        found = [answers.get(timeout=30) for _ in children]
        for child in children:
            child.join(30)

        assert found == [[[2, 4, 6, 8]]] * 2
        assert plugin.predict({"input_0": [[1, 2, 3, 4]]}, "mlp")["output_0"].tolist() == [[2, 4, 6, 8]]


def test_plugins_of_one_process_share_the_models_it_serves(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = TritonPlugin(server.url("file")), TritonPlugin(server.url("file"))
    for plugin in (first, second):
        plugin.predict({"input_0": [[1, 2, 3, 4]]}, "mlp")

    assert first._asker._client._server is second._asker._client._server


def test_a_model_served_in_process_stays_what_it_was_for_this_process_alone(tmp_path: Path, models: Any) -> None:
    models.linear(tmp_path)
    assert ask_in_process(tmp_path) == [[2, 4, 6, 8]]
    models.linear(tmp_path, factor=10.0, version=2)

    assert ask_in_process(tmp_path) == [[2, 4, 6, 8]]
    spawning = multiprocessing.get_context("spawn")
    with spawning.Pool(1) as pool:
        assert pool.apply_async(ask_in_process, (tmp_path,)).get(60) == [[10, 20, 30, 40]]


def ask_in_process(repository: Path) -> Any:
    with TritonPlugin(repository.as_uri(), "mlp") as plugin:
        return plugin.predict({"input_0": [[1, 2, 3, 4]]})["output_0"].tolist()


def test_a_repository_that_is_not_there_serves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotServed, match="cannot serve"):
        TritonPlugin((tmp_path / "none").as_uri(), "mlp").predict({"input_0": [1]})


def test_a_model_that_does_not_load_in_process_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken/1").mkdir(parents=True)
    (tmp_path / "broken/1/model.onnx").write_bytes(b"no model")

    with pytest.raises(ModelNotServed, match="broken"):
        TritonPlugin(tmp_path.as_uri(), "broken").predict({"input_0": [1]})


def test_retry_waits_grow_and_stay_within_their_bounds() -> None:
    retry = Retry(attempts=6, first_delay_s=0.1, max_delay_s=0.5)

    for _ in range(50):
        delays = list(retry.delays())
        assert len(delays) == 5
        for delay, due in zip(delays, [0.1, 0.2, 0.4, 0.5, 0.5], strict=True):
            assert due / 2 <= delay <= due
