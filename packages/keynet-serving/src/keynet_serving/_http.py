"""KServe v2 and Triton's extensions over HTTP: routes to calls on `ModelServer`."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from keynet_serving._about import EXTENSIONS, SERVER_NAME, version
from keynet_serving._control import override_of
from keynet_serving._errors import ServingError, Unsupported
from keynet_serving._http_encoding import choose_encoding, compress, decompress
from keynet_serving._http_origin import OriginGuard
from keynet_serving._http_request import parse_infer, parse_json
from keynet_serving._http_response import Reply, to_error_reply, to_infer_reply, to_json_reply
from keynet_serving._metrics import to_prometheus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from concurrent.futures import Executor

    import numpy.typing as npt

    from keynet_serving._http_head import Head
    from keynet_serving._model import Call
    from keynet_serving._server import ModelServer

    Answer = Reply | Coroutine[Any, Any, Reply]

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

_NOT_FOUND = to_json_reply({"error": "Not Found"}, status=404)
_BAD_METHOD = to_json_reply({"error": "Method Not Allowed"}, status=405)
_NOT_READY = to_json_reply({"error": "Model version not ready"}, status=400)
_PLAIN = (b"content-type", b"text/plain; charset=utf-8")
_INFER = ("infer",)
_SLOW_BYTES = 64 << 10
_SLOW_COMPRESSED_BYTES = 4 << 10
_ABSENT = ("systemsharedmemory", "cudasharedmemory", "trace", "logging")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What one request may cost."""

    max_body_bytes: int = 512 << 20
    """Of the body, and again of what it decompresses to."""
    head_timeout_s: float = 10.0
    """How long a client may take to send the head of a request it has begun."""
    body_timeout_s: float = 60.0
    """How long a client may take to send its body, or to take any part of its answer."""
    idle_timeout_s: float = 300.0
    """How long a connection is kept without a request."""


