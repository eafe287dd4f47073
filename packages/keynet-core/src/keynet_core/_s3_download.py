"""Bytes from S3: whole or not at all, several ranges at once, each body that breaks off asked for again."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from keynet_core._crew import crew_of
from keynet_core._errors import ObjectCorrupt, StoreError, StoreUnavailable
from keynet_core._objects import ObjectInfo, refuse_other_bytes, refuse_over
from keynet_core._progress import metered
from keynet_core._s3_body import pieces_of
from keynet_core._s3_client import ATTEMPTS
from keynet_core._s3_errors import AGAIN, code_of
from keynet_core._s3_transfers import recorded_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    from keynet_core._s3_client import Bucket
    from keynet_core._s3_transfers import Transfers

T = TypeVar("T")

_SLICE_BYTES = 256 << 10
_AHEAD = 4
"""How many parts the threads may go on with while one is taken."""

_REPLACED = {"PreconditionFailed", "412"}
_EMPTY = {"InvalidRange", "416"}


def read_object(bucket: Bucket, key: str, *, max_bytes: int) -> bytes:
    """
    Return an object's bytes.

    Raises:
        ObjectTooLarge: They are more than `max_bytes`.
        ObjectCorrupt: They are not those whose digest the object carries.

    """

    def read(response: Mapping[str, Any]) -> bytes:
        refuse_over(key, response["ContentLength"], max_bytes)
        data = b"".join(_read_exactly(bucket, key, response, response["ContentLength"]))
        _refuse_damaged(bucket, key, hashlib.sha256(data).hexdigest(), response)
        return data

    return _ask(bucket, key, read)


def digest_object(bucket: Bucket, key: str) -> ObjectInfo:
    """Read an object that carries no digest, and return what it is."""

    def read(response: Mapping[str, Any]) -> ObjectInfo:
        digest, size_bytes = hashlib.sha256(), 0
        for piece in pieces_of(response, key, timeout_s=bucket.settings.timeout_s):
            digest.update(piece)
            size_bytes += len(piece)
        _refuse_other_size(key, size_bytes, response["ContentLength"])
        return ObjectInfo(size_bytes=size_bytes, sha256=digest.hexdigest())

    return _ask(bucket, key, read)


def read_into(bucket: Bucket, key: str, file: BinaryIO, transfers: Transfers) -> ObjectInfo:
    """
    Write an object's bytes into an open, empty file.

    Raises:
        ObjectCorrupt: They are not those whose digest the object carries.

    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _read_once(bucket, key, file, transfers)
        except (ObjectCorrupt, StoreUnavailable) as error:
            # Replaced by its writer between two ranges, or damaged on its way.
            if attempt == ATTEMPTS or not (isinstance(error, ObjectCorrupt) or code_of(error) in _REPLACED):
                raise
            file.seek(0)
            file.truncate()
    raise AssertionError


def _read_once(bucket: Bucket, key: str, file: BinaryIO, transfers: Transfers) -> ObjectInfo:
    part_bytes = transfers.range_bytes
    first = _open_first(bucket, key, part_bytes)
    size_bytes, digest = _total(first), hashlib.sha256()

    def fetch(start: int, opened: Mapping[str, Any] | None = None) -> list[bytes]:
        stop = min(start + part_bytes, size_bytes)
        asked = {"Range": f"bytes={start}-{stop - 1}", "IfMatch": first["ETag"]} if size_bytes else {}
        return _ask(bucket, key, lambda response: _read_exactly(bucket, key, response, stop - start), opened, **asked)

    def take(part: list[bytes]) -> None:
        advance(_append(file, part, digest))

    with metered(f"fetching s3://{bucket.name}/{key}", size_bytes) as advance:
        if size_bytes <= part_bytes:
            take(fetch(0, first))
        else:
            _in_order(fetch, first, range(0, size_bytes, part_bytes), take, transfers.workers_for(part_bytes))
    _refuse_damaged(bucket, key, digest.hexdigest(), first)
    return ObjectInfo(size_bytes=size_bytes, sha256=digest.hexdigest())


