"""Object stores: the seam, and which engine answers for the scheme of a URL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

from keynet_core._errors import StoreError, StoreUnsupported

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_ENGINES: Mapping[str, str] = {"file": "keynet_core._local_store:LocalStore"}
"""Scheme of a URL to `module:class` of its engine, whose `from_url` opens it."""

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
    answer in time, and ObjectMissing for a key that is not there.
    """

    @property
    def url(self) -> str:
        """The store's address, without a slash at its end."""

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Store bytes under a key."""

    def put_file(self, key: str, source: Path) -> ObjectInfo:
        """Store a file's bytes under a key; memory does not grow with the file."""

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Return the bytes under a key, or raise StoreError when they are more than `max_bytes`."""

    def get_file(self, key: str, target: Path) -> ObjectInfo:
        """Write the bytes under a key into a file, which appears whole or not at all."""

    def stat(self, key: str) -> ObjectInfo | None:
        """Return what is under a key, or None."""

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with `prefix`, sorted."""

    def delete(self, key: str) -> None:
        """Remove what is under a key; a key that is not there is removed already."""

    def presign(self, key: str, *, expires_s: int) -> str:
        """Return a URL that hands out the bytes under a key, for `expires_s` seconds where the engine can bound it."""


def open_store(url: str) -> ObjectStore:
    """
    Return the store at `url`; a text without a scheme is a local directory.

    Raises:
        StoreUnsupported: No engine is known for the scheme.

    """
    named = _SCHEME.match(url)
    scheme = named[1].lower() if named else "file"
    if scheme not in _ENGINES:
        known = ", ".join(f"{name}://" for name in _ENGINES)
        shown = re.sub(r"//[^/]*@", "//", url).partition("?")[0]  # an address may carry a password
        raise StoreUnsupported(
            f"no engine stores objects at {scheme:.40}:// ({shown:.200}); known: {known}",
            hint="set KEYNET_STORE to a directory, for example file:///srv/keynet/store",
        )
    module, name = _ENGINES[scheme].split(":")
    store: ObjectStore = getattr(import_module(module), name).from_url(url)
    return store


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
    raise StoreError(f"{text!r:.200} is no key: keys are relative paths without '..', such as 'images/cat.png'")
