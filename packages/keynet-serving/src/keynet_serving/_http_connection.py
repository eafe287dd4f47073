"""
One HTTP connection: the protocol that uvicorn's server gives each socket.

Bytes are read into a page that belongs to the connection; a body of a known length is read straight into its own
buffer. What can be answered at once is answered in the call that brought its last byte, with one write.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from keynet_serving._errors import RequestIncomplete, ServingError
from keynet_serving._http_body import ChunkedBody, SizedBody, too_large
from keynet_serving._http_deadline import Deadline
from keynet_serving._http_head import HEAD_BYTES, read_head
from keynet_serving._http_response import Reply, to_error_reply, to_json_reply, to_wire

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from keynet_serving._http import HttpApp
    from keynet_serving._http_head import Head

_BLANK_LINE = b"\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_DISCARD_BYTES = 16 << 20
_DISCARD_S = 2.0
_LONG_HEAD = to_json_reply({"error": f"the head of the request is longer than {HEAD_BYTES} bytes"}, status=431)


class _Phase(Enum):
    """What a connection waits for."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    ANSWER = auto()
    END = auto()


class HttpConnection(asyncio.BufferedProtocol):
    """
    One connection, from its first byte to its last.

    Args:
        app: What answers.
        connections: Where uvicorn finds what to close when it ends.
        tasks: Where uvicorn finds what to wait for when it ends.
    """

    def __init__(self, app: HttpApp, connections: set[Any], tasks: set[asyncio.Task[None]]) -> None:
        self._app = app
        self._limits = app.limits
        self._connections = connections
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._deadline = Deadline(self._loop, self._on_time_over)
        self._transport: asyncio.Transport
        self._phase = _Phase.IDLE
        self._page = bytearray(HEAD_BYTES)
        self._view = memoryview(self._page)
        self._filled = 0
        self._head_text = b""
        self._head: Head
        self._sized: SizedBody | None = None
        self._chunked: ChunkedBody | None = None
        self._is_last = False
        self._is_short = False
        self._is_paused = False
        self._is_blocked = False
        self._unsent = 0
        self._discarded = 0

    # What asyncio and uvicorn call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request."""
        self._transport = transport  # type: ignore[assignment]  # asyncio's own type is that of every protocol
        self._connections.add(self)
        self._deadline.set(self._limits.idle_timeout_s)

    def connection_lost(self, _: Exception | None) -> None:
        """Forget the connection; an answer that is still being made is made for nobody."""
        self._connections.discard(self)
        self._app.forget(self)
        self._phase = _Phase.END
        self._sized = self._chunked = None
        self._deadline.close()

    def get_buffer(self, _: int) -> memoryview:
        """Return where the next bytes go."""
        if self._sized is not None:
            return self._sized.room()
        return self._view[self._filled :]

    def buffer_updated(self, count: int) -> None:
        """Take the bytes that arrived."""
        if self._sized is not None:
            self._sized.add(count)
            if self._sized.is_complete:
                body, self._sized = self._sized.take(), None
                self._answer(body)
        elif self._phase is _Phase.END:
            self._discard(count)
        else:
            self._filled += count
            self._advance()

    def eof_received(self) -> bool:
        """Keep the way back open while an answer is due: a client may close only its own half."""
        self._is_last = self._is_short = True
        return self._phase is _Phase.ANSWER

    def pause_writing(self) -> None:
        """Begin no further answer before the client has taken what it was sent."""
        self._is_blocked = True
        self._unsent = self._transport.get_write_buffer_size()
        self._deadline.set(self._limits.body_timeout_s)

    def resume_writing(self) -> None:
        """Go on with what arrived meanwhile."""
        self._is_blocked = False
        if self._phase is _Phase.ANSWER:
            self._deadline.clear()
        else:
            limits = self._limits
            self._deadline.set(limits.idle_timeout_s if self._phase is _Phase.IDLE else limits.body_timeout_s)
        self._advance()

    def shutdown(self) -> None:
        """End the connection, after the answer if one is due."""
        self._is_last = self._is_short = True
        if self._phase is not _Phase.ANSWER:
            self._close()

    # A request

    def _advance(self) -> None:
        """Look at what is in the page if it is its turn; leave the rest to the kernel if not."""
        if self._phase is _Phase.END:
            return
        if self._phase is _Phase.ANSWER or self._is_blocked:
            if self._filled and not self._is_paused:
                self._is_paused = True
                self._transport.pause_reading()
            return
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        if self._chunked is not None:
            self._feed(self._chunked)
        elif self._filled:
            self._look_for_head()

    def _look_for_head(self) -> None:
        at = self._page.find(_BLANK_LINE, 0, self._filled)
        if at >= 0:
            self._begin(bytes(self._view[: at + len(_BLANK_LINE)]))
        elif self._filled == HEAD_BYTES:
            self._refuse(_LONG_HEAD)
        elif self._phase is _Phase.IDLE:
            self._phase = _Phase.HEAD
            self._deadline.set(self._limits.head_timeout_s)

    def _begin(self, text: bytes) -> None:
        """Begin a request; a head that is the same as the last one is not read again."""
        if text != self._head_text:
            head = read_head(text)
            if isinstance(head, Reply):
                self._refuse(head)
                return
            self._head, self._head_text = head, text
        head = self._head
        limit = self._limits.max_body_bytes
        if head.length is None:
            self._chunked = ChunkedBody(text, limit)
            self._drop(len(text))
            self._await_body(is_begun=self._filled > 0)
            self._feed(self._chunked)
        elif head.length > limit:
            self._refuse(to_error_reply(too_large(limit)))
        elif self._filled >= len(text) + head.length:
            body = memoryview(bytes(self._view[len(text) : len(text) + head.length]))
            self._drop(len(text) + head.length)
            self._answer(body)
        else:
            self._sized = SizedBody(head, self._view[len(text) : self._filled])
            self._await_body(is_begun=self._filled > len(text))
            self._filled = 0

    def _await_body(self, *, is_begun: bool) -> None:
        self._phase = _Phase.BODY
        self._deadline.set(self._limits.body_timeout_s)
        if self._head.expects_continue and not is_begun:
            self._transport.write(_CONTINUE)

    def _feed(self, body: ChunkedBody) -> None:
        data, self._filled = self._view[: self._filled], 0
        try:
            body.feed(data)
        except ServingError as error:
            self._refuse(to_error_reply(error))
            return
        if body.is_complete:
            self._chunked = None
            self._is_last = self._is_last or body.has_more
            self._answer(body.take())

    def _drop(self, count: int) -> None:
        """Move what is behind so many bytes to the front of the page."""
        rest = self._filled - count
        if rest:
            self._page[:rest] = self._page[count : self._filled]
        self._filled = rest

    # Its answer

    def _answer(self, body: memoryview) -> None:
        self._phase = _Phase.ANSWER
        answer = self._app.answer(self, self._head, body)
        if isinstance(answer, Reply):
            self._reply(answer)
            return
        self._deadline.clear()
        task = self._loop.create_task(self._reply_later(answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply_later(self, answer: Coroutine[Any, Any, Reply]) -> None:
        self._reply(await answer)

    def _reply(self, reply: Reply) -> None:
        if self._phase is _Phase.END:
            return
        keeps_alive = self._head.keeps_alive and not self._is_last
        self._phase = _Phase.IDLE
        self._deadline.set(self._limits.idle_timeout_s)
        self._transport.write(to_wire(reply, keeps_alive=keeps_alive, has_body=self._head.method != "HEAD"))
        if not keeps_alive:
            self._end()
        elif self._filled or self._is_paused:
            # Not at once: a client that sends many requests together must not keep the others waiting.
            self._loop.call_soon(self._advance)

    # The end

    def _refuse(self, reply: Reply) -> None:
        """Answer what cannot be read further, and end."""
        self._transport.write(to_wire(reply, keeps_alive=False))
        self._end()

    def _end(self) -> None:
        """
        Say that nothing more comes, and close when the client does.

        What it still sends is read for a while: a socket closed before that would take the answer with it.
        """
        self._phase = _Phase.END
        self._filled = 0
        self._sized = self._chunked = None
        if self._is_short:
            self._close()
            return
        if self._is_paused:
            self._transport.resume_reading()
        self._transport.write_eof()
        self._deadline.set(_DISCARD_S)

    def _discard(self, count: int) -> None:
        self._discarded += count
        if self._discarded > _DISCARD_BYTES:
            self._close()

    def _close(self) -> None:
        """Close when everything is sent, and without that when the client does not take it."""
        self._phase = _Phase.END
        self._filled = 0
        self._deadline.set(self._limits.body_timeout_s)
        self._transport.close()

    def _on_time_over(self) -> None:
        if self._is_blocked:
            self._abort_unless_taken()
        elif self._transport.is_closing():
            self._transport.abort()
        elif self._phase is _Phase.HEAD:
            seconds = self._limits.head_timeout_s
            self._refuse(to_error_reply(RequestIncomplete(f"the request's head did not arrive within {seconds:g} s")))
        elif self._phase is _Phase.BODY:
            seconds = self._limits.body_timeout_s
            self._refuse(to_error_reply(RequestIncomplete(f"the request body did not arrive within {seconds:g} s")))
        else:
            self._close()

    def _abort_unless_taken(self) -> None:
        """Give a client more time that has taken some of its answer meanwhile."""
        unsent = self._transport.get_write_buffer_size()
        if unsent >= self._unsent:
            self._transport.abort()
            return
        self._unsent = unsent
        self._deadline.set(self._limits.body_timeout_s)
