"""What pika raises, in keynet's words. Imported when a connection is made, not before: it needs pika."""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pika import exceptions as told
from pika.adapters.utils.connection_workflow import AMQPConnectorException, AMQPConnectorStackTimeout

from keynet_core._errors import EventUndelivered, SettingsInvalid
from keynet_core._publishing import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keynet_core._errors import KeynetError
    from keynet_core._rabbit_address import RabbitAddress

KINDS = (told.AMQPError, told.ChannelError, told.ReentrancyError, AMQPConnectorException, OSError)
LOST = (
    told.StreamLostError,
    told.ConnectionClosed,
    told.ConnectionWrongStateError,
    told.ChannelClosed,
    told.ChannelWrongStateError,
    TimeoutError,
)
"""What a connection raises that died while nobody looked."""

_ACCESS_REFUSED, _PRECONDITION_FAILED = 403, 406
_LOOK = "look at RABBIT_ENDPOINT_URL"


@contextmanager
def translating(address: RabbitAddress, topic: str) -> Iterator[None]:
    """Raise EventUndelivered, or SettingsInvalid where only a setting can mend it; neither shows the password."""
    try:
        yield
    except told.ChannelClosedByBroker as error:
        raise _refused_by_channel(error, address, topic) from error
    except ssl.SSLError as error:
        raise _refused_by_tls(error, address) from error
    except KINDS as error:
        raise _refused_at_login(error, address) or _undelivered(error, address, topic) from error


def _undelivered(error: Exception, address: RabbitAddress, topic: str) -> EventUndelivered:
    broker = f"RabbitMQ at {address}"
    if isinstance(error, told.UnroutableError):
        return EventUndelivered(
            f"{broker} has no queue for events of {topic}: no keynet server has listened to it yet",
            hint="start keynet server, or keynet up, with this RABBIT_ENDPOINT_URL and RABBIT_MODEL_UPLOAD_TOPIC",
        )
    if isinstance(error, told.NackError):
        return EventUndelivered(
            f"{broker} did not take the event: a queue for {topic} is full, or has no majority", hint="keynet doctor"
        )
    if isinstance(error, told.ConnectionBlockedTimeout):
        return EventUndelivered(
            f"{broker} takes nothing from publishers now: its disk or its memory runs out",
            hint="rabbitmq-diagnostics alarms",
        )
    return EventUndelivered(f"{broker} does not answer: {_words(error)}", hint="keynet doctor")


def _refused_at_login(error: Exception, address: RabbitAddress) -> SettingsInvalid | None:
    if isinstance(error, told.ProbableAuthenticationError | told.AuthenticationError):
        return SettingsInvalid(f"RabbitMQ at {address} refuses the user {address.user!r} or the password", hint=_LOOK)
    if isinstance(error, told.ProbableAccessDeniedError) and "NOT_ALLOWED" in str(error):
        return SettingsInvalid(
            f"RabbitMQ at {address} has no virtual host {address.vhost!r} that the user {address.user!r} may use",
            hint=_LOOK,
        )
    return None


def _refused_by_channel(error: told.ChannelClosedByBroker, address: RabbitAddress, topic: str) -> KeynetError:
    if error.reply_code == _PRECONDITION_FAILED:
        return SettingsInvalid(
            f"RabbitMQ at {address} has another exchange {topic!r}: {_words(error)}",
            hint="set RABBIT_MODEL_UPLOAD_TOPIC to another name, here and where the server runs",
        )
    if error.reply_code == _ACCESS_REFUSED:
        return SettingsInvalid(
            f"RabbitMQ at {address} does not let the user {address.user!r} write to the exchange {topic!r}",
            hint="rabbitmqctl set_permissions",
        )
    return _undelivered(error, address, topic)


def _refused_by_tls(error: ssl.SSLError, address: RabbitAddress) -> KeynetError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return EventUndelivered(
            f"the certificate of RabbitMQ at {address} is not believed: {error.verify_message}",
            hint="name who signed it: amqps://...?cacertfile=/path/to/ca.pem",
        )
    if error.reason == "WRONG_VERSION_NUMBER":
        return SettingsInvalid(
            f"RabbitMQ at {address} does not speak TLS at this port",
            hint="amqps:// is for the port that speaks TLS, as a rule 5671; 5672 is amqp://",
        )
    return EventUndelivered(f"RabbitMQ at {address} does not answer: {_words(error)}", hint="keynet doctor")


def _words(error: BaseException) -> str:
    """Return what an error says; pika hands on what the system said, several times over."""
    while isinstance(inner := getattr(error, "exception", None) or (error.args or (None,))[-1], BaseException):
        error = inner
    if isinstance(error, AMQPConnectorStackTimeout):
        return "nothing came back in time"
    if isinstance(error, told.ChannelClosed | told.ConnectionClosed):
        return printable(error.reply_text)[:500]
    text = error.strerror if isinstance(error, OSError) else None
    return printable(text or str(error) or type(error).__name__)[:500]
