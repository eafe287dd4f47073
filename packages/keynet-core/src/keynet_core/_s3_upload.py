"""
Bytes to S3: in one request, or in parts that a killed upload leaves behind and the next one goes on with.

A body is signed with its SHA-256, which the server compares. An upload that is there already is gone on with when it
was begun for an object of the same digest, and the size and the MD5 of each of its parts, the part's ETag, are those of
the same bytes of the file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from shlex import quote
from typing import TYPE_CHECKING, BinaryIO

from keynet_core._crew import crew_of
from keynet_core._errors import ObjectCorrupt, StoreError, StoreUnavailable
from keynet_core._objects import refuse_other_bytes
from keynet_core._progress import metered
from keynet_core._s3_errors import code_of
from keynet_core._s3_multipart import TAKEN_AWAY, abort, begin, complete, find, remove_labels
from keynet_core._s3_transfers import ONE_WRITER, confirm_stored, etag_of, is_stored, properties

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keynet_core._objects import ObjectInfo
    from keynet_core._s3_client import Bucket
    from keynet_core._s3_multipart import Upload
    from keynet_core._s3_transfers import Transfers

_SMALL_BYTES = 256 << 10
"""A body that is sent in one piece must be gone within one time-out; a larger one is sent in many small pieces."""

_TRIES = 3


def put_whole(bucket: Bucket, key: str, data: bytes, info: ObjectInfo) -> None:
    """Store bytes in one request, and have the server's ETag, or else another request, prove that it has them."""
    body = data if len(data) <= _SMALL_BYTES else BytesIO(data)
    with bucket.translating(key):
        response = bucket.client.put_object(Bucket=bucket.name, Key=key, Body=body, **properties(key, info.sha256))
    # With some kinds of encryption the ETag is no MD5, and only then there is anything left to ask.
    bucket.answered(response, "ETag")
    if etag_of(response) != _md5(data):
        confirm_stored(bucket, key, info)


def put_in_parts(bucket: Bucket, key: str, file: BinaryIO, info: ObjectInfo, transfers: Transfers) -> None:
    """
    Store a file in parts, several at once, going on with what a killed upload left behind.

    Args:
        bucket: Where to.
        key: The object.
        file: What is read, once, in order.
        info: What the file is known to hold.
        transfers: How large the parts are.

    Raises:
        ObjectCorrupt: The file does not hold it; nothing is stored.

    """
    source = _Source(file=file, info=info, part_bytes=transfers.part_size(info.size_bytes))
    with metered(f"storing s3://{bucket.name}/{key}", info.size_bytes):
        for attempt in range(_TRIES):
            try:
                _send(bucket, key, source, transfers, goes_on=attempt == 0)
            except StoreError as error:
                if code_of(error) not in TAKEN_AWAY:
                    raise
            # Not so when others took the upload away, or stored something else since.
            if is_stored(bucket, key, info):
                return
    raise StoreUnavailable(f"other writers of s3://{bucket.name}/{key} keep getting in the way", hint=ONE_WRITER)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """The bytes of one object, part by part."""

    file: BinaryIO
    info: ObjectInfo
    part_bytes: int

    def size_of(self, number: int) -> int:
        """Return how many bytes part `number` has, counted from 1; zero behind the last."""
        return max(0, min(self.part_bytes, self.info.size_bytes - (number - 1) * self.part_bytes))

    def read(self, number: int) -> bytes:
        self.file.seek((number - 1) * self.part_bytes)
        return self.file.read(self.size_of(number))

    def parts(self) -> Iterator[tuple[int, bytes]]:
        """Yield each part with its number."""
        for number in range(1, -(-self.info.size_bytes // self.part_bytes) + 1):
            yield number, self.read(number)

    def has(self, upload: Upload) -> bool:
        """Return whether an upload has parts, and each is, byte for byte, the same part of the file."""
        return bool(upload.parts) and all(
            size == self.size_of(number) and etag == _md5(self.read(number))
            for number, (etag, size) in sorted(upload.parts.items())
        )


def _send(bucket: Bucket, key: str, source: _Source, transfers: Transfers, *, goes_on: bool) -> None:
    found = None
    if goes_on:
        found = find(bucket, key, source.info.sha256, fits=source.has, abandoned_s=transfers.abandoned_s)
    upload = found or begin(bucket, key, source.info)
    try:
        complete(upload, _send_parts(upload, source, transfers))
    except ObjectCorrupt:
        abort(upload)
        raise
    except StoreError as error:
        if code_of(error) in TAKEN_AWAY:
            remove_labels(upload)
        raise


def _send_parts(upload: Upload, source: _Source, transfers: Transfers) -> dict[int, str]:
    """Send the parts that are not there, and return the ETags of all."""
    bucket, key = upload.bucket, upload.key
    etags = {number: etag for number, (etag, _) in upload.parts.items()}
    digest = hashlib.sha256()

    def send(number: int, data: bytes) -> None:
        with bucket.translating(key):
            answer = bucket.client.upload_part(
                Bucket=bucket.name, Key=key, UploadId=upload.id, PartNumber=number, Body=BytesIO(data)
            )
        etags[number] = etag_of(answer)
        advance(len(data))

    with (
        metered("parts", source.info.size_bytes) as advance,
        crew_of(transfers.workers_for(source.part_bytes)) as crew,
    ):
        for number, data in source.parts():
            digest.update(data)
            if number in upload.parts:
                advance(len(data))
            else:
                crew.hand(send, number, data)
        crew.finish()
    name = getattr(source.file, "name", key)
    refuse_other_bytes(name, digest.hexdigest(), source.info.sha256, hint=f"sha256sum {quote(str(name))}")
    return etags


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
