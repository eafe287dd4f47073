"""A package into an object store and out of it: files first, manifest last; nothing believed that has no digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keynet_core._durable import sync_tree, write_durably
from keynet_core._errors import ObjectMissing, PackageCorrupt, PackageInvalid
from keynet_core._package import MANIFEST, MAX_MANIFEST_BYTES, Manifest, ModelPackage

if TYPE_CHECKING:
    from pathlib import Path

    from keynet_core._names import ModelName
    from keynet_core._objects import ObjectStore
    from keynet_core._package import PackageFile


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
    key = package_key(package.manifest.name, package.digest)
    vouched = _is_vouched(store, package.manifest.name, package.digest)
    for each in package.manifest.served if vouched else package.manifest.files:
        _upload(package, each, store, f"{key}/{each.path}")
    if not vouched:
        store.put(f"{key}/{MANIFEST}", package.manifest.to_json())
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
    for each in manifest.files:
        try:
            got = store.get_file(f"{key}/{each.path}", directory / each.path)
        except ObjectMissing as error:
            raise PackageCorrupt(f"the store has package {name} but not its file {each.path}") from error
        if (got.size_bytes, got.sha256) != (each.size_bytes, each.sha256):
            raise PackageCorrupt(
                f"{each.path} of package {name} came with sha256 {got.sha256[:12]}, not {each.sha256[:12]}"
            )
    write_durably(directory / MANIFEST, manifest.to_json())
    sync_tree(directory)
    return ModelPackage(directory=directory, manifest=manifest)


def read_manifest(store: ObjectStore, name: ModelName, digest: str) -> Manifest:
    """Fetch and check the manifest of a package; see `download_package` for what is raised."""
    key = f"{package_key(name, digest)}/{MANIFEST}"
    if (there := store.stat(key)) is not None and there.size_bytes > MAX_MANIFEST_BYTES:
        raise PackageInvalid(f"the manifest of package {name} has {there.size_bytes} bytes, over {MAX_MANIFEST_BYTES}")
    manifest = Manifest.from_json(store.get(key, max_bytes=MAX_MANIFEST_BYTES))
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
    if _is_stored(store, key, each):
        return
    source = package.directory / each.path
    if source.is_symlink() or not source.is_file():
        raise PackageCorrupt(f"package {package.manifest.name} has no file {each.path}")
    put = store.put_file(key, source)
    if put.sha256 != each.sha256:
        raise PackageCorrupt(f"{each.path} of package {package.manifest.name} changed after it was packaged")
