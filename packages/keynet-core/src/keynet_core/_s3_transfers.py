"""How objects travel to and from S3: the metadata they carry, the sizes of their parts, and how many at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from keynet_core._errors import ObjectMissing, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from mimetypes import MimeTypes

    from keynet_core._objects import ObjectInfo
    from keynet_core._s3_client import Bucket

SHA256 = "keynet-sha256"
"""The metadata that carries an object's digest: `x-amz-meta-keynet-sha256`."""

MAX_KEY_BYTES = 1024
"""Of a key with the store's prefix, in UTF-8."""

ONE_WRITER = "see that nobody else writes this key, and store it again"

_MAX_PARTS = 10_000
_MEMORY_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """How large objects travel."""

    part_bytes: int = 16 << 20
    """An object that is larger travels in parts of this size, or of a larger one when they would be over 10,000."""

    range_bytes: int = 8 << 20
    """An object that is larger is fetched in ranges of this size."""

    copy_part_bytes: int = 256 << 20
    """The same for a copy from the server to itself, where S3 allows 5 GB."""

    workers: int = 8
    """How many parts travel at once, as long as they fit into 256 MB of memory together."""

    abandoned_s: float = 3600.0
    """An unfinished upload of the same key that cannot be gone on with is removed when it was idle for so long."""

    def part_size(self, size_bytes: int) -> int:
        """Return the size of the parts of an object, in whole mebibytes if it had to be raised."""
        least = -(-size_bytes // _MAX_PARTS)
        return self.part_bytes if least <= self.part_bytes else -(-least // (1 << 20)) << 20

    def workers_for(self, part_bytes: int) -> int:
        """Return how many parts of this size travel at once."""
        return max(1, min(self.workers, _MEMORY_BYTES // part_bytes))


def recorded_sha256(response: Mapping[str, Any]) -> str | None:
    """Return the digest that an object carries, or None when another tool stored it."""
    # Some servers, and some proxies, write the names of headers in their own way.
    told: dict[str, str] = {name.lower(): value for name, value in response.get("Metadata", {}).items()}
    return told.get(SHA256)


def head(bucket: Bucket, key: str) -> Mapping[str, Any]:
    """Return what the server tells of an object without its bytes; ObjectMissing when there is none."""
    with bucket.translating(key):
        response: Mapping[str, Any] = bucket.client.head_object(Bucket=bucket.name, Key=key)
    bucket.answered(response, "ETag")
    return response


def is_stored(bucket: Bucket, key: str, expected: ObjectInfo) -> bool:
    """Return whether the server has what was sent, by its size and by the digest it carries."""
    try:
        there = head(bucket, key)
    except ObjectMissing:
        return False
    return (there["ContentLength"], recorded_sha256(there)) == (expected.size_bytes, expected.sha256)


def confirm_stored(bucket: Bucket, key: str, expected: ObjectInfo) -> None:
    """
    Ask the server whether it has what was sent.

    Raises:
        StoreUnavailable: It has something else: another writer was faster, or something in between is broken.

    """
    if not is_stored(bucket, key, expected):
        raise StoreUnavailable(
            f"s3://{bucket.name}/{key} is not what was stored there, sha256 {expected.sha256:.12}", hint=ONE_WRITER
        )


def properties(key: str, sha256: str) -> dict[str, Any]:
    """Return what an object is stored with: its digest, and the media type that the ending of its key tells."""
    guessed, encoding = _media_types().guess_type(key.rpartition("/")[2])
    media_type = guessed if guessed and not encoding else "application/octet-stream"
    return {"Metadata": {SHA256: sha256}, "ContentType": media_type}


def etag_of(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')


@cache
def _media_types() -> MimeTypes:
    from mimetypes import MimeTypes

    return MimeTypes()
