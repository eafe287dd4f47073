"""What a function's process reads from its environment, when TritonPlugin and Storage are constructed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from keynet_core import CoreSettings, S3Settings, SettingsInvalid, read_settings, setting, to_http_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from urllib.parse import SplitResult

DEFAULT_URL = "http://127.0.0.1:8000"
SCHEMES = ("http", "https", "grpc", "grpcs", "file")


def to_triton_url(text: str) -> str:
    """
    Read the address of a model server; one without a scheme is http.

    Raises:
        SettingsInvalid: The scheme is none that is spoken, or a host is missing where it is needed.

    """
    from urllib.parse import urlsplit

    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
    except ValueError:
        # Neither the text nor the reason is quoted: either may hold a password.
        raise SettingsInvalid("it is no address of a model server; write http://host:port") from None
    if "@" in (parts.netloc if parts.scheme == "file" else url):
        raise SettingsInvalid(f"the address of {parts.hostname} carries a password")
    if parts.scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise SettingsInvalid(f"{text!r} is no address of a model server; known are {known}")
    if parts.scheme == "file" and (parts.netloc not in {"", "localhost"} or not parts.path.strip("/")):
        raise SettingsInvalid(f"{text!r} names no directory; write file:///an/absolute/path")
    if parts.scheme != "file" and (not parts.hostname or not _has_port(parts)):
        raise SettingsInvalid(f"{text!r} names no host and port")
    return url.rstrip("/")


def to_words(text: str) -> tuple[str, ...]:
    """Read what is separated by spaces."""
    return tuple(text.split())


def _has_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonSettings(CoreSettings):
    """What `TritonPlugin` reads."""

    triton_url: str | None = setting(
        "TRITON_URL", "The model server: http, https, grpc, grpcs, or file for in process.", parse=to_triton_url
    )
    """Default: what `keynet up` runs on the same home, else `http://127.0.0.1:8000`."""

    model_name: str | None = setting("MODEL_NAME", "The model a function asks when the call does not name one.")

    @property
    def server(self) -> str:
        """The address to ask."""
        if self.triton_url:
            return to_triton_url(self.triton_url)
        from keynet_core import read_endpoints

        running = read_endpoints(self.state_directory)
        return to_triton_url(running.serving) if running else DEFAULT_URL


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings(CoreSettings):
    """What `Storage` reads."""

    bucket: str | None = setting("AWS_BUCKET_NAME", "The S3 bucket a function's files are in.")

    readable: tuple[str, ...] = setting(
        "KEYNET_STORAGE_READABLE",
        "What may be read beside the store: directories, `s3://bucket/prefix`, `https://host`; separated by spaces.",
        parse=to_words,
        default=(),
    )
    """Default: nothing."""

    aws_s3_endpoint: str | None = setting(
        "AWS_ENDPOINT_URL_S3",
        "Where S3 is, where `MLFLOW_S3_ENDPOINT_URL` does not say; presigned URLs of it are read.",
        parse=to_http_url,
    )
    """Default: the next one, else AWS."""

    aws_endpoint: str | None = setting(
        "AWS_ENDPOINT_URL", "The same, for all services that boto3 speaks to.", parse=to_http_url
    )

    ca_bundle: str | None = setting("AWS_CA_BUNDLE", "A file of the authorities that signed the certificate of S3.")
    """Default: those of the machine, or of `SSL_CERT_FILE`."""

    @property
    def store_url(self) -> str:
        """The store: the bucket, else a directory of its own, apart from the packages."""
        return f"s3://{self.bucket}" if self.bucket else (self.state_directory / "storage").as_uri()


class S3Address(NamedTuple):
    """Where S3 answers, which is AWS where there is no URL, and which certificates it is believed by."""

    url: str | None
    checks_certificate: bool
    authorities: str | None


def read_s3_address(environ: Mapping[str, str]) -> S3Address:
    """Read what the engine of `s3://` reads too: MLflow's variables, then boto3's."""
    mlflow, own = read_settings(S3Settings, environ), read_settings(StorageSettings, environ)
    url = mlflow.endpoint_url or own.aws_s3_endpoint or own.aws_endpoint
    return S3Address(url, checks_certificate=not mlflow.ignore_tls, authorities=own.ca_bundle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """
    How often a model server that cannot be reached is tried again; `Retry(attempts=1)` never tries again.

    Inference keeps nothing on the server, so a request is sent again when no connection came about, or the connection
    broke before any answer. An answer is final, also one that says "unavailable" or breaks off, and so is a time-out.
    gRPC does not tell a connection that broke from an answer, so that only one that did not come about is tried again.
    """

    attempts: int = 3
    """Tries in all."""

    first_delay_s: float = 0.1
    """The wait before the second try; each further one is twice as long."""

    max_delay_s: float = 2.0
    """The longest wait."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_delay_s < 0 or self.max_delay_s < 0:
            raise SettingsInvalid(f"{self} cannot be used: at least one attempt, and no negative wait")

    def delays(self) -> Iterator[float]:
        """Yield the wait before each further try, between half and the whole of what is due."""
        import random

        for number in range(self.attempts - 1):
            due = min(self.max_delay_s, self.first_delay_s * 2**number)
            yield due * random.uniform(0.5, 1.0)  # noqa: S311 - spreads clients in time, hides nothing
