"""LocalStore: objects as files below one directory."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Self

from keynet_core._durable import PART, copy_bytes, replacing, sweep_parts, write_durably
from keynet_core._errors import ObjectMissing, StoreError
from keynet_core._file_errors import refuse_no_file, translating_files
from keynet_core._objects import (
    ObjectInfo,
    refuse_other_bytes,
    refuse_over,
    to_expires_s,
    to_key,
    to_prefix,
    without_secrets,
)
from keynet_core._progress import metered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keynet_core._objects import ObjectStore

_EXAMPLE = "a local store is file:///an/absolute/path"


class LocalStore:
    """
    Objects as files below `root`; each put is fsynced, then renamed into place.

    What a killed put left half-written is removed by the next store that puts something into the same directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._swept: set[Path] = set()

    @classmethod
    def from_url(cls, url: str) -> Self:
        """
        Open `file:///srv/store`, or a plain path.

        Raises:
            StoreError: The URL names a host, or no directory.

        """
        from urllib.parse import unquote, urlsplit

        try:
            parts = urlsplit(url)
            path = Path(unquote(parts.path) if parts.scheme else url).expanduser()
        except (ValueError, RuntimeError) as error:
            raise StoreError(f"{url!r:.200} is no address of a local store: {error}", hint=_EXAMPLE) from error
        if parts.scheme and parts.netloc not in {"", "localhost"}:
            raise StoreError(f"{without_secrets(url)!r:.200} names a host", hint=_EXAMPLE)
        if not url.strip() or (parts.scheme and not parts.path):
            raise StoreError(f"{url!r} names no directory", hint=_EXAMPLE)
        return cls(path)

    @property
    def url(self) -> str:
        """The store's address."""
        return self.root.as_uri()

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Store bytes under a key."""
        import hashlib

        path = self._path(key)
        with translating_files(key, self.root):
            self._sweep(path.parent)
            write_durably(path, data)
        return ObjectInfo(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def put_file(self, key: str, source: Path, *, sha256: str | None = None) -> ObjectInfo:
        """
        Store a file's bytes under a key.

        Raises:
            StoreError: There is no such file.
            ObjectCorrupt: The file does not hold what it is known to hold.

        """
        path = self._path(key)
        refuse_no_file(source, key)
        with translating_files(key, self.root):
            self._sweep(path.parent)
            return _copy(source, path, f"storing {key}", sha256)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Return the bytes under a key."""
        path = self._existing(key)
        with translating_files(key, self.root), path.open("rb") as file:
            data = file.read(max_bytes + 1)
        refuse_over(key, len(data), max_bytes)
        return data

    def get_file(self, key: str, target: Path) -> ObjectInfo:
        """Write the bytes under a key into a file."""
        path = self._existing(key)
        with translating_files(key, target.parent):
            return _copy(path, target, f"fetching {key}")

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is under a key, or None; the digest is computed from the bytes as they are now."""
        import hashlib

        try:
            path = self._existing(key)
            with translating_files(key, self.root), path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                return ObjectInfo(size_bytes=size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
        except ObjectMissing:
            return None

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with `prefix`, sorted."""
        folder = to_prefix(prefix).rpartition("/")[0]
        start = self._path(folder) if folder else self.root
        with translating_files(prefix, self.root):
            keys = [path.relative_to(self.root).as_posix() for path in _objects_below(start)]
        yield from sorted(key for key in keys if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """Remove what is under a key."""
        try:
            path = self._existing(key)
            with translating_files(key, self.root):
                path.unlink()
        except ObjectMissing:
            return

    def copy_from(self, source: ObjectStore, source_key: str, key: str) -> ObjectInfo:
        """Store what another store has; a copy and no link, so that no two keys share the fate of one file."""
        path = self._path(key)
        self._sweep(path.parent)
        return source.get_file(source_key, path)

    def presign(self, key: str, *, expires_s: int) -> str:
        """Return the file's own URL: a local file is guarded by its permissions, and does not expire."""
        to_expires_s(key, expires_s)
        return self._existing(key).as_uri()

    def _sweep(self, directory: Path) -> None:
        if directory not in self._swept:
            self._swept.add(directory)
            sweep_parts(directory)

    def _existing(self, key: str) -> Path:
        path = self._path(key)
        with translating_files(key, self.root):
            if path.is_file():
                return path
        raise ObjectMissing(f"{self.url} has no object {key}", hint=f"ls -l {quote(str(path.parent))}")

    def _path(self, key: str) -> Path:
        path = self.root / to_key(key)
        if _is_part(path.name):
            raise StoreError(
                f"{key} is how this store calls an object that is still being written",
                hint=f"use a key whose name does not begin with . and end with {PART}",
            )
        if _leads_out(path, self.root):
            raise StoreError(
                f"{key} leads out of {self.root} through a symbolic link", hint=f"namei -l {quote(str(path))}"
            )
        return path


def _leads_out(path: Path, root: Path) -> bool:
    """Tell whether symbolic links lead out of the root, or in a circle."""
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:  # resolve() says so until Python 3.12 only
            return True
    return not path.resolve().is_relative_to(root.resolve())


def _copy(source: Path, target: Path, what: str, expected: str | None = None) -> ObjectInfo:
    with metered(what, source.stat().st_size) as advance, replacing(target) as staged:
        sha256 = copy_bytes(source, staged, advance)
        refuse_other_bytes(source, sha256, expected, hint=f"sha256sum {quote(str(source))}")
        size_bytes = staged.stat().st_size
    return ObjectInfo(size_bytes=size_bytes, sha256=sha256)


def _objects_below(start: Path) -> Iterator[Path]:
    if not start.is_dir():
        return
    for directory, _, names in os.walk(start, onerror=_fail):
        paths = (Path(directory, name) for name in names if not _is_part(name))
        yield from (path for path in paths if path.is_file() and not path.is_symlink())


def _fail(error: OSError) -> None:
    # Without it, a directory that cannot be read would be listed as empty.
    if not isinstance(error, FileNotFoundError):
        raise error


def _is_part(name: str) -> bool:
    return name.startswith(".") and name.endswith(PART)