def _in_order(
    fetch: Callable[..., list[bytes]],
    first: Mapping[str, Any],
    starts: range,
    take: Callable[[list[bytes]], None],
    workers: int,
) -> None:
    """Fetch several parts at once, and take them one after the other: a digest has an order."""
    waiting: deque[Future[list[bytes]]] = deque()
    with crew_of(workers, ahead=_AHEAD) as crew:
        for start in starts:
            if len(waiting) >= workers + _AHEAD:
                take(waiting.popleft().result())
            waiting.append(crew.hand(fetch, start, first if start == 0 else None))
        while waiting:
            take(waiting.popleft().result())


def _open_first(bucket: Bucket, key: str, part_bytes: int) -> Mapping[str, Any]:
    try:
        return _open(bucket, key, Range=f"bytes=0-{part_bytes - 1}")
    except StoreError as error:
        if code_of(error) not in _EMPTY:
            raise
        return _open(bucket, key)  # an object without bytes has no range


def _total(response: Mapping[str, Any]) -> int:
    """Return the size of the whole object of which this is a range, or all."""
    told = str(response.get("ContentRange", "")).rpartition("/")[2]
    return int(told) if told.isdigit() else int(response["ContentLength"])


def _open(bucket: Bucket, key: str, **options: object) -> Mapping[str, Any]:
    with bucket.translating(key):
        response: Mapping[str, Any] = bucket.client.get_object(Bucket=bucket.name, Key=key, **options)
    bucket.answered(response, "ETag")
    return response


def _ask(
    bucket: Bucket,
    key: str,
    read: Callable[[Mapping[str, Any]], T],
    opened: Mapping[str, Any] | None = None,
    **options: object,
) -> T:
    """Ask for an object and read its body; boto3 asks again on its own, but not for a body that broke off."""
    for attempt in range(1, ATTEMPTS + 1):
        response = opened or _open(bucket, key, **options)
        opened = None
        try:
            with closing(response["Body"]), bucket.translating(key):
                return read(response)
        except (StoreUnavailable, ObjectCorrupt):
            if attempt == ATTEMPTS:
                raise
    raise AssertionError


def _append(file: BinaryIO, part: list[bytes], digest: hashlib._Hash) -> int:
    start = file.tell()
    for piece in part:
        # A little at a time: what was written is hashed while the processor still has it at hand.
        for at in range(0, len(piece), _SLICE_BYTES):
            data = memoryview(piece)[at : at + _SLICE_BYTES]
            file.write(data)
            digest.update(data)
    size_bytes = file.tell() - start
    # The disk may begin now, so that little is left to wait for when the whole file is synced.
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), start, size_bytes, os.POSIX_FADV_DONTNEED)
    return size_bytes


def _read_exactly(bucket: Bucket, key: str, response: Mapping[str, Any], size_bytes: int) -> list[bytes]:
    if response["ContentLength"] != size_bytes:
        raise StoreError(
            f"the store sends {response['ContentLength']} bytes of {key}, asked for {size_bytes}",
            hint="look at MLFLOW_S3_ENDPOINT_URL: what answers there knows no ranges",
        )
    pieces = list(pieces_of(response, key, timeout_s=bucket.settings.timeout_s))
    _refuse_other_size(key, sum(map(len, pieces)), size_bytes)
    return pieces


def _refuse_other_size(key: str, got: int, told: int) -> None:
    if got != told:
        raise StoreUnavailable(f"the store sent {got} bytes of {key}, and told of {told}", hint=AGAIN)


def _refuse_damaged(bucket: Bucket, key: str, got: str, response: Mapping[str, Any]) -> None:
    refuse_other_bytes(
        f"s3://{bucket.name}/{key}", got, recorded_sha256(response), hint="store it again: its bytes are damaged"
    )
