"""RabbitMQ as the server meets it: an address, a topic, and connections whose every step is bounded in time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from keynet_core import MissingDependency, RabbitAddress
from keynet_server._errors import BrokerRefused, BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aio_pika.abc import AbstractChannel, AbstractConnection

    from keynet_core import CoreSettings, KeynetError

CONNECT_TIMEOUT_S = 8.0
ANSWER_TIMEOUT_S = 15.0
_CLOSING_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A broker and the topic whose events are this server's."""

    address: RabbitAddress
    topic: str
    heartbeat_s: int = 10
    """A broker that is gone without a word is noticed after three of them."""

    @classmethod
    def of(cls, settings: CoreSettings) -> Self | None:
        """
        Return what `RABBIT_ENDPOINT_URL` names, or None.

        Raises:
            MissingDependency: aio-pika is not installed.
            SettingsInvalid: The certificates it names cannot be read.

        """
        if settings.rabbit_url is None:
            return None
        from importlib.util import find_spec

        if find_spec("aio_pika") is None:
            raise MissingDependency(
                "events come from RabbitMQ, as RABBIT_ENDPOINT_URL is set, and aio-pika is not installed",
                hint="pip install 'keynet-server[rabbitmq]'",
            )
        address = RabbitAddress.from_url(settings.rabbit_url)
        address.to_ssl_context()
        return cls(address=address, topic=settings.rabbit_topic)

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[AbstractChannel]:
        """
        Yield a channel with publisher confirms, on a connection of its own that ends with the block.

        What aio-pika raises in the block leaves it translated.

        Raises:
            BrokerUnavailable: The broker does not answer, or what was begun is lost.
            BrokerRefused: Only a setting, here or in the broker, can mend it.

        """
        with translating(self):
            connection = self._to_connection()
            try:
                await connection.connect(timeout=CONNECT_TIMEOUT_S)
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                yield channel
            finally:
                # Also one that was never made: left to the garbage collector, it closes itself in a loop that is gone.
                with suppress(*_kinds()):
                    async with asyncio.timeout(_CLOSING_S):  # `wait_for` may forget that it was cancelled
                        await connection.close()

    def _to_connection(self) -> AbstractConnection:
        from aio_pika.connection import Connection, make_url

        address = self.address
        url = make_url(
            host=address.host,
            port=address.port,
            login=address.user,
            password=address.password.reveal(),
            virtualhost=address.vhost,
            ssl=address.is_tls,
            heartbeat=self.heartbeat_s,
            name="keynet server",
        )
        return Connection(url, ssl_context=address.to_ssl_context())


@contextmanager
def translating(broker: Broker) -> Iterator[None]:
    """Translate what aio-pika raises; the broker is named without user and password."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Nobody asked for it: aio-pika ends what waits for an answer in this way when a connection dies.
        raise BrokerUnavailable(f"RabbitMQ at {broker.address} is gone", hint=_DOCTOR) from error
    except _kinds() as error:
        raise _refusal(error, broker) or BrokerUnavailable(
            f"RabbitMQ at {broker.address} does not answer: {_words(error)}", hint=_DOCTOR
        ) from error


_DOCTOR = "keynet doctor"


def _kinds() -> tuple[type[Exception], ...]:
    import aiormq.exceptions
    from pamqp.exceptions import PAMQPException

    return (aiormq.exceptions.AMQPError, aiormq.exceptions.ChannelInvalidStateError, PAMQPException, OSError)


def _refusal(error: Exception, broker: Broker) -> KeynetError | None:
    from aiormq import exceptions as told

    where, user, words = f"RabbitMQ at {broker.address}", broker.address.user, _words(error)
    if isinstance(error, told.ProbableAuthenticationError | told.AuthenticationError):
        return BrokerRefused(f"{where} refuses the user {user!r} or the password", hint=_LOOK)
    if isinstance(error, told.InvalidFrameError) and "Connection.OpenOk" in words:
        # aiormq keeps what the broker said to itself; a broker that is starting closes connections in the same way.
        vhost = broker.address.vhost
        return BrokerUnavailable(f"{where} does not open the virtual host {vhost!r} to the user {user!r}", hint=_LOOK)
    if isinstance(error, told.ChannelAccessRefused):
        return BrokerRefused(f"{where} does not let the user {user!r} do that: {words}", hint=_PERMISSIONS)
    if isinstance(error, told.ChannelPreconditionFailed) and "inequivalent arg" in words:
        return BrokerRefused(
            f"{where} has a queue or an exchange of {broker.topic!r} that is made otherwise: {words}",
            hint="set RABBIT_MODEL_UPLOAD_TOPIC to another name, here and in training; or empty it and delete it",
        )
    if "WRONG_VERSION_NUMBER" in words:
        return BrokerRefused(f"{where} does not speak TLS at this port", hint="5671 is for amqps://, 5672 for amqp://")
    return None


_LOOK = "look at RABBIT_ENDPOINT_URL"
_PERMISSIONS = "rabbitmqctl set_permissions"


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "nothing came back in time"
    text = str(error.args[-1]) if error.args else ""
    return "".join(each if each.isprintable() else " " for each in text or type(error).__name__)[:500]
