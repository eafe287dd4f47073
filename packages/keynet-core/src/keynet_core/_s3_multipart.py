"""
Uploads in parts, as the server has them: begun, found again after a kill, completed, removed.

The digest that an object carries is given when its upload begins, and no server tells of it before the upload is
complete: parts that fit a file do not prove that the upload is this file's. So an upload is begun with a label, which
is another upload, of a key that names the first one and the digest. It never gets a part, and no list of objects shows
it.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from keynet_core._errors import StoreError, StoreUnavailable
from keynet_core._s3_errors import code_of
from keynet_core._s3_transfers import MAX_KEY_BYTES, etag_of, properties

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from keynet_core._objects import ObjectInfo
    from keynet_core._s3_client import Bucket

TAKEN_AWAY = frozenset({"NoSuchUpload", "InvalidPart"})
"""What a server answers when another process has completed or aborted the upload, or sent other parts into it."""

_LABEL = re.compile(r"\.keynet-[0-9a-f]{32}-[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload on the server: its parts, by number, as ETag and size, and when something last happened to it."""

    bucket: Bucket
    key: str
    id: str
    touched: datetime
    parts: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    labels: tuple[Upload, ...] = ()

    def label_key(self, sha256: str) -> str:
        """Return the key of its label, if it was begun for an object of this digest."""
        named = hashlib.md5(self.id.encode(), usedforsecurity=False).hexdigest()
        return f"{self.key}.keynet-{named}-{sha256}"

    def is_idle(self, seconds: float) -> bool:
        return (datetime.now(UTC) - self.touched).total_seconds() > seconds


def begin(bucket: Bucket, key: str, info: ObjectInfo) -> Upload:
    """Begin an upload that can be gone on with, unless the server has no place for its label."""
    upload = create(bucket, key, info)
    label_key = upload.label_key(info.sha256)
    if len(label_key.encode()) <= MAX_KEY_BYTES:
        try:
            return replace(upload, labels=(create(bucket, label_key, info),))
        except StoreUnavailable:
            raise
        except StoreError:
            return upload  # too long for this server, or not ours to use
    return upload


def create(bucket: Bucket, key: str, info: ObjectInfo) -> Upload:
    """Begin an upload that nobody goes on with."""
    with bucket.translating(key):
        answer = bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key, **properties(key, info.sha256))
    return Upload(bucket=bucket, key=key, id=bucket.answered(answer, "UploadId"), touched=datetime.now(UTC))


def complete(upload: Upload, etags: Mapping[int, str]) -> None:
    """Make an object of the parts, which must be all that were sent, and remove the label."""
    parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in sorted(etags.items())]
    with upload.bucket.translating(upload.key):
        upload.bucket.client.complete_multipart_upload(
            Bucket=upload.bucket.name, Key=upload.key, UploadId=upload.id, MultipartUpload={"Parts": parts}
        )
    remove_labels(upload)


def abort(upload: Upload) -> None:
    """Remove an upload, its parts and its label."""
    # It is gone already, or may not be removed by us: the server's own rules will.
    with suppress(StoreError), upload.bucket.translating(upload.key):
        upload.bucket.client.abort_multipart_upload(Bucket=upload.bucket.name, Key=upload.key, UploadId=upload.id)
    remove_labels(upload)


def remove_labels(upload: Upload) -> None:
    """Remove what an upload is told by, when there is nothing left to go on with."""
    for each in upload.labels:
        abort(each)


def find(bucket: Bucket, key: str, sha256: str, *, fits: Callable[[Upload], bool], abandoned_s: float) -> Upload | None:
    """
    Return the unfinished upload of an object that can be gone on with and has the most parts, or None.

    Args:
        bucket: Where.
        key: The object.
        sha256: Its digest; an upload that was begun with another one, or does not tell, is not gone on with.
        fits: Tells whether the parts that are there are the object's.
        abandoned_s: Another upload of the key that was idle for so long is removed.

    """
    listed = _listed(bucket, key)
    begun = [_with_parts(each) for each in listed if each.key == key]
    ours = [each for each in map(partial(_labelled, sha256), filter(fits, begun)) if each.labels]
    chosen = max(ours, key=lambda each: len(each.parts), default=None)

    kept = [each for each in begun if (chosen and each.id == chosen.id) or not each.is_idle(abandoned_s)]
    told = tuple(each.label_key("") for each in kept)
    labels = [each for each in listed if _LABEL.fullmatch(each.key.removeprefix(key)) and not each.key.startswith(told)]
    for each in (*begun, *labels):
        if each not in kept and each.is_idle(abandoned_s):
            abort(each)
    return chosen


def _labelled(sha256: str, upload: Upload) -> Upload:
    """Return an upload with the labels that say that it was begun for an object of this digest."""
    key = upload.label_key(sha256)
    return replace(upload, labels=tuple(each for each in _listed(upload.bucket, key) if each.key == key))


def _listed(bucket: Bucket, prefix: str) -> list[Upload]:
    """Return the unfinished uploads of keys that begin so, without their parts."""
    told: list[dict[str, Any]] = []
    with _as_nothing(), bucket.translating(prefix):
        pages = bucket.client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket.name, Prefix=prefix)
        told = [each for page in pages for each in page.get("Uploads", ())]
    return [Upload(bucket=bucket, key=each["Key"], id=each["UploadId"], touched=each["Initiated"]) for each in told]


def _with_parts(upload: Upload) -> Upload:
    asked = {"Bucket": upload.bucket.name, "Key": upload.key, "UploadId": upload.id}
    told: list[dict[str, Any]] = []
    touched = datetime.now(UTC)  # one that we may not look into may be under way
    with _as_nothing(), upload.bucket.translating(upload.key):
        pages = upload.bucket.client.get_paginator("list_parts").paginate(**asked)
        told = [each for page in pages for each in page.get("Parts", ())]
        touched = max([upload.touched, *(each["LastModified"] for each in told)])
    parts = {each["PartNumber"]: (etag_of(each), each["Size"]) for each in told}
    return replace(upload, parts=parts, touched=touched)


@contextmanager
def _as_nothing() -> Iterator[None]:
    """Go on where a server does not tell, or not us, or where another process was faster."""
    try:
        yield
    except StoreError as error:
        if isinstance(error, StoreUnavailable) and code_of(error) not in TAKEN_AWAY:
            raise
