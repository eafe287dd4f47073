"""S3Store: objects in a bucket of S3, or of anything that speaks its protocol."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from shlex import quote
from typing import TYPE_CHECKING, Self

from keynet_core._durable import replacing, sha256_of
from keynet_core._errors import ObjectMissing, StoreError, StoreForbidden
from keynet_core._file_errors import refuse_no_file, translating_files
from keynet_core._objects import (
    ObjectInfo,
    copy_through_a_file,
    is_key,
    refuse_other_bytes,
    to_expires_s,
    to_key,
    to_prefix,
    without_secrets,
)
from keynet_core._s3_client import Bucket, refuse_without_boto
from keynet_core._s3_copy import Labelled, copy_object
from keynet_core._s3_download import digest_object, read_into, read_object
from keynet_core._s3_transfers import MAX_KEY_BYTES, Transfers, head, recorded_sha256
from keynet_core._s3_upload import put_in_parts, put_whole
from keynet_core._settings import S3Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keynet_core._objects import ObjectStore

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_EXAMPLE = "an S3 store is s3://bucket or s3://bucket/prefix"


class S3Store:
    """
    Objects in a bucket, each with its SHA-256 in its metadata.

    A put is believed when the server proves it. It compares every body with the SHA-256 that was signed, and answers
    with the MD5 of an object that was put in one request; of one put in parts, and where an ETag is no MD5, it is asked
    for the size and the digest that it has.

    Nothing is asked of the server when the store is opened. A server that accepts a connection and never answers is
    given up, with StoreUnavailable, after three times `timeout_s` and at most three seconds: about a minute. So is a
    body that hardly comes: what brings fewer than 16 KiB, or its rest, in `timeout_s` is asked for again, twice.

    Args:
        bucket: Its name.
        prefix: What every key of this store begins with in the bucket, without a slash at its end.
        settings: Where the server is.
        transfers: How large objects travel.

    Raises:
        StoreError: The bucket or the prefix has a name that S3 does not take.
        MissingDependency: boto3 is not installed.

    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        settings: S3Settings | None = None,
        transfers: Transfers | None = None,
    ) -> None:
        refuse_without_boto()
        if not _BUCKET.fullmatch(bucket) or ".." in bucket:
            raise StoreError(
                f"{bucket!r:.100} is no name of a bucket: 3 to 63 letters, digits, dots and hyphens", hint=_EXAMPLE
            )
        self._prefix = f"{to_key(prefix)}/" if prefix else ""
        self._bucket = Bucket(bucket, settings or S3Settings())
        self._transfers = transfers or Transfers()
        self._is_there = False

    @classmethod
    def from_url(cls, url: str) -> Self:
        """
        Open `s3://bucket/prefix`, with the settings of the environment.

        Raises:
            StoreError: The URL names no bucket, or more than a bucket and a prefix.

        """
        from urllib.parse import urlsplit

        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise StoreError(
                f"{without_secrets(url)!r:.200} is no address of a store: {error}", hint=_EXAMPLE
            ) from error
        if "@" in parts.netloc or parts.query or parts.fragment or not parts.netloc:
            raise StoreError(f"{without_secrets(url)!r:.200} is no bucket and prefix alone", hint=_EXAMPLE)
        return cls(parts.netloc, parts.path.strip("/"), settings=read_settings(S3Settings, os.environ))

    @property
    def url(self) -> str:
        """The store's address."""
        return f"s3://{self._bucket.name}/{self._prefix}".rstrip("/")

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Store bytes under a key."""
        from io import BytesIO

        path, info = self._path(key), _describe(data)
        if len(data) <= self._transfers.part_bytes:
            put_whole(self._bucket, path, data, info)
        else:
            put_in_parts(self._bucket, path, BytesIO(data), info, self._transfers)
        return info

    def put_file(self, key: str, source: Path, *, sha256: str | None = None) -> ObjectInfo:
        """
        Store a file's bytes under a key; one larger than 16 MB in parts, going on where a killed upload stopped.

        Raises:
            StoreError: There is no such file.
            ObjectCorrupt: The file does not hold what it is known to hold, or changed meanwhile.

        """
        path = self._path(key)
        refuse_no_file(source, key)
        with translating_files(key, source.parent), source.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes <= self._transfers.part_bytes:
                data = file.read()
                info = _describe(data)
                refuse_other_bytes(source, info.sha256, sha256, hint=f"sha256sum {quote(str(source))}")
                put_whole(self._bucket, path, data, info)
            else:
                info = ObjectInfo(size_bytes=size_bytes, sha256=sha256 or sha256_of(source))
                put_in_parts(self._bucket, path, file, info, self._transfers)
            return info

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Return the bytes under a key."""
        return read_object(self._bucket, self._path(key), max_bytes=max_bytes)

    def get_file(self, key: str, target: Path) -> ObjectInfo:
        """Write the bytes under a key into a file."""
        path = self._path(key)
        with translating_files(key, target.parent), replacing(target) as staged, staged.open("r+b") as file:
            return read_into(self._bucket, path, file, self._transfers)

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is under a key, or None; an object that another tool stored is read for its digest."""
        path = self._path(key)
        try:
            there = head(self._bucket, path)
            if (sha256 := recorded_sha256(there)) is None:
                return digest_object(self._bucket, path)
        except ObjectMissing:
            self._refuse_no_bucket()
            return None
        return ObjectInfo(size_bytes=there["ContentLength"], sha256=sha256)

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with `prefix`, sorted; names that are no keys of this seam are left out."""
        begins = f"{self._prefix}{to_prefix(prefix)}"
        with self._bucket.translating(begins):
            pages = self._bucket.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket.name, Prefix=begins):
                self._bucket.answered(page, "Name")
                keys = (each["Key"].removeprefix(self._prefix) for each in page.get("Contents", ()))
                yield from filter(is_key, keys)

    def delete(self, key: str) -> None:
        """Remove what is under a key."""
        path = self._path(key)
        with self._bucket.translating(path):
            self._bucket.client.delete_object(Bucket=self._bucket.name, Key=path)

    def copy_from(self, source: ObjectStore, source_key: str, key: str) -> ObjectInfo:
        """Store what another store has; between buckets of one server, the bytes stay there."""
        path = self._path(key)
        if not isinstance(source, S3Store) or source._bucket.settings != self._bucket.settings:  # noqa: SLF001 - our own
            return copy_through_a_file(source, source_key, self, key)
        taken = Labelled.look(source._bucket, source._path(source_key))  # noqa: SLF001 - our own
        if taken is None:
            return copy_through_a_file(source, source_key, self, key)
        if (taken.bucket.name, taken.key) != (self._bucket.name, path):
            copy_object(taken, (self._bucket, path), self._transfers)
        return taken.info

    def presign(self, key: str, *, expires_s: int) -> str:
        """Return a URL that anybody may read the object by, until it expires, or the keys that signed it do."""
        path = self._path(key)
        to_expires_s(key, expires_s)
        head(self._bucket, path)
        with self._bucket.translating(path):
            url: str = self._bucket.client.generate_presigned_url(
                "get_object", Params={"Bucket": self._bucket.name, "Key": path}, ExpiresIn=expires_s
            )
        return url

    def _path(self, key: str) -> str:
        path = f"{self._prefix}{to_key(key)}"
        if len(path.encode()) > MAX_KEY_BYTES:
            raise StoreError(
                f"{key!r:.100} is too long: {self.url} has no place for keys of over {MAX_KEY_BYTES} bytes",
                hint="use a shorter key, or a store with a shorter prefix",
            )
        return path

    def _refuse_no_bucket(self) -> None:
        """Ask once whether there is a bucket at all: of an object, a server says the same when there is none."""
        if self._is_there:
            return
        with suppress(StoreForbidden), self._bucket.translating():  # keys that may not ask of the bucket may go on
            self._bucket.client.head_bucket(Bucket=self._bucket.name)
        self._is_there = True


def _describe(data: bytes) -> ObjectInfo:
    from hashlib import sha256

    return ObjectInfo(size_bytes=len(data), sha256=sha256(data).hexdigest())
