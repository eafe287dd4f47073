"""
Graveyard: dead letters published on a connection of their own, each acknowledged once it is confirmed.

While its disk or its memory runs out, RabbitMQ reads nothing more from a connection that has published: on the
connection that events come from, no acknowledgement behind a dead letter would arrive. Here only the dead wait, each
with its reason, for as long as that lasts; what can be taken is taken meanwhile, past `MAX_HELD` of them.

A refusal ends the burying, and with it the session: the message is delivered again, and RabbitMQ itself lays aside what
was delivered too often, which no permission of this server's stands in the way of.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Self

from keynet_server._broker import ANSWER_TIMEOUT_S, translating
from keynet_server._dead_letters import bury
from keynet_server._errors import BrokerRefused, BrokerUnavailable
from keynet_server._topology import Topology, declare

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aio_pika import Message
    from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage

    from keynet_server._broker import Broker
    from keynet_server._consumer import Pauses
    from keynet_server._verdict import Dead

CONFIRM_TIMEOUT_S = 15.0
"""How long a confirmation may take while the broker does not say that it takes nothing."""

MAX_HELD = 256
"""How many dead letters may wait: while there are fewer, what comes behind them is taken."""

_MAX_TURNED_DOWN = 5
"""How often in a row the broker may answer that a letter went nowhere, before that is its last word."""

_GRACE_S = 0.5
"""What is being buried when the consumer ends may take so long; else it is delivered, and buried, again."""


class Graveyard:
    """
    Buries messages, one after the other.

    Args:
        broker: Where they go.
        pauses: How patient it is.
        on_buried: Called when one is among the dead letters.
        on_trouble: Called with what stands in the way, and with None when nothing does any more.

    """

    def __init__(
        self,
        broker: Broker,
        *,
        pauses: Pauses,
        on_buried: Callable[[Dead], None],
        on_trouble: Callable[[str | None], None],
    ) -> None:
        self._broker = broker
        self._names = Topology(topic=broker.topic)
        self._pauses = pauses
        self._on_buried = on_buried
        self._on_trouble = on_trouble
        self._waiting: asyncio.Queue[tuple[AbstractIncomingMessage, Dead]] = asyncio.Queue()
        self._grave: tuple[AbstractIncomingMessage, Dead] | None = None
        self._held: deque[AbstractIncomingMessage] = deque()
        self._turned_down = 0
        self._task: asyncio.Task[None] | None = None

    def take(self, message: AbstractIncomingMessage, verdict: Dead) -> None:
        """Have a message buried, and acknowledged then."""
        self._held.append(message)
        self._waiting.put_nowait((message, verdict))

    def fills(self, tag: str, prefetch: int) -> bool:
        """Return whether all that a consumer is given at a time waits here, and there is room for as much again."""
        of_consumer = sum(each.consumer_tag == tag for each in self._held)
        return of_consumer >= prefetch and len(self._held) + prefetch <= MAX_HELD

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """Bury for as long as the block lasts; what is not buried by then is not acknowledged."""
        self._task = asyncio.create_task(self._run())
        try:
            yield self
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S):
                    await self._waiting.join()
        finally:
            while not self._task.done():
                self._task.cancel()  # again and again: what closes a connection may forget that it was cancelled
                await asyncio.wait({self._task}, timeout=_GRACE_S)
            self._on_trouble(None)

    def require(self) -> None:
        """Raise what ended the burying: a refusal, or what nobody foresaw."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def _run(self) -> None:
        attempts = 0
        while True:
            if self._grave is None:
                self._grave = await self._waiting.get()
            try:
                await self._bury_all()
            except BrokerRefused:
                raise  # each retry would end alike, and the message never leave its queue
            except BrokerUnavailable as error:
                attempts += 1
                self._on_trouble(error.message)
                await asyncio.sleep(self._pauses.after(attempts))
            else:
                attempts = 0

    async def _bury_all(self) -> None:
        """Bury on one connection what waits now."""
        async with self._broker.channel() as channel:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                _, dead = await declare(channel, self._names)
            while self._grave is not None:
                message, verdict = self._grave
                await self._publish(bury(message, verdict), channel, dead)
                self._on_trouble(None)
                self._grave = None if self._waiting.empty() else self._waiting.get_nowait()
                with suppress(BrokerUnavailable), translating(self._broker):  # else it comes, and is buried, again
                    await message.ack()
                self._held.popleft()
                self._on_buried(verdict)
                self._waiting.task_done()

    async def _publish(self, letter: Message, channel: AbstractChannel, dead: AbstractExchange) -> None:
        """Publish and wait for the confirmation; as long as the broker says that it takes nothing, wait on."""
        clock = asyncio.get_running_loop().time
        publishing = asyncio.ensure_future(dead.publish(letter, routing_key=self._names.queue, mandatory=True))
        try:
            deadline = clock() + CONFIRM_TIMEOUT_S
            while not (await asyncio.wait({publishing}, timeout=self._pauses.look_s))[0]:
                if await _is_blocked(channel):
                    # Not begun anew: the broker has read the first one, and lays it down once it goes on.
                    deadline = clock() + CONFIRM_TIMEOUT_S
                    self._on_trouble(
                        f"RabbitMQ at {self._broker.address} takes nothing from publishers now: "
                        "its disk or its memory runs out"
                    )
                elif clock() > deadline:
                    raise TimeoutError
            await self._confirmed(publishing)
        finally:
            publishing.cancel()

    async def _confirmed(self, publishing: Awaitable[object]) -> None:
        from aiormq.exceptions import DeliveryError

        try:
            await publishing
        except DeliveryError as error:
            self._turned_down += 1
            if self._turned_down < _MAX_TURNED_DOWN:
                raise
            where, queue = f"RabbitMQ at {self._broker.address}", self._names.dead_queue
            raise BrokerRefused(
                f"{where} takes no dead letter into {queue}, asked {self._turned_down} times",
                hint="rabbitmqctl list_policies",
            ) from error
        self._turned_down = 0


async def _is_blocked(channel: AbstractChannel) -> bool:
    """Return whether the broker has said that it reads nothing more from this connection, for now."""
    underlay = await channel.get_underlay_channel()
    try:
        async with asyncio.timeout(0):
            await underlay.connection.ready()
    except TimeoutError:
        return True
    return False
