"""Where RabbitMQ is: a URL taken apart once, and shown without its password ever after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from keynet_core._errors import SettingsInvalid
from keynet_core._secrets import Secret

if TYPE_CHECKING:
    from ssl import SSLContext
    from urllib.parse import SplitResult

_PORTS = {"amqp": 5672, "amqps": 5671}
_FILES = {"cacertfile", "certfile", "keyfile"}
_TUNING = {
    "blocked_connection_timeout",
    "channel_max",
    "connection_attempts",
    "connection_timeout",
    "frame_max",
    "heartbeat",
    "retry_delay",
    "socket_timeout",
    "stack_timeout",
}
"""What other clients read from such a URL; keynet bounds its own waiting, and lets them stand."""

_FORM = "amqp://user:password@host:port/vhost, with every special character of user and password percent-encoded"
_MAX_TOPIC_BYTES = 200
"""The queues are named after the topic, and a name in AMQP has at most 255 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitAddress:
    """A RabbitMQ broker, and who asks it."""

    host: str
    port: int
    vhost: str = "/"
    user: str = "guest"
    password: Secret = Secret("guest")  # RabbitMQ's own default, which it takes on loopback alone
    is_tls: bool = False
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None

    def __str__(self) -> str:
        from urllib.parse import quote

        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'amqps' if self.is_tls else 'amqp'}://{host}:{self.port}/{quote(self.vhost, safe='')}"

    @classmethod
    def from_url(cls, url: Secret) -> Self:
        """
        Take a URL apart; its parameters `cacertfile`, `certfile` and `keyfile` are RabbitMQ's own, for `amqps`.

        Raises:
            SettingsInvalid: It is no address of a broker. What is refused is not quoted: it may be the password.

        """
        from urllib.parse import unquote

        parts = _split(url.reveal())
        files = _files(parts)
        return cls(
            host=str(parts.hostname),
            port=parts.port or _PORTS[parts.scheme],
            vhost=_vhost(parts.path),
            user=unquote(parts.username or "guest"),
            password=Secret(unquote("guest" if parts.password is None else parts.password)),
            is_tls=parts.scheme == "amqps",
            ca_file=files.get("cacertfile"),
            certificate_file=files.get("certfile"),
            key_file=files.get("keyfile"),
        )

    def to_ssl_context(self) -> SSLContext | None:
        """
        Return what TLS needs, None without TLS.

        Raises:
            SettingsInvalid: A file of certificates cannot be read.

        """
        if not self.is_tls:
            return None
        import ssl

        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.certificate_file is not None:
                context.load_cert_chain(self.certificate_file, self.key_file)
        except OSError as error:  # SSLError is one
            raise SettingsInvalid(f"the certificates for RabbitMQ at {self} cannot be read: {error}") from error
        return context


def to_amqp_url(text: str) -> Secret:
    """
    Read the address of a broker.

    Raises:
        SettingsInvalid: It is none.

    """
    url = Secret(text)
    RabbitAddress.from_url(url)
    return url


def to_topic(text: str) -> str:
    """
    Read the name that exchange, routing key and queues are made of.

    Raises:
        SettingsInvalid: AMQP reserves it, reads it as a pattern, or it is too long.

    """
    if not (text.isprintable() and len(text.encode()) <= _MAX_TOPIC_BYTES) or set(text) & set(" *#"):
        raise SettingsInvalid(
            f"{text!r:.80} is no topic: at most {_MAX_TOPIC_BYTES} bytes, none of them a space, a star or a hash"
        )
    if text.startswith("amq."):
        raise SettingsInvalid(f"{text!r:.80} is no topic: RabbitMQ keeps names that begin with 'amq.' for itself")
    return text


def _split(text: str) -> SplitResult:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(text)
        usable = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    # With a slash in the password, what follows it looks like a virtual host.
    if not usable or parts.fragment or "@" in parts.path or not text.isprintable() or " " in text:
        # Not raised inside the handler: the ValueError above may quote the password.
        raise SettingsInvalid(f"it is no address of RabbitMQ; the form is {_FORM}")
    return parts


def _vhost(path: str) -> str:
    from urllib.parse import unquote

    name = path.removeprefix("/")
    if name in {"", "/"}:
        return "/"
    if "/" in name:
        raise SettingsInvalid(f"the virtual host is one name, and a slash in it is written %2F; the form is {_FORM}")
    return unquote(name)


def _files(parts: SplitResult) -> dict[str, str]:
    from urllib.parse import parse_qs

    told = {name: texts[-1] for name, texts in parse_qs(parts.query, keep_blank_values=True).items()}
    unknown = sorted(set(told) - _FILES - _TUNING)
    if unknown:
        raise SettingsInvalid(f"it has a parameter that keynet does not read; known are {', '.join(sorted(_FILES))}")
    return {name: text for name, text in told.items() if name in _FILES}
