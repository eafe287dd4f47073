"""
What the consumer declares in RabbitMQ, and nobody else does.

<topic>                  topic exchange, durable; publishers declare it too
<topic>.deployer         quorum queue: every event of the topic, delivered at most so often, never silently dropped
<topic>.dlx              fanout exchange: what can never be taken
<topic>.deployer.dead    quorum queue: the dead letters, until somebody looks at them
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractQueue
    from pamqp.common import FieldTable as Arguments

MAX_DELIVERIES = 20
_NEVER = 2**31 - 1
"""As a limit of deliveries: to look at a dead letter is one, and RabbitMQ 4 would drop it after the twentieth look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The names."""

    topic: str

    @property
    def queue(self) -> str:
        """Where events wait for a server."""
        return f"{self.topic}.deployer"

    @property
    def dead_exchange(self) -> str:
        """Where dead letters are published."""
        return f"{self.topic}.dlx"

    @property
    def dead_queue(self) -> str:
        """Where dead letters wait for somebody."""
        return f"{self.topic}.deployer.dead"


async def declare(channel: AbstractChannel, names: Topology) -> tuple[AbstractQueue, AbstractExchange]:
    """Declare everything, and return the queue of events and the exchange of dead letters."""
    from aio_pika import ExchangeType

    # The end of the way first: nothing may be dead-lettered into the void.
    dead_exchange = await channel.declare_exchange(names.dead_exchange, ExchangeType.FANOUT, durable=True)
    dead: Arguments = {"x-queue-type": "quorum", "x-delivery-limit": _NEVER}
    dead_queue = await channel.declare_queue(names.dead_queue, durable=True, arguments=dead)
    await dead_queue.bind(dead_exchange)
    exchange = await channel.declare_exchange(names.topic, ExchangeType.TOPIC, durable=True)
    arguments: Arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": MAX_DELIVERIES,
        "x-dead-letter-exchange": names.dead_exchange,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # RabbitMQ dead-letters at least once only where nothing is dropped on overflow
    }
    queue = await channel.declare_queue(names.queue, durable=True, arguments=arguments)
    await queue.bind(exchange, routing_key=names.topic)
    return queue, dead_exchange
