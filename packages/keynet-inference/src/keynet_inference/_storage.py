"""Storage: files of a function, by key or URL."""

from __future__ import annotations

import os
from io import BytesIO
from typing import TYPE_CHECKING

from keynet_core import ObjectTooLarge, StoreUnsupported, open_store, read_settings, to_key
from keynet_inference._settings import StorageSettings, read_s3_address

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import IO

    from keynet_core import ObjectStore

MAX_BYTES = 512 * 1024 * 1024


class Storage:
    """
    Reads and writes a function's files: `storage.get(url)` and `storage.put(buffer)`.

    Args:
        url: The store: a directory, or a URL. Default: the bucket `AWS_BUCKET_NAME`, else `$KEYNET_HOME/storage`.
        readable: What may be read beside the store: directories, prefixes such as `s3://uploads/images`, and hosts
            such as `https://images.example.com`, `https://*.example.com` or `https://*`.
            Default: `KEYNET_STORAGE_READABLE`, else nothing.
        max_bytes: The largest object that is read or written; an object is held in memory.
        timeout_s: How long one URL of the web may take in all; a store has time-outs of its own.

    Raises:
        SettingsInvalid: An argument, or a variable of the environment, cannot be used.
        StoreUnsupported: No engine is known for a URL's scheme.
        MissingDependency: The engine is not installed.

    """

    def __init__(
        self,
        url: str | Path | None = None,
        *,
        readable: Iterable[str | Path] | None = None,
        max_bytes: int = MAX_BYTES,
        timeout_s: float = 60.0,
    ) -> None:
        settings, s3 = read_settings(StorageSettings, os.environ), read_s3_address(os.environ)
        from keynet_inference._sources import Sources  # importing a function must not pay for storing

        self._store = _open(str(url) if url else settings.store_url)
        self._sources = Sources(self._store, settings.readable if readable is None else readable, s3)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    @property
    def url(self) -> str:
        """The store's address."""
        return self._store.url

    def get(self, url_or_key: str) -> BytesIO:
        """
        Return an object as a buffer that stands at its beginning.

        Args:
            url_or_key: A key of this store, a URL that `put` returned, a presigned URL of one of its objects, or a URL
                of what was made readable. A URL of the web is fetched as it stands: without this process's rights,
                without a proxy, and from no address inside that the configuration does not name.

        Raises:
            SourceRefused: It is something else, or the server refuses it.
            ObjectMissing: There is no such object.
            StoreUnavailable: The store or server does not answer, or not in time.
            ObjectTooLarge: It has more than `max_bytes`.

        """
        from keynet_inference._sources import Place

        found = self._sources.find(url_or_key)
        if isinstance(found, Place):
            return BytesIO(found.store.get(found.key, max_bytes=self._max_bytes))
        from keynet_inference._download import Download

        return BytesIO(Download(timeout_s=self._timeout_s, max_bytes=self._max_bytes).fetch(found, self._sources.admit))

    def put(self, buffer: bytes | str | Path | IO[bytes] | IO[str], key: str | None = None) -> str:
        """
        Store the whole of a buffer, wherever it stands, and return the URL that `get` reads it by.

        Args:
            buffer: Bytes, text, a file that is open, or the path of one. A file that can seek is stored from its
                beginning and stands afterwards where it stood; another is stored from where it stands.
            key: Where to store it. Default: `YYYY/MM/DD/<uuid>.<ending>`, with the ending its bytes tell. A store that
                keeps content types goes by the ending.

        Raises:
            SourceRefused: It is a path that cannot be read, or something else.
            ObjectTooLarge: It has more than `max_bytes`.
            StoreFull: No room is left.
            StoreUnavailable: The store does not answer.

        """
        from keynet_inference._buffers import read_buffer
        from keynet_inference._sources import to_url

        data = read_buffer(buffer, self._max_bytes)
        if len(data) > self._max_bytes:
            raise ObjectTooLarge(
                f"what was handed over is larger than the {self._max_bytes} bytes this storage holds in memory",
                hint="Storage(max_bytes=...)",
            )
        found = to_key(key) if key is not None else _new_key(data)
        self._store.put(found, data)
        return to_url(self._store, found)

    def presign(self, key_or_url: str, expires_s: int = 3600) -> str:
        """
        Return a URL that hands out an object of this store to whoever has it, for `expires_s` seconds.

        A store in a directory cannot bound it: its URL is the file's own.

        Raises:
            SourceRefused: It is no object of this store.
            ObjectMissing: There is no such object.

        """
        from keynet_inference._sources import find_object

        return self._store.presign(find_object(key_or_url, (self._store,)).key, expires_s=expires_s)


def _open(url: str) -> ObjectStore:
    try:
        return open_store(url)
    except StoreUnsupported as error:
        raise StoreUnsupported(error.message, hint="Storage('/a/directory'), or set AWS_BUCKET_NAME") from error


def _new_key(data: bytes) -> str:
    from datetime import UTC, datetime
    from uuid import uuid4

    from keynet_inference._media import guess_ending

    return f"{datetime.now(UTC):%Y/%m/%d}/{uuid4()}.{guess_ending(data)}"