class HttpApp:
    """
    Routes to calls.

    Args:
        server: What it serves.
        inference: Where runs go that are too long for the event loop.
        control: Where models are loaded.
        limits: What one request may cost.
        is_local: Whether only this machine's own programs are to be answered.
    """

    def __init__(
        self,
        server: ModelServer,
        *,
        inference: Executor,
        control: Executor,
        limits: HttpLimits,
        is_local: bool = True,
    ) -> None:
        self._server = server
        self._inference = inference
        self._control = control
        self._clients: set[object] = set()
        self._guard = OriginGuard(is_local=is_local)
        self.limits = limits

    def answer(self, client: object, head: Head, body: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
        """
        Answer one request: at once where the event loop can wait for it, else with what will bring the answer.

        Args:
            client: The connection it came on, until `forget`; requests of one client alone are not held to be merged.
            head: The request.
            body: Its body, which nobody else will write to.
        """
        if refusal := self._guard.refuse(head):
            return refusal
        try:
            if head.path[-1:] == _INFER:
                self._clients.add(client)
            answer = self._answer(head, body)
        except Exception as error:  # noqa: BLE001 -- the boundary of a request: what nobody foresaw is an answer too
            return _to_failure(error)
        return answer if isinstance(answer, Reply) else _await(answer)

    def forget(self, client: object) -> None:
        """Note that a connection has ended."""
        self._clients.discard(client)

    def _answer(self, head: Head, body: memoryview) -> Answer:
        encoding = head.headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
        if encoding == "identity" or not len(body):
            return self._route(head, body)
        if len(body) <= _SLOW_COMPRESSED_BYTES:
            return self._route(head, decompress(body, encoding, self.limits.max_body_bytes))
        return self._answer_decompressed(head, body, encoding)

    async def _answer_decompressed(self, head: Head, body: memoryview, encoding: str) -> Reply:
        loop = asyncio.get_running_loop()
        plain = await loop.run_in_executor(self._inference, decompress, body, encoding, self.limits.max_body_bytes)
        answer = self._route(head, plain)
        return answer if isinstance(answer, Reply) else await answer

    def _route(self, head: Head, body: memoryview) -> Answer:
        method, path = head.method, head.path
        match path:
            case ("v2", "models", model, "infer"):
                return self._infer(model, "", head, body) if method == "POST" else _BAD_METHOD
            case ("v2", "models", model, "versions", number, "infer") if number.isdigit():
                return self._infer(model, number, head, body) if method == "POST" else _BAD_METHOD
            case ("v2", "repository", *rest):
                return self._repository(rest, body) if method == "POST" else _BAD_METHOD
            case ("v2", absent, *_) if absent in _ABSENT:
                raise Unsupported(f"this server has no {absent} extension")
            case _:
                reply = self._look(path)
                return reply if method == "GET" or reply is _NOT_FOUND else _BAD_METHOD

    # Asking

    def _infer(self, model: str, number: str, head: Head, body: memoryview) -> Answer:
        header_length = head.headers.get(b"inference-header-content-length")
        request = parse_infer(
            model, number, header_length.decode("latin-1") if header_length is not None else None, body
        )
        call = self._server.start(request)
        accepted = head.headers.get(b"accept-encoding")
        if not call.is_inline(is_only_client=len(self._clients) == 1):
            return self._infer_slowly(call, accepted)
        reply = to_infer_reply(request, call.answer(call.run_alone()))
        return reply if accepted is None else self._compress(reply, accepted)

    async def _infer_slowly(self, call: Call, accepted: bytes | None) -> Reply:
        outputs = await self._run_slowly(call)
        reply = to_infer_reply(call.request, call.answer(outputs))
        answer = reply if accepted is None else self._compress(reply, accepted)
        return answer if isinstance(answer, Reply) else await answer

    async def _run_slowly(self, call: Call) -> list[npt.NDArray[Any]]:
        """Run where the event loop does not wait, or, merged with others that came with it, on the loop itself."""
        with call:
            batcher = call.batcher
            if batcher is None:
                return await asyncio.get_running_loop().run_in_executor(self._inference, call.run)
            is_deferred = call.is_quick and not batcher.has_delay
            future = call.submit(batcher, is_deferred=is_deferred)
            if is_deferred:
                await asyncio.sleep(0)
                if not future.done():
                    batcher.drain()
            return future.result() if future.done() else await asyncio.wrap_future(future)

    def _compress(self, reply: Reply, accepted: bytes) -> Answer:
        encoding = choose_encoding(accepted.decode("latin-1"))
        if encoding is None:
            return reply
        if len(reply.body) <= _SLOW_BYTES:
            return _to_compressed(reply, encoding)
        loop = asyncio.get_running_loop()
        return _wait(loop.run_in_executor(self._inference, _to_compressed, reply, encoding))

    # Looking

    def _look(self, path: tuple[str, ...]) -> Reply:  # noqa: PLR0911 -- a table of addresses, one return each
        match path:
            case ("v2",):
                return to_json_reply({"name": SERVER_NAME, "version": version(), "extensions": EXTENSIONS})
            case ("v2", "health", "live"):
                return Reply(status=200 if self._server.is_live() else 400)
            case ("v2", "health", "ready"):
                return Reply(status=200 if self._server.is_ready() else 400)
            case ("v2", "models", "stats"):
                return to_json_reply({"model_stats": self._server.statistics()})
            case ("v2", "models", model, "versions", number, *rest) if number.isdigit():
                return self._look_at_model(model, number, rest)
            case ("v2", "models", model, *rest):
                return self._look_at_model(model, "", rest)
            case ("metrics",):
                return Reply(body=to_prometheus(self._server.served()).encode(), headers=(_PLAIN,))
            case _:
                return _NOT_FOUND

    def _look_at_model(self, model: str, number: str, rest: list[str]) -> Reply:
        match rest:
            case []:
                return to_json_reply(self._server.metadata(model, number))
            case ["ready"]:
                return Reply() if self._server.is_model_ready(model, number) else _NOT_READY
            case ["config"]:
                return to_json_reply(self._server.config(model, number))
            case ["stats"]:
                return to_json_reply({"model_stats": self._server.statistics(model, number)})
            case _:
                return _NOT_FOUND

    # Control

    async def _repository(self, rest: list[str], body: memoryview) -> Reply:
        told = parse_json(body) if len(body) else {}
        told = told if isinstance(told, dict) else {}
        match rest:
            case ["index"]:
                only_ready = told.get("ready") is True
                lines = await self._in_control(lambda: self._server.index(only_ready=only_ready))
                return to_json_reply([line.to_dict() for line in lines])
            case ["models", model, "load"]:
                self._server.check_control()
                override = override_of(told.get("parameters") or {})
                await self._in_control(lambda: self._server.load(model, override=override))
                return Reply()
            case ["models", model, "unload"]:
                self._server.check_control()
                await self._in_control(lambda: self._server.unload(model))
                return Reply()
            case [_, "index"] | [_, "models", _, "load" | "unload"]:
                raise Unsupported("'repository_name' specification is not supported")
            case _:
                return _NOT_FOUND

    async def _in_control(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._control, work)


async def _await(answer: Coroutine[Any, Any, Reply]) -> Reply:
    try:
        return await answer
    except Exception as error:  # noqa: BLE001 -- the boundary of a request: what nobody foresaw is an answer too
        return _to_failure(error)


async def _wait(answer: Awaitable[Reply]) -> Reply:
    return await answer


def _to_failure(error: Exception) -> Reply:
    if isinstance(error, ServingError):
        return to_error_reply(error)
    _LOG.error("a request failed in the server itself", exc_info=error)
    return to_json_reply({"error": "Internal Server Error"}, status=500)


def _to_compressed(reply: Reply, encoding: str) -> Reply:
    body = compress(reply.body, encoding)
    return Reply(body=body, headers=(*reply.headers, (b"content-encoding", encoding.encode())))
