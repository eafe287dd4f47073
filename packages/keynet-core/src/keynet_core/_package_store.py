"""A package into an object store and out of it: files first, manifest last; nothing believed that has no digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keynet_core._crew import crew_of
from keynet_core._durable import write_durably
from keynet_core._errors import ObjectCorrupt, ObjectMissing, ObjectTooLarge, PackageCorrupt, PackageInvalid
from keynet_core._package import MANIFEST, MAX_MANIFEST_BYTES, Manifest, ModelPackage
from keynet_core._progress import metered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from keynet_core._names import ModelName
    from keynet_core._objects import ObjectStore
    from keynet_core._package import PackageFile

_SMALL_BYTES = 8 << 20
_WORKERS = 8
"""How many small files travel at once."""


def package_key(name: ModelName, digest: str) -> str:
    """Return the key under which a package's files stand."""
    return f"packages/{name}/{digest.removeprefix('sha256:')}"


def upload_package(package: ModelPackage, store: ObjectStore) -> str:
    """
    Store a package and return its address.

    What is there already and right is not sent again, so an interrupted upload goes on where it stopped. When another
    run stored the same model, its manifest and its evidence stay, unless one of them is broken.

    Raises:
        PackageCorrupt: A file of the package is missing, or changed after it was packaged.

    """
    manifest = package.manifest
    key = package_key(manifest.name, package.digest)
    there = set(store.list(f"{key}/"))
    vouched = f"{key}/{MANIFEST}" in there and _is_vouched(store, manifest.name, package.digest)
    files = manifest.served if vouched else manifest.files

    def upload(each: PackageFile) -> None:
        target = f"{key}/{each.path}"
        if target in there and _is_stored(store, target, each):
            advance(each.size_bytes)
        else:
            _upload(package, each, store, target)

    with metered(f"storing package {manifest.name}", sum(each.size_bytes for each in files)) as advance:
        _for_each(files, upload)
    if not vouched:
        store.put(f"{key}/{MANIFEST}", manifest.to_json())
    return f"{store.url}/{key}"


def download_package(store: ObjectStore, name: ModelName, digest: str, directory: Path) -> ModelPackage:
    """
    Fetch the package of this name and digest into an empty directory, and verify every byte.

    Raises:
        ObjectMissing: The store has no such package.
        PackageCorrupt: A file is not what the manifest says, or the manifest is another package's.
        PackageInvalid: The manifest cannot be read.

    """
    key = package_key(name, digest)
    manifest = read_manifest(store, name, digest)

    def download(each: PackageFile) -> None:
        try:
            got = store.get_file(f"{key}/{each.path}", directory / each.path)
        except ObjectMissing as error:
            raise PackageCorrupt(f"the store has package {name} but not its file {each.path}") from error
        except ObjectCorrupt as error:
            raise PackageCorrupt(f"{each.path} of package {name} is damaged: {error.message}") from error
        if (got.size_bytes, got.sha256) != (each.size_bytes, each.sha256):
            raise PackageCorrupt(
                f"{each.path} of package {name} came with sha256 {got.sha256[:12]}, not {each.sha256[:12]}"
            )

    with metered(f"fetching package {name}", sum(each.size_bytes for each in manifest.files)):
        _for_each(manifest.files, download)
    write_durably(directory / MANIFEST, manifest.to_json())  # every store has put its files on the disk before
    return ModelPackage(directory=directory, manifest=manifest)


def read_manifest(store: ObjectStore, name: ModelName, digest: str) -> Manifest:
    """Fetch and check the manifest of a package; see `download_package` for what is raised."""
    key = f"{package_key(name, digest)}/{MANIFEST}"
    try:
        manifest = Manifest.from_json(store.get(key, max_bytes=MAX_MANIFEST_BYTES))
    except ObjectTooLarge as error:
        raise PackageInvalid(f"the manifest of package {name} has over {MAX_MANIFEST_BYTES} bytes") from error
    except ObjectCorrupt as error:
        raise PackageCorrupt(f"the manifest of package {name} is damaged: {error.message}") from error
    if (manifest.name, manifest.digest) != (name, digest):
        raise PackageCorrupt(f"the store has {manifest.name} {manifest.digest} where {name} {digest} should be")
    return manifest


def _is_vouched(store: ObjectStore, name: ModelName, digest: str) -> bool:
    """Return whether the store has a manifest for this package that can be read, and the evidence it names."""
    try:
        manifest = read_manifest(store, name, digest)
    except (ObjectMissing, PackageInvalid):
        return False
    key = package_key(name, digest)
    return all(_is_stored(store, f"{key}/{each.path}", each) for each in manifest.evidence)


def _is_stored(store: ObjectStore, key: str, each: PackageFile) -> bool:
    there = store.stat(key)
    return there is not None and (there.size_bytes, there.sha256) == (each.size_bytes, each.sha256)


def _upload(package: ModelPackage, each: PackageFile, store: ObjectStore, key: str) -> None:
    source = package.directory / each.path
    if source.is_symlink() or not source.is_file():
        raise PackageCorrupt(f"package {package.manifest.name} has no file {each.path}")
    try:
        store.put_file(key, source, sha256=each.sha256)
    except ObjectCorrupt as error:
        raise PackageCorrupt(f"{each.path} of package {package.manifest.name} changed after it was packaged") from error


def _for_each(files: Iterable[PackageFile], work: Callable[[PackageFile], None]) -> None:
    """Do something with each file: several small ones at once, beside one large one, which has parts."""
    large = [each for each in files if each.size_bytes > _SMALL_BYTES]
    with crew_of(_WORKERS) as crew:
        for each in files:
            if each not in large:
                crew.hand(work, each)
        for each in large:
            work(each)
        crew.finish()
