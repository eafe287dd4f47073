"""
FsspecStore: objects in Google Cloud Storage or Azure Blob Storage, through the file systems of fsspec.

What is tested is this adapter, over fsspec's own file systems in memory and on disk. Google and Azure themselves were
not run; Azurite, the emulator of Azure's storage, was once, by hand. How long a server may be silent is the libraries'
to bound, and a digest is computed by reading the object, because they have no metadata in common.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from functools import partial
from shlex import quote
from typing import TYPE_CHECKING, Any, Self

from keynet_core._durable import replacing, sha256_of
from keynet_core._errors import (
    MissingDependency,
    ObjectCorrupt,
    ObjectMissing,
    StoreError,
    StoreUnavailable,
    StoreUnsupported,
)
from keynet_core._file_errors import refuse_no_file, translating_files
from keynet_core._fsspec_errors import AGAIN, LOOK, translating_fsspec
from keynet_core._objects import (
    ObjectInfo,
    copy_through_a_file,
    is_key,
    refuse_other_bytes,
    refuse_over,
    to_expires_s,
    to_key,
    to_prefix,
    without_secrets,
)
from keynet_core._progress import metered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from keynet_core._objects import ObjectStore

_EXTRAS = {"gs": ("gcsfs", "gcs"), "abfs": ("adlfs", "azure"), "abfss": ("adlfs", "azure")}
"""Scheme to the library that fsspec loads for it, and the extra of keynet-core that brings it."""

_VERSIONED = "?#"
"""Behind these, gcsfs and adlfs look for the version of an object, and store it under another name than its key."""

_BLOCK_BYTES = 8 << 20
_EXAMPLE = "a store is gs://bucket/prefix, or abfs://container@account.dfs.core.windows.net/prefix"


class FsspecStore:
    """
    Objects below one path of a file system.

    Args:
        url: The store's address.
        root: The path on the file system that keys stand below.
        filesystem: Returns the file system; asked each time, because a forked child needs one of its own.
        unfit: The letters that the file system does not read as part of a name.

    """

    def __init__(self, url: str, root: str, filesystem: Callable[[], Any], *, unfit: str = "") -> None:
        self._url, self._root, self._filesystem = url.rstrip("/"), root.rstrip("/"), filesystem
        self._unfit = unfit

    @classmethod
    def from_url(cls, url: str) -> Self:
        """
        Open `gs://bucket/prefix` or `abfs://container@account.dfs.core.windows.net/prefix`; keys as the library has it.

        Raises:
            MissingDependency: The library for the scheme is not installed.
            StoreError: The URL names no bucket, or carries a password or a query.

        """
        from urllib.parse import urlsplit

        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise StoreError(f"{without_secrets(url)!r:.200} is no address: {error}", hint=_EXAMPLE) from error
        library, extra = _EXTRAS[parts.scheme]
        if not parts.netloc or ":" in parts.netloc or parts.query or parts.fragment:
            raise StoreError(f"{without_secrets(url)!r:.200} is no bucket and prefix alone", hint=_EXAMPLE)
        _refuse_without(library, extra, parts.scheme)
        with translating_fsspec(url):
            return cls(url, _at(url)[1], partial(_filesystem_at, url), unfit=_VERSIONED)

    @property
    def url(self) -> str:
        """The store's address."""
        return self._url

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Store bytes under a key."""
        from hashlib import sha256

        path = self._path(key)
        with _putting(path):
            self._filesystem().pipe_file(path, data)
        return self._confirmed(path, ObjectInfo(size_bytes=len(data), sha256=sha256(data).hexdigest()))

    def put_file(self, key: str, source: Path, *, sha256: str | None = None) -> ObjectInfo:
        """
        Store a file's bytes under a key.

        Raises:
            StoreError: There is no such file.
            ObjectCorrupt: The file does not hold what it is known to hold.

        """
        path = self._path(key)
        refuse_no_file(source, key)
        with translating_files(key, source.parent):
            info = ObjectInfo(size_bytes=source.stat().st_size, sha256=sha256_of(source))
        hint = f"sha256sum {quote(str(source))}"
        refuse_other_bytes(source, info.sha256, sha256, hint=hint)
        with metered(f"storing {key}", info.size_bytes) as advance, _putting(path):
            self._filesystem().put_file(str(source), path)
            advance(info.size_bytes)
        try:
            with translating_files(key, source.parent):
                refuse_other_bytes(source, sha256_of(source), info.sha256, hint=hint)
        except ObjectCorrupt:
            self.delete(key)  # what was sent is neither the file that was nor the one that is
            raise
        return self._confirmed(path, info)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Return the bytes under a key."""
        path = self._path(key)
        size_bytes = self._size_of(path)
        refuse_over(key, size_bytes, max_bytes)
        with translating_fsspec(path):
            data: bytes = self._filesystem().cat_file(path)
        _refuse_truncated(path, len(data), size_bytes)
        return data

    def get_file(self, key: str, target: Path) -> ObjectInfo:
        """Write the bytes under a key into a file."""
        path = self._path(key)
        size_bytes = self._size_of(path)
        with (
            translating_files(key, target.parent),
            replacing(target) as staged,
            staged.open("wb") as file,
            metered(f"fetching {key}", size_bytes) as advance,
        ):

            def take(chunk: bytes) -> None:
                file.write(chunk)
                advance(len(chunk))

            return self._read(path, size_bytes, take)

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is under a key, or None; the object is read for its digest."""
        path = self._path(key)
        try:
            return self._read(path, self._size_of(path), lambda _chunk: None)
        except ObjectMissing:
            return None

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with `prefix`, sorted; names that are no keys of this seam are left out."""
        folder = to_prefix(prefix).rpartition("/")[0]
        with translating_fsspec(f"{self._root}/{prefix}"):
            paths = self._filesystem().find(f"{self._root}/{folder}".rstrip("/"))
        keys = (path.removeprefix(f"{self._root}/") for path in paths)
        yield from sorted(key for key in keys if key.startswith(prefix) and is_key(key))

    def delete(self, key: str) -> None:
        """Remove what is under a key."""
        path = self._path(key)
        try:
            self._size_of(path)
            with translating_fsspec(path):
                self._filesystem().rm_file(path)
        except ObjectMissing:
            return

    def copy_from(self, source: ObjectStore, source_key: str, key: str) -> ObjectInfo:
        """Store what another store has, through a temporary file."""
        return copy_through_a_file(source, source_key, self, key)

    def presign(self, key: str, *, expires_s: int) -> str:
        """
        Return a URL that anybody may read the object by, until it expires.

        Raises:
            StoreUnsupported: The file system cannot sign.

        """
        path = self._path(key)
        to_expires_s(key, expires_s)
        self._size_of(path)
        try:
            with translating_fsspec(path):
                url: str = self._filesystem().sign(path, expiration=expires_s)
        except NotImplementedError as error:
            raise StoreUnsupported(f"{self._url} cannot sign URLs", hint="hand out the bytes of get") from error
        return url

    def _path(self, key: str) -> str:
        if set(to_key(key)) & set(self._unfit):
            raise StoreError(
                f"{self._url} has no place for {key!r:.200}: its keys have none of {self._unfit}",
                hint="use a key such as images/cat.png",
            )
        return f"{self._root}/{key}"

    def _size_of(self, path: str) -> int:
        with translating_fsspec(path):
            info = self._filesystem().info(path)
        if info["type"] != "file":
            raise ObjectMissing(f"{self._url} has no object {path.removeprefix(self._root + '/')}", hint=LOOK)
        return int(info["size"])

    def _read(self, path: str, size_bytes: int, take: Callable[[bytes], None]) -> ObjectInfo:
        """Hand the bytes of an object to `take`, a few at a time, and return what they were."""
        from hashlib import sha256

        digest, count = sha256(), 0
        with translating_fsspec(path):
            file = self._filesystem().open(path, "rb", block_size=_BLOCK_BYTES)
        with closing(file):
            while chunk := _read_from(file, path):
                digest.update(chunk)
                count += len(chunk)
                take(chunk)
        _refuse_truncated(path, count, size_bytes)
        return ObjectInfo(size_bytes=size_bytes, sha256=digest.hexdigest())

    def _confirmed(self, path: str, info: ObjectInfo) -> ObjectInfo:
        _refuse_truncated(path, self._size_of(path), info.size_bytes)
        return info


