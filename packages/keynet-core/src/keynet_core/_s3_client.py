"""The client of boto3: one for each process and its settings, made when it is first needed."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from keynet_core._errors import MissingDependency
from keynet_core._s3_errors import answered, translating_s3

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from keynet_core._settings import S3Settings

ATTEMPTS = 3
"""How often a request is tried; with pauses of one and of two seconds at most between them."""

CONNECTIONS = 32
_CONNECT_TIMEOUT_S = 5.0
_REGION = "us-east-1"


class Bucket:
    """One bucket, and how its server is reached."""

    def __init__(self, name: str, settings: S3Settings) -> None:
        self.name = name
        self.settings = settings
        self._held: tuple[int, Any] | None = None

    @property
    def client(self) -> Any:
        """The client of this process: a forked child must not share the connections of its parent."""
        held, process = self._held, os.getpid()
        if held is None or held[0] != process:
            with self.translating():
                held = self._held = process, _client(self.settings, process, _environment())
        return held[1]

    def answered(self, response: Mapping[str, Any], name: str) -> Any:
        """Return what every S3 server answers; StoreError when this one does not."""
        return answered(response, name, self.settings.endpoint_url)

    def __reduce__(self) -> tuple[type[Bucket], tuple[str, S3Settings]]:
        return Bucket, (self.name, self.settings)  # the client stays here

    def translating(self, key: str | None = None) -> AbstractContextManager[None]:
        """Raise what boto3 says of a key, or of the bucket, as StoreError."""
        return translating_s3(self.name, key, endpoint_url=self.settings.endpoint_url)


def refuse_without_boto() -> None:
    """
    Check that boto3 is installed.

    Raises:
        MissingDependency: It is not.

    """
    from importlib.util import find_spec

    if find_spec("boto3") is None:
        raise MissingDependency("s3:// needs boto3, which is not installed", hint="pip install 'keynet-core[s3]'")


def _environment() -> tuple[tuple[str, str], ...]:
    """Return what boto3 reads for itself: with other keys, or another proxy, it is another client."""
    return tuple(sorted((key, value) for key, value in os.environ.items() if _is_read_by_boto(key)))


def _is_read_by_boto(name: str) -> bool:
    return name.startswith(("AWS_", "BOTO_")) or name.lower().endswith("_proxy")


@lru_cache(maxsize=8)
def _client(settings: S3Settings, process: int, environment: tuple[tuple[str, str], ...]) -> Any:
    del process, environment  # what tells one client from another, beside the settings
    from boto3.session import Session
    from botocore.config import Config

    session = Session()
    s3: Any = {"addressing_style": settings.addressing_style, "payload_signing_enabled": True}
    config = Config(
        signature_version="s3v4",
        connect_timeout=min(_CONNECT_TIMEOUT_S, settings.timeout_s),
        read_timeout=settings.timeout_s,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
        # The server compares the SHA-256 of each body with the signed one, so no other checksum is asked for: older
        # servers know none of them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3=s3,
    )
    client = session.client(
        "s3",
        region_name=session.region_name or _REGION,
        endpoint_url=settings.endpoint_url,
        verify=False if settings.ignore_tls else None,
        config=config,
    )
    client.meta.events.register_first("needs-retry.s3", _refuse_redirect)
    return client


def _refuse_redirect(operation: Any, response: tuple[Any, dict[str, Any]] | None, **_told: object) -> None:
    """
    Give up on a redirection that names no region.

    boto3 would ask for the region of the bucket, be redirected, ask again, and so on, until Python's stack is full.
    """
    from botocore.exceptions import ClientError

    if response is None or response[0] is None or response[0].status_code not in {301, 302, 307, 308}:
        return
    headers = response[0].headers
    if "x-amz-bucket-region" not in headers and "Region" not in response[1].get("Error", {}):
        where = str(headers.get("Location", "")).partition("?")[0]
        error = {"Code": str(response[0].status_code), "Message": f"it is at {where or 'some other address'}"}
        answer: Any = {**response[1], "Error": error}
        raise ClientError(answer, operation.name)
