"""What only gRPC can do wrong, from a server in this process that says what it is told to."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from keynet_inference import InferenceFailed, Retry, TritonPlugin, TritonUnavailable, TritonUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Output = service_pb2.ModelInferResponse.InferOutputTensor


class Scripted(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers metadata, and infer with what stands in `answers`: a response, or a status to fail with."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.asked = 0

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service names it so
        row = service_pb2.ModelMetadataResponse.TensorMetadata(name="x", datatype="FP32", shape=[-1])
        return service_pb2.ModelMetadataResponse(name=request.name, inputs=[row], outputs=[row])

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service names it so
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "told so")
        return answer


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
def plugin(scripted: Scripted) -> Iterator[TritonPlugin]:
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(scripted, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    retry = Retry(attempts=3, first_delay_s=0.01, max_delay_s=0.02)
    with TritonPlugin(f"grpc://127.0.0.1:{port}", "m", timeout_s=10, retry=retry) as plugin:
        yield plugin
    server.stop(None).wait(10)


def answer(shape: list[int], *datas: bytes, datatype: str = "FP32") -> Any:
    outputs = [Output(name="y", datatype=datatype, shape=shape)]
    return service_pb2.ModelInferResponse(outputs=outputs, raw_output_contents=datas)


@pytest.mark.parametrize(
    "broken",
    [answer([2], b"1234"), answer([1]), answer([1], b"1234", b"5678"), answer([1], b"1234", datatype="FP9")],
    ids=["too short", "without data", "too many", "unknown type"],
)
def test_an_answer_that_cannot_be_read_is_a_failure(plugin: TritonPlugin, scripted: Scripted, broken: Any) -> None:
    scripted.answers = [broken]

    with pytest.raises(InferenceFailed, match="outputs that cannot be read"):
        plugin.predict({"x": [1]})


def test_a_server_that_says_it_cannot_now_is_not_asked_again(plugin: TritonPlugin, scripted: Scripted) -> None:
    scripted.answers = [grpc.StatusCode.UNAVAILABLE, answer([1], b"\0\0\x80?")]

    with pytest.raises(TritonUnavailable, match="told so") as caught:
        plugin.predict({"x": [1]})
    assert type(caught.value) is TritonUnavailable
    assert scripted.asked == 1


class Closing:
    """Accepts connections and closes each: at once, or after it said that it speaks HTTP/2 and got a request."""

    def __init__(self, *, hello: bool) -> None:
        self.hello = hello
        self.accepted = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"grpc://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            with connection:
                if self.hello:
                    connection.settimeout(10)
                    connection.sendall(b"\0\0\0\4\0\0\0\0\0")  # an empty SETTINGS frame
                    got = b""
                    while b"ModelMetadata" not in got:
                        got += connection.recv(65536)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)


@pytest.fixture
def closing() -> Iterator[Callable[..., Closing]]:
    started: list[Closing] = []

    def start(*, hello: bool) -> Closing:
        started.append(Closing(hello=hello))
        return started[-1]

    yield start
    for each in started:
        each.close()


def ask_without_an_answer(url: str) -> TritonUnavailable:
    retry = Retry(attempts=3, first_delay_s=0.3, max_delay_s=0.3)  # longer than gRPC waits before it connects again
    with TritonPlugin(url, "m", timeout_s=20, retry=retry) as asking, pytest.raises(TritonUnavailable) as caught:
        asking.predict({"x": [1]})
    return caught.value


def test_a_connection_that_does_not_come_about_is_tried_again(closing: Callable[..., Closing]) -> None:
    server = closing(hello=False)

    assert isinstance(ask_without_an_answer(server.url), TritonUnreachable)
    assert server.accepted >= 3


def test_a_connection_that_breaks_after_the_request_is_not_tried_again(closing: Callable[..., Closing]) -> None:
    """gRPC says the same whether an answer had begun or not."""
    server = closing(hello=True)

    assert type(ask_without_an_answer(server.url)) is TritonUnavailable
    assert server.accepted == 1


def test_a_server_that_starts_between_two_tries_answers(scripted: Scripted) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(scripted, server)
    scripted.answers = [answer([1], b"\0\0\x80?")]
    retry = Retry(attempts=100, first_delay_s=0.1, max_delay_s=0.1)
    url = f"grpc://127.0.0.1:{port}"
    with TritonPlugin(url, "m", timeout_s=20, retry=retry) as asking, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(asking.predict, {"x": [1]})
        server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        assert asked.result(30)["y"].tolist() == [1]
    server.stop(None).wait(10)


@pytest.mark.parametrize("status", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAUTHENTICATED])
def test_an_answer_is_never_asked_for_again(plugin: TritonPlugin, scripted: Scripted, status: Any) -> None:
    scripted.answers = [status, answer([1], b"\0\0\x80?")]

    with pytest.raises(InferenceFailed, match=rf"told so \({status.name}\)"):
        plugin.predict({"x": [1]})
    assert scripted.asked == 1


def test_an_index_that_is_not_offered_does_not_hide_what_is_missing(plugin: TritonPlugin, scripted: Scripted) -> None:
    scripted.answers = [grpc.StatusCode.NOT_FOUND] * 2

    with TritonPlugin(plugin.url) as unnamed, pytest.raises(Exception, match=r"ready there: not told .*UNIMPLEMENTED"):
        unnamed.predict({"x": [1]})


def test_a_secure_address_does_not_speak_in_the_clear(plugin: TritonPlugin) -> None:
    url = plugin.url.replace("grpc://", "grpcs://")

    with TritonPlugin(url, "m", retry=Retry(attempts=1)) as secure, pytest.raises(TritonUnavailable):
        secure.predict({"x": [1]})
