"""Versions: packages as objects, each below its version of a model; a manifest, put last, says that it is whole."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from keynet_core import (
    MAX_PROBE_BYTES,
    Manifest,
    ObjectMissing,
    PackageCorrupt,
    PackageInvalid,
    Probe,
    StoreError,
    package_key,
)
from keynet_server._errors import RepositoryFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keynet_core import ModelName, ModelPackage, ObjectStore, PackageFile

LINKED = "linked.pbtxt"
"""Beside the files of a package: what becomes the switch when the version's deployment is linked."""

_MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 4 << 20


class Versions:
    """
    The versions of every model in one store.

    Args:
        store: Where the objects are.

    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def numbers(self, name: ModelName) -> list[str]:
        """Return the versions of a model of which there is anything, ascending."""
        with translating_store(f"the versions of {name}"):
            paths = (key.split("/") for key in self._store.list(f"{name}/"))
            return sorted({path[1] for path in paths if len(path) > 2 and path[1].isdigit()}, key=int)

    def put(self, name: ModelName, version: str, package: ModelPackage, origin: ObjectStore) -> None:
        """
        Put a package that was fetched from `origin` and verified, in place of what there is of the version.

        What is there of the same package stays: a server that lost its claim may be putting it too.

        Raises:
            PackageCorrupt: What `origin` has of it is not any more what was fetched.

        """
        manifest = self._manifest(name, version)
        paths = (*(each.path for each in package.manifest.files), _MANIFEST, LINKED)
        kept = {to_key(name, version, path) for path in paths}
        if manifest is not None and manifest.digest != package.digest:
            self.remove(name, version)
        with translating_store(f"version {version} of {name}"):
            for key in set(self._store.list(f"{to_key(name, version)}/")) - kept:
                self._store.delete(key)
            for each in package.manifest.files:
                self._put_file(package, each, origin, to_key(name, version, each.path))
            self._store.put(to_key(name, version, _MANIFEST), package.manifest.to_json())

    def remove(self, name: ModelName, version: str) -> None:
        """Remove what there is of a version, and first what says that it is whole."""
        with translating_store(f"version {version} of {name}"):
            self._store.delete(to_key(name, version, _MANIFEST))
            for key in list(self._store.list(f"{to_key(name, version)}/")):
                self._store.delete(key)

    def is_whole(self, name: ModelName, version: str, *, digest: str | None = None) -> bool:
        """Return whether every file of a version is there as its manifest has it, and it is the package asked for."""
        manifest = self._manifest(name, version)
        if manifest is None or digest not in {None, manifest.digest}:
            return False
        with translating_store(f"version {version} of {name}"):
            there = (self._store.stat(to_key(name, version, each.path)) for each in manifest.files)
            found = [each and (each.size_bytes, each.sha256) for each in there]
        return found == [(each.size_bytes, each.sha256) for each in manifest.files]

    def probe(self, name: ModelName, version: str) -> Probe | None:
        """Return what a whole version was recorded to answer, or None."""
        manifest = self._manifest(name, version)
        evidence = manifest.evidence if manifest is not None else ()
        with translating_store(f"the probe of {name}"):
            for each in (file for file in evidence if file.path.startswith("probe-")):
                key = to_key(name, version, each.path)
                return Probe.from_json(self._store.get(key, max_bytes=MAX_PROBE_BYTES))
        return None

    def _put_file(self, package: ModelPackage, each: PackageFile, origin: ObjectStore, key: str) -> None:
        if _is_one_server(self._store, origin):
            # The bytes do not travel again: the server copies what was fetched from it a moment ago.
            there = f"{package_key(package.manifest.name, package.digest)}/{each.path}"
            put = self._store.copy_from(origin, there, key)
        else:
            put = self._store.put_file(key, package.directory / each.path, sha256=each.sha256)
        if (put.size_bytes, put.sha256) != (each.size_bytes, each.sha256):
            raise PackageCorrupt(f"{each.path} of package {package.manifest.name} changed after it was verified")

    def _manifest(self, name: ModelName, version: str) -> Manifest | None:
        with translating_store(f"version {version} of {name}"):
            try:
                text = self._store.get(to_key(name, version, _MANIFEST), max_bytes=_MAX_MANIFEST_BYTES)
                return Manifest.from_json(text)
            except (ObjectMissing, PackageInvalid):
                return None


def to_key(name: ModelName, *parts: str) -> str:
    """Return the key of something of a model."""
    return "/".join((name, *parts))


@contextmanager
def translating_store(what: str) -> Iterator[None]:
    """Raise RepositoryFailed for what a store refuses; a person or time can mend it, for it is no package's fault."""
    try:
        yield
    except StoreError as error:
        told = f"{what} cannot be read or written in the serving repository: {error.message}"
        raise RepositoryFailed(told, hint=error.hint or "keynet doctor", may_pass=True) from error


def _is_one_server(store: ObjectStore, other: ObjectStore) -> bool:
    """Return whether two stores are on one server: a process has one for each scheme but `file`."""
    scheme = store.url.partition(":")[0]
    return scheme != "file" and scheme == other.url.partition(":")[0]
