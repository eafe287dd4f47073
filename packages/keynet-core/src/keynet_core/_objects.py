"""Object stores: the seam, and which engine answers for the scheme of a URL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

from keynet_core._errors import ObjectCorrupt, ObjectTooLarge, StoreError, StoreUnsupported

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_FSSPEC = "keynet_core._fsspec_store:FsspecStore"
_ENGINES: Mapping[str, str] = {
    "file": "keynet_core._local_store:LocalStore",
    "s3": "keynet_core._s3_store:S3Store",
    "gs": _FSSPEC,
    "abfs": _FSSPEC,
    "abfss": _FSSPEC,
}
"""Scheme of a URL to `module:class` of its engine, whose `from_url` opens it."""

MAX_EXPIRES_S = 7 * 24 * 3600
"""The longest that a presigned URL can be good for: a week, as S3 bounds it."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_KEY = re.compile(r"[^\x00-\x1f\x7f\\\ud800-\udfff]{1,1024}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What a store knows of an object: its size, and the SHA-256 of its bytes in hexadecimal."""

    size_bytes: int
    sha256: str


class ObjectStore(Protocol):
    """
    Immutable bytes under keys such as `packages/mnist/ab12/model.onnx`.

    A put is whole or not at all, for every reader. Every method raises StoreUnavailable when the store does not
    answer in time, StoreForbidden when it does not accept who asks, and ObjectMissing for a key that is not there.
    """

    @property
    def url(self) -> str:
        """The store's address, without a slash at its end."""

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Store bytes under a key."""

    def put_file(self, key: str, source: Path, *, sha256: str | None = None) -> ObjectInfo:
        """
        Store a file's bytes under a key; memory does not grow with the file.

        Args:
            key: Where to.
            source: The file.
            sha256: What the file is known to hold. When it does not, ObjectCorrupt is raised and nothing is stored.

        """

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Return the bytes under a key, or raise ObjectTooLarge when they are more than `max_bytes`."""

    def get_file(self, key: str, target: Path) -> ObjectInfo:
        """Write the bytes under a key into a file, which appears whole or not at all, and is on the disk then."""

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is under a key, or None."""

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with `prefix`, sorted."""

    def delete(self, key: str) -> None:
        """Remove what is under a key; a key that is not there is removed already."""

    def copy_from(self, source: ObjectStore, source_key: str, key: str) -> ObjectInfo:
        """Store under `key` what `source` has under `source_key`; on one and the same server the bytes stay there."""

    def presign(self, key: str, *, expires_s: int) -> str:
        """
        Return a URL that hands out the bytes under a key, for `expires_s` seconds where the engine can bound it.

        Raises:
            StoreError: `expires_s` is not between 1 and 604800, a week.

        """


def open_store(url: str) -> ObjectStore:
    """
    Return the store at `url`; a text without a scheme is a local directory.

    `s3://bucket/prefix` needs `keynet-core[s3]`; `gs://` needs `[gcs]` and `abfs://` needs `[azure]`: neither Google's
    service nor Azure's was ever run with it.

    Raises:
        StoreUnsupported: No engine is known for the scheme.
        MissingDependency: The engine's library is not installed.

    """
    named = _SCHEME.match(url)
    scheme = named[1].lower() if named else "file"
    if scheme not in _ENGINES:
        known = ", ".join(f"{name}://" for name in _ENGINES)
        raise StoreUnsupported(
            f"no engine stores objects at {scheme:.40}:// ({without_secrets(url):.200}); known: {known}",
            hint="set KEYNET_STORE to a directory, for example file:///srv/keynet/store",
        )
    module, name = _ENGINES[scheme].split(":")
    store: ObjectStore = getattr(import_module(module), name).from_url(url)
    return store


def without_secrets(url: str) -> str:
    """Return an address as it may be shown: without the user, the password and the query that it may carry."""
    return re.sub(r"//[^/]*@", "//", url).partition("?")[0]


def to_key(text: object) -> str:
    """
    Return `text` as a key.

    Raises:
        StoreError: It is no text of 1 to 1024 characters, is absolute, climbs (`..`), or holds control characters,
            backslashes or halves of surrogate pairs.

    """
    if isinstance(text, str) and _KEY.fullmatch(text):
        path = PurePosixPath(text)
        if not path.is_absolute() and str(path) == text and ".." not in path.parts and text != ".":
            return text
    raise StoreError(
        f"{text!r:.200} is no key: keys are relative paths without '..', backslashes and control characters",
        hint="use a key such as images/cat.png",
    )


def is_key(text: str) -> bool:
    """Return whether `to_key` takes a text: a bucket may hold names that another tool made and this seam refuses."""
    try:
        to_key(text)
    except StoreError:
        return False
    return True


def to_prefix(text: str) -> str:
    """
    Return `text` as what keys can begin with.

    Raises:
        StoreError: No key begins so.

    """
    folder = text.rpartition("/")[0]
    if folder or text.startswith("/"):
        to_key(folder)
    return text


def to_expires_s(key: str, expires_s: int) -> int:
    """
    Return how long a presigned URL is good for.

    Raises:
        StoreError: It is not between one second and a week.

    """
    if not 1 <= expires_s <= MAX_EXPIRES_S:
        raise StoreError(
            f"a URL for {key} cannot expire after {expires_s} seconds",
            hint=f"use an expires_s of 1 to {MAX_EXPIRES_S}, a week",
        )
    return expires_s


def refuse_other_bytes(what: object, got: str, expected: str | None, *, hint: str) -> None:
    """
    Compare the SHA-256 of bytes with the one that they should have, if that is known.

    Args:
        what: A file, or the address of an object.
        got: What it has.
        expected: What it should have.
        hint: What to do when it has not.

    Raises:
        ObjectCorrupt: They differ.

    """
    if expected is not None and got != expected:
        raise ObjectCorrupt(f"{what} has sha256 {got[:12]}, not {expected[:12]}", hint=hint)


def refuse_over(key: str, size_bytes: int, max_bytes: int) -> None:
    """
    Compare the size of an object with what was asked for at most.

    Raises:
        ObjectTooLarge: It is larger.

    """
    if size_bytes > max_bytes:
        raise ObjectTooLarge(
            f"{key} is larger than the {max_bytes} bytes asked for", hint="raise max_bytes, or fetch it into a file"
        )


def copy_through_a_file(source: ObjectStore, source_key: str, target: ObjectStore, key: str) -> ObjectInfo:
    """Copy an object between two stores that do not know each other, through a temporary file."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    to_key(key)
    with TemporaryDirectory(prefix="keynet-copy-") as directory:
        staged = Path(directory, "object")
        info = source.get_file(source_key, staged)
        return target.put_file(key, staged, sha256=info.sha256)