def _at(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, which fsspec keeps for this process, and the path on it."""
    from fsspec.core import url_to_fs

    found: tuple[Any, str] = url_to_fs(url, use_listings_cache=False)
    return found


def _filesystem_at(url: str) -> Any:
    return _at(url)[0]


def _read_from(file: Any, path: str) -> bytes:
    # What taking the bytes raises is another's trouble, so only the reading is translated.
    with translating_fsspec(path):
        chunk: bytes = file.read(_BLOCK_BYTES)
        return chunk


@contextmanager
def _putting(path: str) -> Iterator[None]:
    """Say what is missing where something is put: its bucket."""
    try:
        with translating_fsspec(path):
            yield
    except ObjectMissing as error:
        raise StoreError(f"there is no bucket or container for {path}", hint=LOOK) from error


def _refuse_without(library: str, extra: str, scheme: str) -> None:
    from importlib.util import find_spec

    if find_spec(library) is None:
        raise MissingDependency(
            f"{scheme}:// needs {library}, which is not installed", hint=f"pip install 'keynet-core[{extra}]'"
        )


def _refuse_truncated(path: str, got: int, expected: int) -> None:
    if got != expected:
        raise StoreUnavailable(f"{path} has {got} bytes where {expected} were expected", hint=AGAIN)
