"""From S3 to the same S3, without the bytes coming by here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keynet_core._crew import crew_of
from keynet_core._errors import StoreError
from keynet_core._s3_transfers import confirm_stored, head, properties, recorded_sha256
from keynet_core._s3_upload import abort, complete, create, etag_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keynet_core._objects import ObjectInfo
    from keynet_core._s3_client import Bucket
    from keynet_core._s3_transfers import Transfers


def copy_object(source: tuple[Bucket, str], target: tuple[Bucket, str], info: ObjectInfo, transfers: Transfers) -> None:
    """
    Copy an object within one server, and have the server tell that the copy is what the source was.

    Args:
        source: Bucket and key of what is copied.
        target: Bucket and key of the copy.
        info: What the source is.
        transfers: How large the parts of a large copy are.

    """
    there = head(*source)
    asked = {"CopySource": {"Bucket": source[0].name, "Key": source[1]}, "CopySourceIfMatch": there["ETag"]}
    if info.size_bytes > transfers.copy_part_bytes:
        _copy_parts(target, asked, info, transfers)
    else:
        _copy_whole(target, asked, there, info)
    confirm_stored(*target, info)


def _copy_whole(
    target: tuple[Bucket, str], asked: Mapping[str, Any], there: Mapping[str, Any], info: ObjectInfo
) -> None:
    bucket, key = target
    if recorded_sha256(there) is None:
        asked = {**asked, "MetadataDirective": "REPLACE", **properties(key, info.sha256)}
    with bucket.translating(key):
        bucket.client.copy_object(Bucket=bucket.name, Key=key, **asked)


def _copy_parts(target: tuple[Bucket, str], asked: Mapping[str, Any], info: ObjectInfo, transfers: Transfers) -> None:
    bucket, key = target
    upload_id = create(bucket, key, info)
    etags: dict[int, str] = {}
    part_bytes = transfers.copy_part_bytes

    def copy(number: int) -> None:
        start = (number - 1) * part_bytes
        stop = min(start + part_bytes, info.size_bytes)
        with bucket.translating(key):
            answer = bucket.client.upload_part_copy(
                Bucket=bucket.name,
                Key=key,
                UploadId=upload_id,
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
        complete(bucket, key, upload_id, etags)
    except StoreError:
        abort(bucket, key, upload_id)
        raise
