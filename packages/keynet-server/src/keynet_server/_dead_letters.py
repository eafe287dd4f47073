"""Messages that can never be taken: laid into the dead-letter queue with their reason, looked at, sent once more."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from keynet_core import MAX_EVENT_BYTES
from keynet_server._topology import MAX_DELIVERIES, Topology

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika import Message
    from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

    from keynet_server._broker import Broker
    from keynet_server._verdict import Dead

REASON, CODE, HINT, TIME = "x-keynet-reason", "x-keynet-code", "x-keynet-hint", "x-keynet-time"
LOOKED_AT = 100
_TIMEOUT_S = 60.0
_RETURN_LOOKS, _RETURN_PAUSE_S = 20, 0.05
_MAX_REASON = 2000
_MAX_KEPT_HEADERS = 16 * 1024
"""All headers must fit into one frame of AMQP, with the reason."""

_OURS = frozenset({REASON, CODE, HINT, TIME})
_BROKERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that was given up, and why."""

    id: str
    """The event's id; where there is none, what AMQP calls the message, else a digest of it."""

    code: str
    reason: str
    hint: str | None
    died_at: str | None
    subject: str | None
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Queues:
    """How much waits, and the oldest of the dead letters."""

    address: str
    """The broker, without who asks it."""

    queue: str
    dead_queue: str
    waiting: int = 0
    consumers: int = 0
    dead: int = 0
    letters: tuple[DeadLetter, ...] = ()
    is_declared: bool = True
    """Whether a server ever listened to this topic."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return plain | {"letters": [each.to_dict() for each in self.letters]}


def bury(message: AbstractIncomingMessage, verdict: Dead) -> Message:
    """Return the dead letter: the body as it came, and the verdict in the headers."""
    told = {
        CODE: verdict.code,
        REASON: verdict.reason[:_MAX_REASON],
        HINT: (verdict.hint or "")[:_MAX_REASON],
        TIME: datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return _copy(message, told)


async def look(broker: Broker, *, limit: int = LOOKED_AT) -> Queues:
    """
    Count what waits and what is dead, and read the oldest dead letters without removing any.

    While it reads, what it has read is hidden from others.

    Raises:
        BrokerUnavailable: The broker does not answer.
        BrokerRefused: It refuses user or virtual host.

    """
    names = Topology(topic=broker.topic)
    empty = Queues(address=str(broker.address), queue=names.queue, dead_queue=names.dead_queue)
    async with broker.channel() as channel, asyncio.timeout(_TIMEOUT_S):
        queue = await _existing(channel, names.queue)
        if queue is None:
            return replace(empty, is_declared=False)
        waiting, consumers = _counts(queue)
        dead_queue = await _existing(channel, names.dead_queue)
        dead = _counts(dead_queue)[0] if dead_queue is not None else 0
        letters = [to_letter(each) async for each in _each(dead_queue, min(limit, dead))]
        if dead_queue is not None and letters:
            await _await_return(channel, dead_queue, dead)
    return replace(empty, waiting=waiting, consumers=consumers, dead=dead, letters=tuple(letters))


async def replay(broker: Broker, letter_id: str) -> int:
    """
    Publish the dead letters of this id to the topic again, and return how many; each is removed once that is confirmed.

    Raises:
        BrokerUnavailable: The broker does not answer, or did not take one: it is dead still.
        BrokerRefused: It refuses user or virtual host.

    """
    names = Topology(topic=broker.topic)
    replayed = 0
    async with broker.channel() as channel, asyncio.timeout(_TIMEOUT_S):
        dead_queue = await _existing(channel, names.dead_queue)
        if dead_queue is None:
            return 0
        exchange = await channel.get_exchange(names.topic, ensure=True)
        async for each in _each(dead_queue, _counts(dead_queue)[0]):
            if to_letter(each).id == letter_id:
                await exchange.publish(_copy(each, {}), routing_key=names.topic, mandatory=True)
                await each.ack()
                replayed += 1
    return replayed


def to_letter(message: AbstractIncomingMessage) -> DeadLetter:
    """Read a message of the dead-letter queue, whoever laid it there."""
    headers = message.headers
    event = _peep(message.body)
    told = {name: _printable(headers[name]) for name in _OURS if headers.get(name)}
    return DeadLetter(
        id=_printable(event.get("id") or message.message_id or f"sha256:{hashlib.sha256(message.body).hexdigest()}"),
        code=told.get(CODE) or "message.undeliverable",
        reason=told.get(REASON) or _reason_of_broker(headers),
        hint=told.get(HINT),
        died_at=told.get(TIME),
        subject=_printable(event["subject"]) if event.get("subject") else None,
        size_bytes=len(message.body),
    )


async def _existing(channel: AbstractChannel, name: str) -> AbstractQueue | None:
    from aiormq.exceptions import ChannelNotFoundEntity

    try:
        return await channel.declare_queue(name, passive=True)
    except ChannelNotFoundEntity:
        return None  # the channel is closed by that, and there is nothing else to ask


def _counts(queue: AbstractQueue) -> tuple[int, int]:
    return queue.declaration_result.message_count or 0, queue.declaration_result.consumer_count or 0


async def _each(queue: AbstractQueue | None, count: int) -> AsyncIterator[AbstractIncomingMessage]:
    """Yield so many messages, one in memory at a time; those that were not acknowledged go back afterwards."""
    message = None
    for _ in range(count if queue is not None else 0):
        assert queue is not None
        got = await queue.get(fail=False)
        if got is None:
            break
        yield (message := got)
    if message is not None:
        await message.channel.basic_nack(0, multiple=True, requeue=True)  # 0 is every one that is left


async def _await_return(channel: AbstractChannel, queue: AbstractQueue, count: int) -> None:
    """Wait for a moment until what was given back is there again: who looks next would not see it."""
    for _ in range(_RETURN_LOOKS):
        again = await channel.declare_queue(queue.name, passive=True)
        if _counts(again)[0] >= count:
            return
        await asyncio.sleep(_RETURN_PAUSE_S)


def _copy(message: AbstractIncomingMessage, headers: dict[str, str]) -> Message:
    """Return the message anew, without what would let it expire or be refused, and without earlier verdicts."""
    from aio_pika import DeliveryMode, Message

    kept = {name: text for name, text in message.headers.items() if name not in _OURS and not name.startswith(_BROKERS)}
    if len(repr(kept)) > _MAX_KEPT_HEADERS:
        kept = {}
    return Message(
        message.body,
        headers={**kept, **headers},
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=message.message_id,
        timestamp=message.timestamp,
        type=message.type,
        app_id=message.app_id,
    )


def _peep(body: bytes) -> dict[str, str]:
    """Return what identifies an event, also of one that is not valid."""
    if len(body) > MAX_EVENT_BYTES:
        return {}
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(told, dict):
        return {}
    return {name: told[name] for name in ("id", "subject") if isinstance(told.get(name), str)}


def _reason_of_broker(headers: dict[str, Any]) -> str:
    deaths = headers.get("x-death")
    told = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    if told.get("reason") == "delivery_limit":
        return f"it was delivered more than {MAX_DELIVERIES} times, and every server was gone before it answered"
    return f"RabbitMQ laid it here: {_printable(told.get('reason') or 'no reason was given')}"


def _printable(value: object) -> str:
    return "".join(each if each.isprintable() else " " for each in str(value))[:_MAX_REASON].strip()
