"""URLs that an S3 store signs, told from all others: which bucket and key they name, and whether they are signed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, unquote

from keynet_inference._web import WebUrl

if TYPE_CHECKING:
    from typing import Self

_AWS = re.compile(
    r"(?:(?P<bucket>[a-z0-9.-]+)\.)?s3(?:\.dualstack)?(?:[.-][a-z]{2}(?:-[a-z]+)+-[0-9])?\.amazonaws\.com(?:\.cn)?",
    re.ASCII,
)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", re.ASCII)
_SIGNATURES = (
    {"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Signature"},
    {"AWSAccessKeyId", "Expires", "Signature"},
)


class S3Object(NamedTuple):
    """What a URL names."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Endpoint:
    """Where S3 answers: one address, or AWS."""

    url: WebUrl | None

    @classmethod
    def read(cls, text: str | None) -> Self:
        """Read an endpoint's address; without one it is AWS."""
        return cls(url=WebUrl.read(text) if text else None)

    def find(self, url: WebUrl) -> S3Object | None:
        """Return the bucket and key that a URL of this endpoint names, or None where it is another's, or names none."""
        bucket, path = self._bucket_of_host(url), unquote(url.path).removeprefix("/")
        if bucket is None:
            return None
        if not bucket:
            bucket, _, path = path.partition("/")
        return S3Object(bucket, path) if path and _BUCKET.fullmatch(bucket) else None

    def covers(self, url: WebUrl) -> bool:
        """Whether a URL leads there."""
        return self._bucket_of_host(url) is not None

    def _bucket_of_host(self, url: WebUrl) -> str | None:
        """Return the bucket that a host begins with, an empty one where the path has it, None for other hosts."""
        if self.url is None:
            found = _AWS.fullmatch(url.host) if (url.scheme, url.port) == ("https", 443) else None
            return (found["bucket"] or "") if found else None
        if (url.scheme, url.port) != (self.url.scheme, self.url.port):
            return None
        if url.host == self.url.host:
            return ""
        below = f".{self.url.host}"
        return url.host.removesuffix(below) if url.host.endswith(below) else None


def is_signed(url: WebUrl) -> bool:
    """Whether a URL carries a signature; whether it is a good one, the store says."""
    given = set(parse_qs(url.query))
    return any(names <= given for names in _SIGNATURES)
