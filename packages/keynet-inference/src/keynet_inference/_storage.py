"""Storage: files of a function, by key or URL; what it may read is a short list, and everything else is refused."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

from keynet_core import LocalStore, StoreError, StoreUnsupported, open_store, read_settings, to_key
from keynet_inference._errors import SourceRefused
from keynet_inference._media import guess_ending
from keynet_inference._settings import StorageSettings

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import IO

    from keynet_core import ObjectStore

MAX_BYTES = 512 * 1024 * 1024


class Storage:
    """
    Reads and writes a function's files: `storage.get(url)` and `storage.put(buffer)`.

    Args:
        url: The store: a directory, or a URL. Default: the bucket `AWS_BUCKET_NAME`, else `$KEYNET_HOME/storage`.
        readable: Directories beside the store that `file://` URLs may be read from.
        max_bytes: The largest object that is read or written; an object is held in memory.

    Raises:
        StoreUnsupported: No engine is known for the URL's scheme.

    """

    def __init__(
        self, url: str | Path | None = None, *, readable: Iterable[str | Path] = (), max_bytes: int = MAX_BYTES
    ) -> None:
        settings = read_settings(StorageSettings, os.environ)
        self._store = _open(str(url) if url else settings.store_url)
        self._readable = tuple(LocalStore(Path(each)) for each in readable)
        self._max_bytes = max_bytes

    @property
    def url(self) -> str:
        """The store's address."""
        return self._store.url

    def get(self, url_or_key: str) -> BytesIO:
        """
        Return an object as a buffer that stands at its beginning.

        Args:
            url_or_key: A key of this store, a URL that `put` returned, or a `file://` URL in a readable directory.

        Raises:
            SourceRefused: It is something else; nothing is fetched from the network.
            ObjectMissing: There is no such object.
            StoreError: It has more than `max_bytes`.

        """
        place = self._find(url_or_key, (self._store, *self._readable))
        return BytesIO(place.store.get(place.key, max_bytes=self._max_bytes))

    def put(self, buffer: bytes | str | Path | IO[bytes] | IO[str], key: str | None = None) -> str:
        """
        Store the whole of a buffer, wherever it stands, and return the URL that `get` reads it by.

        Args:
            buffer: Bytes, text, a file that is open, or the path of one. A file that can seek is stored from its
                beginning and stands afterwards where it stood; another is stored from where it stands.
            key: Where to store it. Default: `YYYY/MM/DD/<uuid>.<ending>`, with the ending its bytes tell.

        Raises:
            SourceRefused: It is a path that cannot be read, or something else.
            StoreError: It has more than `max_bytes`.
            StoreFull: No room is left.

        """
        data = _read(buffer, self._max_bytes)
        if len(data) > self._max_bytes:
            raise StoreError(
                f"what was handed over is larger than the {self._max_bytes} bytes this storage holds in memory",
                hint="Storage(max_bytes=...)",
            )
        found = to_key(key) if key is not None else _new_key(data)
        self._store.put(found, data)
        return f"{self._store.url}/{quote(found)}"

    def presign(self, key_or_url: str, expires_s: int = 3600) -> str:
        """
        Return a URL that hands out an object of this store to whoever has it, for `expires_s` seconds.

        A store in a directory cannot bound it: its URL is the file's own.

        Raises:
            SourceRefused: It is no object of this store.
            ObjectMissing: There is no such object.

        """
        return self._store.presign(self._find(key_or_url, (self._store,)).key, expires_s=expires_s)

    def _find(self, text: object, stores: Iterable[ObjectStore]) -> _Place:
        if not isinstance(text, str) or not text:
            raise SourceRefused(f"storage reads a key or a URL, not {text!r}", hint="was the parameter handed over?")
        if "://" not in text and not text.lower().startswith("file:"):
            return _Place(self._store, to_key(text))
        for store in stores:
            key = _key_in(store, text)
            if key:
                return _Place(store, to_key(key))
        allowed = ", ".join(each.url for each in stores)
        raise SourceRefused(
            f"storage does not read {text!r}: it reads its own keys, and URLs below {allowed}",
            hint="hand over what Storage.put returned, or name the directory: Storage(readable=[...])",
        )


class _Place(NamedTuple):
    store: ObjectStore
    key: str


def _open(url: str) -> ObjectStore:
    try:
        return open_store(url)
    except StoreUnsupported as error:
        raise StoreUnsupported(error.message, hint="unset AWS_BUCKET_NAME, or Storage('/a/directory')") from error


def _key_in(store: ObjectStore, url: str) -> str | None:
    """Return the key a URL has in a store, or None where it has none."""
    base = f"{store.url}/"
    if url.startswith(base):
        return unquote(url.removeprefix(base))
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in {"", "localhost"} or not isinstance(store, LocalStore):
        return None
    if parts.query or parts.fragment or "\x00" in unquote(parts.path):
        return None
    path, root = Path(unquote(parts.path)).resolve(), store.root.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) and path != root else None


def _new_key(data: bytes) -> str:
    return f"{datetime.now(UTC):%Y/%m/%d}/{uuid4()}.{guess_ending(data)}"


def _read(buffer: Any, max_bytes: int) -> bytes:
    """Return the whole of a buffer, or a little more than `max_bytes` of it."""
    if isinstance(buffer, str):
        return buffer.encode()
    if isinstance(buffer, bytes | bytearray | memoryview):
        return bytes(buffer)
    if isinstance(buffer, Path):
        return _read_path(buffer, max_bytes)
    if not hasattr(buffer, "read"):
        raise SourceRefused(
            f"storage puts bytes, text, a file or a path, not {type(buffer).__qualname__}",
            hint="write it into a BytesIO first: image.save(buffer, format='PNG'), numpy.save(buffer, array)",
        )
    return _read_file(buffer, max_bytes)


def _read_path(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise SourceRefused(f"storage cannot put {path}: {error.strerror or error}") from error


def _read_file(file: Any, max_bytes: int) -> bytes:
    if not file.seekable():
        return _to_bytes(file.read(max_bytes + 1))
    stood = file.tell()
    file.seek(0)
    try:
        return _to_bytes(file.read(max_bytes + 1))
    finally:
        file.seek(stood)


def _to_bytes(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else data
