"""From S3 to the same S3, without the bytes coming by here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from keynet_core._crew import crew_of
from keynet_core._errors import StoreError
from keynet_core._objects import ObjectInfo
from keynet_core._s3_multipart import abort, complete, create
from keynet_core._s3_transfers import confirm_stored, etag_of, head, recorded_sha256

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keynet_core._s3_client import Bucket
    from keynet_core._s3_transfers import Transfers


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """An object whose digest the server keeps beside it, and the ETag of just these bytes, told in one answer."""

    bucket: Bucket
    key: str
    info: ObjectInfo
    etag: str

    @classmethod
    def look(cls, bucket: Bucket, key: str) -> Self | None:
        """Return what is under a key, or None when it was put there by another tool, without a digest."""
        there = head(bucket, key)
        sha256 = recorded_sha256(there)
        if sha256 is None:
            return None
        info = ObjectInfo(size_bytes=int(there["ContentLength"]), sha256=sha256)
        return cls(bucket=bucket, key=key, info=info, etag=there["ETag"])


def copy_object(source: Labelled, target: tuple[Bucket, str], transfers: Transfers) -> None:
    """
    Copy an object within one server, and have the server tell that the copy is what the source was.

    Args:
        source: What is copied.
        target: Bucket and key of the copy.
        transfers: How large the parts of a large copy are.

    """
    asked = {"CopySource": {"Bucket": source.bucket.name, "Key": source.key}, "CopySourceIfMatch": source.etag}
    if source.info.size_bytes > transfers.copy_part_bytes:
        _copy_parts(target, asked, source.info, transfers)
    else:
        bucket, key = target
        with bucket.translating(key):
            bucket.client.copy_object(Bucket=bucket.name, Key=key, **asked)
    confirm_stored(*target, source.info)


def _copy_parts(target: tuple[Bucket, str], asked: Mapping[str, Any], info: ObjectInfo, transfers: Transfers) -> None:
    bucket, key = target
    upload = create(bucket, key, info)
    etags: dict[int, str] = {}
    part_bytes = transfers.copy_part_bytes

    def copy(number: int) -> None:
        start = (number - 1) * part_bytes
        stop = min(start + part_bytes, info.size_bytes)
        with bucket.translating(key):
            answer = bucket.client.upload_part_copy(
                Bucket=bucket.name,
                Key=key,
                UploadId=upload.id,
                PartNumber=number,
                CopySourceRange=f"bytes={start}-{stop - 1}",
                **asked,
            )
        etags[number] = etag_of(answer["CopyPartResult"])

    try:
        with crew_of(transfers.workers) as crew:
            for number in range(1, -(-info.size_bytes // part_bytes) + 1):
                crew.hand(copy, number)
            crew.finish()
        complete(upload, etags)
    except StoreError:
        abort(upload)
        raise
