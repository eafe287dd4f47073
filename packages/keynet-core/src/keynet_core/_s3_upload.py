"""
Bytes to S3: in one request, or in parts that a killed upload leaves behind and the next one goes on with.

A body is signed with its SHA-256, which the server compares. Of the parts that are there already, none is believed
whose size and MD5, the part's ETag, are not those of the same bytes of the file.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

from keynet_core._crew import crew_of
from keynet_core._errors import ObjectCorrupt, StoreError, StoreUnavailable
from keynet_core._objects import refuse_other_bytes
from keynet_core._progress import metered
from keynet_core._s3_errors import code_of
from keynet_core._s3_transfers import confirm_stored, is_stored, properties

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keynet_core._objects import ObjectInfo
    from keynet_core._s3_client import Bucket
    from keynet_core._s3_transfers import Transfers

_SMALL_BYTES = 256 << 10
"""A body that is sent in one piece must be gone within one time-out; a larger one is sent in many small pieces."""

_TRIES = 3
_TAKEN_AWAY = {"NoSuchUpload", "InvalidPart"}
"""What a server answers when another process has completed or aborted the upload, or sent other parts into it."""


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
                if code_of(error) not in _TAKEN_AWAY:
                    raise
            # Not so when an upload whose parts fitted was begun with another digest, or when others took it away.
            if is_stored(bucket, key, info):
                return
    raise StoreUnavailable(f"other writers of s3://{bucket.name}/{key} keep getting in the way")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Upload:
    """An upload on the server: its parts, by number, as ETag and size, and when something last happened to it."""

    id: str
    parts: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    touched: datetime

    def fits(self, source: _Source) -> bool:
        """Return whether it has parts, and each is, byte for byte, the same part of the file."""
        return bool(self.parts) and all(
            size == source.size_of(number) and etag == _md5(source.read(number))
            for number, (etag, size) in sorted(self.parts.items())
        )


def _send(bucket: Bucket, key: str, source: _Source, transfers: Transfers, *, goes_on: bool) -> None:
    upload = _resumable(bucket, key, source, transfers) if goes_on else None
    there = upload.parts if upload else {}
    upload_id = upload.id if upload else create(bucket, key, source.info)
    etags = {number: etag for number, (etag, _) in there.items()}
    digest = hashlib.sha256()

    def send(number: int, data: bytes) -> None:
        with bucket.translating(key):
            answer = bucket.client.upload_part(
                Bucket=bucket.name, Key=key, UploadId=upload_id, PartNumber=number, Body=BytesIO(data)
            )
        etags[number] = etag_of(answer)
        advance(len(data))

    with (
        metered("parts", source.info.size_bytes) as advance,
        crew_of(transfers.workers_for(source.part_bytes)) as crew,
    ):
        for number, data in source.parts():
            digest.update(data)
            if number in there:
                advance(len(data))
            else:
                crew.hand(send, number, data)
        crew.finish()
    try:
        refuse_other_bytes(getattr(source.file, "name", key), digest.hexdigest(), source.info.sha256)
    except ObjectCorrupt:
        abort(bucket, key, upload_id)
        raise
    complete(bucket, key, upload_id, etags)


def create(bucket: Bucket, key: str, info: ObjectInfo) -> str:
    with bucket.translating(key):
        answer = bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key, **properties(key, info.sha256))
    upload_id: str = bucket.answered(answer, "UploadId")
    return upload_id


def complete(bucket: Bucket, key: str, upload_id: str, etags: Mapping[int, str]) -> None:
    parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in sorted(etags.items())]
    with bucket.translating(key):
        bucket.client.complete_multipart_upload(
            Bucket=bucket.name, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}
        )


def abort(bucket: Bucket, key: str, upload_id: str) -> None:
    # It is gone already, or may not be removed by us: the server's own rules will.
    with suppress(StoreError), bucket.translating(key):
        bucket.client.abort_multipart_upload(Bucket=bucket.name, Key=key, UploadId=upload_id)


def _resumable(bucket: Bucket, key: str, source: _Source, transfers: Transfers) -> _Upload | None:
    """Return the unfinished upload of this file that has the most parts, or None; abort the abandoned others."""
    now = datetime.now(UTC)
    found = list(_unfinished(bucket, key))
    fitting = [each for each in found if each.fits(source)]
    chosen = max(fitting, key=lambda each: len(each.parts), default=None)
    for each in found:
        if each is not chosen and (now - each.touched).total_seconds() > transfers.abandoned_s:
            abort(bucket, key, each.id)
    return chosen


def _unfinished(bucket: Bucket, key: str) -> Iterator[_Upload]:
    """Yield the unfinished uploads of a key; none where the server does not tell, or not us."""
    try:
        with bucket.translating(key):
            pages = bucket.client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket.name, Prefix=key)
            found = [each for page in pages for each in page.get("Uploads", ()) if each["Key"] == key]
        yield from (_describe(bucket, key, each) for each in found)
    except StoreError as error:
        if isinstance(error, StoreUnavailable) and code_of(error) not in _TAKEN_AWAY:
            raise


def _describe(bucket: Bucket, key: str, told: Mapping[str, Any]) -> _Upload:
    with bucket.translating(key):
        pages = bucket.client.get_paginator("list_parts").paginate(
            Bucket=bucket.name, Key=key, UploadId=told["UploadId"]
        )
        parts = [each for page in pages for each in page.get("Parts", ())]
    return _Upload(
        id=told["UploadId"],
        parts={each["PartNumber"]: (etag_of(each), each["Size"]) for each in parts},
        touched=max([told["Initiated"], *(each["LastModified"] for each in parts)]),
    )


def etag_of(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
