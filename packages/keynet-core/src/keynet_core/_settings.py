"""
Settings: argument before environment before default, read once from a mapping that the caller hands in.

A component's settings are a frozen dataclass whose fields are made by `setting(...)`; `read_settings` fills it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from keynet_core._errors import SettingsInvalid
from keynet_core._rabbit_address import to_amqp_url, to_topic
from keynet_core._secrets import Secret
from keynet_core._setting_values import to_addressing_style, to_bool, to_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

S = TypeVar("S")


def setting(env: str, doc: str, *, parse: Callable[[str], Any] = str, default: Any = None) -> Any:
    """Declare a settings field: the variable that carries it, what it is, how its text is read, its default."""
    return field(default=default, metadata={"env": env, "doc": doc, "parse": parse})


def read_settings(kind: type[S], environ: Mapping[str, str], **arguments: object) -> S:
    """
    Return the settings `kind`, from arguments that are not None, then `environ`, then the defaults.

    A variable that is set but blank counts as not set, as deployment files often write it so.

    Raises:
        SettingsInvalid: A variable has a value that its field cannot read; the variable is named.

    """
    values = {name: value for name, value in arguments.items() if value is not None}
    for each in fields(kind):  # type: ignore[arg-type]  # every settings class is a dataclass
        text = environ.get(each.metadata["env"], "").strip()
        if each.name in values or not text:
            continue
        try:
            values[each.name] = each.metadata["parse"](text)
        except ValueError as error:
            raise SettingsInvalid(f"{each.metadata['env']} cannot be used: {error}") from error
    return kind(**values)


def describe_settings(kind: type[Any]) -> list[tuple[str, str, str]]:
    """Return (variable, default, what it is) for each field: what the reference page is made of."""
    return [(each.metadata["env"], _shown(each.default), each.metadata["doc"]) for each in fields(kind)]


def to_path(text: str) -> Path:
    """
    Read a path; `~` is the user's home, and the result is absolute.

    Raises:
        SettingsInvalid: It begins with the home of a user who has none.

    """
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise SettingsInvalid(f"{text!r} is no path: {error}") from error


def to_http_url(text: str) -> str:
    """
    Read an address of a server, without the slash at its end.

    Raises:
        SettingsInvalid: It is no http or https URL, or carries a user or password.

    """
    from urllib.parse import urlsplit

    if "@" in text:
        raise SettingsInvalid("the address carries a user or a password; hand it over as a token")
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not text.isprintable() or " " in text:
        raise SettingsInvalid(f"{text!r} is no http:// or https:// address")
    return text.rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreSettings:
    """What every part of keynet reads."""

    home: Path | None = setting("KEYNET_HOME", "State of the embedded engines, and the outbox.", parse=to_path)
    """Default: `.keynet` in the working directory; ask `state_directory`, which knows it."""

    url: str | None = setting("KEYNET_URL", "Address of the keynet server.", parse=to_http_url)
    """Default: what `keynet up` runs on the same home."""

    token: Secret | None = setting("KEYNET_TOKEN", "A token for the keynet server.", parse=Secret)
    """Default: the token `keynet up` wrote into the same home."""

    rabbit_url: Secret | None = setting(
        "RABBIT_ENDPOINT_URL", "RabbitMQ, `amqp://user:password@host:port/vhost`, or `amqps`.", parse=to_amqp_url
    )
    """Default: events go to the keynet server over HTTP."""

    rabbit_topic: str = setting(
        "RABBIT_MODEL_UPLOAD_TOPIC",
        "The topic exchange that events go to, and their routing key.",
        parse=to_topic,
        default="keynet.models",
    )

    @property
    def state_directory(self) -> Path:
        """Where state lives: `home`, or `.keynet` in the working directory."""
        return self.home or Path.cwd() / ".keynet"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """What an `s3://` store reads. Keys, profile, region and proxies are boto3's own: `AWS_*`, `~/.aws`, IAM roles."""

    endpoint_url: str | None = setting("MLFLOW_S3_ENDPOINT_URL", "Where S3 is, as MLflow has it.", parse=to_http_url)
    """Default: `AWS_ENDPOINT_URL_S3`, else `AWS_ENDPOINT_URL`, else AWS itself."""

    ignore_tls: bool = setting(
        "MLFLOW_S3_IGNORE_TLS", "Whether any certificate is believed.", parse=to_bool, default=False
    )

    addressing_style: str = setting(
        "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE",
        "`path` or `virtual`: whether a bucket is named in the path or in the host.",
        parse=to_addressing_style,
        default="auto",
    )

    timeout_s: float = setting(
        "KEYNET_STORE_TIMEOUT_S",
        "How long the store may be silent, or bring less than 16 KiB, in one request; a request is tried three times.",
        parse=to_seconds,
        default=20.0,
    )


def _shown(default: object) -> str:
    return "" if default is None else str(default)
