"""
RabbitPublisher: events to RabbitMQ, each believed handed over only when the broker has confirmed it.

A connection lives for one event, or for the block of `opened`; a training that idles keeps none. The publisher declares
the topic exchange and nothing else: the queue is its consumer's, and an event that no queue takes comes back.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keynet_core._errors import EventUndelivered, MissingDependency, SettingsInvalid
from keynet_core._events import CONTENT_TYPE
from keynet_core._watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from socket import socket

    from pika import BasicProperties, BlockingConnection, ConnectionParameters
    from pika.adapters.blocking_connection import BlockingChannel

    from keynet_core._events import Event
    from keynet_core._publishing import EventPublisher
    from keynet_core._rabbit_address import RabbitAddress

_CLOSING_S = 2.0
_ACCESS_REFUSED = 403
_MAX_ID_BYTES = 255
"""What AMQP's short strings hold; the id in the body is whole."""


@dataclass(frozen=True, kw_only=True)
class RabbitPublisher:
    """Events to a topic exchange of RabbitMQ: persistent, mandatory, confirmed, and bounded in time."""

    address: RabbitAddress
    topic: str
    """The exchange, and the routing key."""

    connect_timeout_s: float = 5.0
    """For TCP, with each address that the host's name stands for."""

    handshake_timeout_s: float = 8.0
    """For TCP, TLS and AMQP together."""

    blocked_timeout_s: float = 10.0
    """How long a broker may hold publishers up, as it does while its disk or memory runs out."""

    answer_timeout_s: float = 15.0
    """For everything after the handshake, until the event is confirmed."""

    def __post_init__(self) -> None:
        from importlib.util import find_spec

        if find_spec("pika") is None:
            raise MissingDependency(
                "events go to RabbitMQ, as RABBIT_ENDPOINT_URL is set, and pika is not installed",
                hint="pip install 'keynet-core[rabbitmq]'",
            )
        self.address.to_ssl_context()  # what cannot be read is told before training, not after it

    def publish(self, event: Event) -> None:
        """Hand one event over, on a connection of its own."""
        with self.opened() as link:
            link.publish(event)

    @contextmanager
    def opened(self) -> Iterator[EventPublisher]:
        """Yield a publisher that keeps one connection: made for the first event, made again when it was lost."""
        with _quiet_pika(), Watchdog() as watchdog:
            link = _Link(self, watchdog)
            try:
                yield link
            finally:
                link.close()

    def to_parameters(self) -> ConnectionParameters:
        """Return what pika connects with."""
        import pika

        context = self.address.to_ssl_context()
        return pika.ConnectionParameters(
            host=self.address.host,
            port=self.address.port,
            virtual_host=self.address.vhost,
            credentials=pika.PlainCredentials(self.address.user, self.address.password.reveal()),
            ssl_options=pika.SSLOptions(context, self.address.host) if context is not None else None,
            connection_attempts=1,
            socket_timeout=self.connect_timeout_s,
            stack_timeout=self.handshake_timeout_s,
            blocked_connection_timeout=self.blocked_timeout_s,
            heartbeat=0,  # a package may be stored for minutes between two events, and nobody would answer then
            client_properties={"connection_name": "keynet publisher"},
        )


class _Link:
    """What `opened` yields."""

    def __init__(self, publisher: RabbitPublisher, watchdog: Watchdog) -> None:
        self._publisher = publisher
        self._watchdog = watchdog
        self._connection: BlockingConnection | None = None
        self._channel: BlockingChannel | None = None
        self._trouble: EventUndelivered | SettingsInvalid | None = None

    def publish(self, event: Event) -> None:
        """Hand one event over; after the broker itself was the trouble, the events that follow do not wait for it."""
        from keynet_core._rabbit_errors import translating

        if self._trouble is not None:
            raise type(self._trouble)(self._trouble.message, hint=self._trouble.hint)
        body, properties = event.to_json(), _properties_of(event)
        try:
            with translating(self._publisher.address, self._publisher.topic):
                self._deliver(body, properties)
        except (EventUndelivered, SettingsInvalid) as error:
            if self._channel is None or not self._channel.is_open:
                self._trouble = error
            raise

    def opened(self) -> AbstractContextManager[EventPublisher]:
        """Return itself: it keeps its connection."""
        return nullcontext(self)

    def close(self) -> None:
        """End the connection; what was confirmed is confirmed, whatever becomes of the goodbye."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is None or not connection.is_open:
            return
        from keynet_core._rabbit_errors import KINDS

        with suppress(*KINDS), self._watchdog.bounding(_socket_of(connection), _CLOSING_S):
            connection.close()

    def _deliver(self, body: bytes, properties: BasicProperties) -> None:
        from keynet_core._rabbit_errors import LOST

        was_kept = self._channel is not None
        try:
            self._send(body, properties)
        except LOST:
            if not was_kept:
                raise
            self.close()
            self._send(body, properties)

    def _send(self, body: bytes, properties: BasicProperties) -> None:
        import pika

        topic = self._publisher.topic
        if self._connection is None:
            self._connection = pika.BlockingConnection(self._publisher.to_parameters())
        with self._watchdog.bounding(_socket_of(self._connection), self._publisher.answer_timeout_s):
            if self._channel is None:
                self._channel = _open_channel(self._connection, topic)
            self._channel.basic_publish(topic, topic, body, properties, mandatory=True)


@contextmanager
def _quiet_pika() -> Iterator[None]:
    """Let pika say nothing: it logs twenty lines for each connection, and for each trouble what is raised already."""
    import logging

    logger = logging.getLogger("pika")
    if logger.level != logging.NOTSET:  # somebody wants to know
        yield
        return
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(logging.NOTSET)


def _open_channel(connection: BlockingConnection, topic: str) -> BlockingChannel:
    from pika.exceptions import ChannelClosedByBroker

    channel = connection.channel()
    try:
        channel.exchange_declare(topic, "topic", durable=True)
    except ChannelClosedByBroker as error:
        if error.reply_code != _ACCESS_REFUSED:
            raise
        channel = connection.channel()  # who may not declare an exchange may still be allowed to write to it
    channel.confirm_delivery()
    return channel


def _properties_of(event: Event) -> BasicProperties:
    import pika

    return pika.BasicProperties(
        content_type=CONTENT_TYPE,
        delivery_mode=pika.DeliveryMode.Persistent.value,
        message_id=_short(event.id),
        type=_short(event.type),
        app_id="keynet",
    )


def _short(text: str) -> str | None:
    return text if len(text.encode()) <= _MAX_ID_BYTES else None


def _socket_of(connection: BlockingConnection) -> socket:
    # pika's only bound on a broker that stops answering is a heartbeat, which a broker that waits for its peers sends.
    sock: socket = connection._impl._transport._sock  # noqa: SLF001  # it has no public name
    return sock
