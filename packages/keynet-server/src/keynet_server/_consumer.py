"""
Consumer: events out of RabbitMQ into the journal, in a thread with an event loop of its own.

A message is acknowledged once its event is in the journal, or once it is among the dead letters with its reason, which
is the graveyard's work. While the database is away the message is held and tried again; those behind it need the same.
Killed at any point, the broker delivers again, and the journal knows the event by its id.

The connection is a plain one, made anew by one loop for every reason it can end: also the first, and always with the
queue declared and listened to. aio-pika's robust connection raises when the broker is down at the start, and opens
channels behind the back of a message that is held.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Thread
from typing import TYPE_CHECKING, Any

from keynet_core import KeynetError
from keynet_server._broker import ANSWER_TIMEOUT_S
from keynet_server._errors import BrokerUnavailable
from keynet_server._graveyard import Graveyard
from keynet_server._off_loop import off_loop
from keynet_server._topology import Topology, declare
from keynet_server._verdict import Dead, NotNow, judge

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

    from keynet_core import Event
    from keynet_server._broker import Broker
    from keynet_server._verdict import Taken

log = logging.getLogger("keynet.server")

PREFETCH = 16
"""Messages in memory at a time, beside dead letters that wait; each may be as large as the broker lets it be."""

MAX_UNFORESEEN = 3
"""How often a message may end in an error nobody foresaw, before it is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """How long the consumer waits before it tries again: twice as long each time."""

    first_s: float = 1.0
    longest_s: float = 30.0
    look_s: float = 5.0
    """How often it makes sure, while nothing comes, that the broker still delivers."""

    def after(self, attempts: int) -> float:
        """Return the pause after so many attempts."""
        return float(min(self.first_s * 2 ** min(attempts - 1, 16), self.longest_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerStatus:
    """What the consumer is at."""

    is_listening: bool = False
    trouble: str | None = None
    """Why it is not listening, or what it holds a message for."""

    taken: int = 0
    buried: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


class Consumer:
    """
    Takes events from a broker for as long as it runs.

    Args:
        broker: Where they come from.
        receive: `Deployer.receive`; it may wait.
        on_taken: Called when an event is in the journal.
        pauses: How patient it is.

    """

    def __init__(
        self,
        broker: Broker,
        receive: Callable[[Event], bool],
        *,
        on_taken: Callable[[], None],
        pauses: Pauses = Pauses(),
    ) -> None:
        self._broker = broker
        self._names = Topology(topic=broker.topic)
        self._receive = receive
        self._on_taken = on_taken
        self._pauses = pauses
        self._status = ConsumerStatus()
        self._trouble_of_burying: str | None = None
        self._is_careful = False
        self._settled = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._arrived: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()
        self._thread = Thread(target=self._run, name="keynet-consumer", daemon=True)

    @property
    def broker(self) -> Broker:
        """Where events come from."""
        return self._broker

    @property
    def status(self) -> ConsumerStatus:
        """What it is at, now."""
        return replace(self._status, trouble=self._status.trouble or self._trouble_of_burying)

    def start(self) -> None:
        """Begin."""
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def stop(self, *, timeout_s: float = 3.0) -> bool:
        """End after the current message; return False when that takes longer (it is delivered again)."""
        if self._loop is None:
            return True
        with suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._end)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _end(self) -> None:
        self._stopping.set()
        self._arrived.put_nowait(None)

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._listen())

    async def _listen(self) -> None:
        attempts = 0
        while not self._stopping.is_set():
            try:
                await self._session()
            except KeynetError as error:
                attempts = 1 if self._status.is_listening else attempts + 1
                self._complain(f"{error.code}: {error.message}")
            except Exception as error:  # the boundary of the thread: the next session knows nothing of this one
                attempts += 1
                log.exception("an unforeseen error while listening to RabbitMQ at %s", self._broker.address)
                self._complain(f"an unforeseen error: {type(error).__name__}: {error}")
            else:
                attempts = 0
            await self._pause(attempts)

    async def _session(self) -> None:
        """
        Listen until it is time to stop, or until the connection ends, which raises.

        All it holds at its end count as delivered once more. One message may end session after session; so that it does
        not take those behind it to the dead letters, what follows a short session holds one message, for a while.
        """
        self._arrived = asyncio.Queue()
        prefetch, self._settled = 1 if self._is_careful else PREFETCH, 0
        async with self._broker.channel() as channel, self._graveyard() as graveyard:
            channel.close_callbacks.add(self._wake)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                queue, _ = await declare(channel, self._names)
                await channel.set_qos(prefetch_count=prefetch)
                self._is_careful = True
                tag = await queue.consume(self._arrived.put)
            self._note(is_listening=True, trouble=None)
            log.info("events come from the queue %s of RabbitMQ at %s", queue.name, self._broker.address)
            while not self._stopping.is_set():
                message = await self._next()
                graveyard.require()
                if message is not None:
                    await self._settle(message, graveyard)
                elif not await _delivers(channel, tag):
                    raise BrokerUnavailable(
                        f"RabbitMQ at {self._broker.address} delivers no more", hint="keynet doctor"
                    )
                if graveyard.fills(tag, prefetch):
                    tag = await self._consume_again(queue, tag)
                if self._settled >= PREFETCH:
                    self._is_careful = False
                    if prefetch < PREFETCH:
                        break
        self._note(is_listening=False)

    async def _consume_again(self, queue: AbstractQueue, tag: str) -> str:
        """
        Have what comes behind dead letters that wait delivered: a new consumer is given its prefetch beside them.

        The old one ends first: of two, RabbitMQ would mix the order of the events.
        """
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await queue.cancel(tag)
            return await queue.consume(self._arrived.put)

    def _graveyard(self) -> AbstractAsyncContextManager[Graveyard]:
        graveyard = Graveyard(
            self._broker, pauses=self._pauses, on_buried=self._on_buried, on_trouble=self._on_trouble_of_burying
        )
        return graveyard.opened()

    def _on_buried(self, verdict: Dead) -> None:
        log.warning("a message is laid into %s: %s: %s", self._names.dead_queue, verdict.code, verdict.reason)
        self._note(buried=self._status.buried + 1)
        self._settled += 1
        self._wake()

    def _on_trouble_of_burying(self, trouble: str | None) -> None:
        told = f"a message is held until it can be laid aside: {trouble}" if trouble else None
        if told and told != self._trouble_of_burying:
            log.warning("%s", told)
        self._trouble_of_burying = told

    def _wake(self, *_: object) -> None:
        self._arrived.put_nowait(None)

    async def _next(self) -> AbstractIncomingMessage | None:
        """Return the next message; None when there is reason to look around, and after a while without any."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pauses.look_s):
                return await self._arrived.get()
        return None

    async def _settle(self, message: AbstractIncomingMessage, graveyard: Graveyard) -> None:
        verdict = await self._judge(message.body)
        if verdict is None:
            return  # it goes back to the queue with the connection
        if isinstance(verdict, Dead):
            graveyard.take(message, verdict)
            return
        if verdict.is_fresh:
            self._on_taken()
        self._note(taken=self._status.taken + verdict.is_fresh)
        await message.ack()
        self._settled += 1

    async def _judge(self, body: bytes) -> Taken | Dead | None:
        """Return the verdict that is final, however long what it needs is away; None when it is time to stop."""
        attempts = unforeseen = 0
        while not self._stopping.is_set():
            attempts += 1
            try:
                verdict = await off_loop(lambda: judge(body, self._receive))
            except Exception as error:  # the boundary of one message: the next one is taken all the same
                unforeseen += 1
                told = f"an unforeseen error: {type(error).__name__}: {error}"
                log.exception("an unforeseen error while taking a message, for the %d. time", unforeseen)
                verdict = NotNow(reason=told)
                if unforeseen >= MAX_UNFORESEEN:
                    return Dead(code="server.internal", reason=f"{told}; tried {unforeseen} times")
            if not isinstance(verdict, NotNow):
                self._note(trouble=None)
                return verdict
            self._hold(verdict)
            await self._pause(attempts)
        return None

    def _hold(self, verdict: NotNow) -> None:
        trouble = f"a message is held until it can be taken: {verdict.reason}"
        if trouble != self._status.trouble:
            log.warning("%s", trouble)
        self._note(trouble=trouble)

    def _complain(self, trouble: str) -> None:
        if trouble != self._status.trouble:
            log.warning("no events come from RabbitMQ: %s", trouble)
        self._note(is_listening=False, trouble=trouble)

    def _note(self, **changes: Any) -> None:
        self._status = replace(self._status, **changes)

    async def _pause(self, attempts: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pauses.after(attempts)):
                await self._stopping.wait()


async def _delivers(channel: AbstractChannel, tag: str) -> bool:
    """Return whether the broker still has this consumer: it takes it away when the queue is deleted."""
    if channel.is_closed:
        return False
    underlay = await channel.get_underlay_channel()
    return tag in underlay.consumers  # type: ignore[attr-defined]  # public, and not in the abstract class
