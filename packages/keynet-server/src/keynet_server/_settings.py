"""What the keynet server and the operator's command read from their environment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keynet_core import CoreSettings, Secret, SettingsInvalid, setting, to_http_url

if TYPE_CHECKING:
    from pathlib import Path


_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\]")


def _to_hosts(text: str) -> tuple[str, ...]:
    """Read names as a `Host` header carries them, without a port; a pattern would let any page of a domain in."""
    names = tuple(name.strip().lower() for name in text.split(","))
    for name in names:
        if not _NAME.fullmatch(name):
            raise SettingsInvalid(f"{name!r} is no host; name each host without its port, with commas between them")
    return names


def _to_engine_url(text: str) -> str:
    try:
        return to_http_url(text)
    except SettingsInvalid as error:
        raise SettingsInvalid(f"{error.message}; the server loads models over the HTTP control API") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings(CoreSettings):
    """What the server reads."""

    store: str | None = setting("KEYNET_STORE", "Where packages are fetched from, a URL or a directory.")
    """Default: `s3://$AWS_BUCKET_NAME`, else `$KEYNET_HOME/store`."""

    bucket: str | None = setting("AWS_BUCKET_NAME", "An S3 bucket of packages, when KEYNET_STORE is not set.")

    database_url: Secret | None = setting(
        "KEYNET_DATABASE_URL", "The journal's database, postgresql+psycopg://user:password@host/name.", parse=Secret
    )
    """Default: SQLite in `$KEYNET_HOME/keynet.db`."""

    triton_url: str | None = setting("TRITON_URL", "The model server's HTTP address.", parse=_to_engine_url)
    """Default: the embedded model server that `keynet up` runs."""

    serving_repository: str | None = setting(
        "KEYNET_SERVING_REPOSITORY", "Where the model server reads models, s3://bucket/prefix or a directory."
    )
    """Default: `$KEYNET_HOME/serving`. In a directory, models stand below `models/`."""

    allowed_hosts: tuple[str, ...] = setting(
        "KEYNET_ALLOWED_HOSTS", "Names others call the server by, commas between them.", parse=_to_hosts, default=()
    )
    """Default: loopback alone; it is always among them."""

    @property
    def store_url(self) -> str:
        """Where packages are fetched from."""
        if self.store:
            return self.store
        return f"s3://{self.bucket}" if self.bucket else (self.state_directory / "store").as_uri()

    @property
    def journal_url(self) -> str:
        """The journal's database, with its password."""
        return self.database_url.reveal() if self.database_url else f"sqlite:///{self.state_directory / 'keynet.db'}"

    @property
    def serving_root(self) -> Path:
        """Where the serving repository stands when no other is named, and packages on their way to another."""
        return self.state_directory / "serving"

    @property
    def serving_url(self) -> str:
        """Where the model server reads models."""
        return self.serving_repository or self.serving_root.as_uri()
