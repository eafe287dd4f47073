"""ServingRepository: the seam between a deployment and what a model server reads; a URL says which engine it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

from keynet_core import LocalStore, NameRefused, PackageInvalid, SettingsInvalid, open_store, to_model_name
from keynet_server._model_config import read_package_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keynet_core import ModelName, ModelPackage, ObjectStore, Probe

_CODE = {".py", ".so", ".dll", ".dylib", ".sh"}
"""A model server may run such a file as a backend; a package carries data only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What is to stand in the repository: the package of a deployment, under the version that clients ask for."""

    model: ModelName
    number: int
    version: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """The versions that stay loaded beside a new one, newest first, and why others do not, in sentences."""

    placements: tuple[Placement, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What stands whole in the repository, and is served once it is linked."""

    placement: Placement
    probe: Probe | None
    versions: tuple[str, ...]
    """What an engine will serve, ascending; the last one is the deployment's own."""
    left_out: tuple[str, ...] = ()


class Source(Protocol):
    """Where a repository gets packages."""

    @property
    def store(self) -> ObjectStore:
        """Where they stand before, each under its `package_key`."""

    def fetch(self, placement: Placement, into: Path) -> ModelPackage:
        """Fill an empty directory with a package, every byte of it verified."""

    def earlier(self, placement: Placement, package: ModelPackage) -> Earlier:
        """Return what is to stay loaded beside a fetched package."""


class ServingRepository(Protocol):
    """
    Packages laid out as Triton reads them, so that an engine never sees half a model.

    A deployment is built, which no engine notices, and then linked, which is one step. One process at a time works on
    a model. Every method raises RepositoryFailed when the repository cannot be read or written.
    """

    def prepare(self) -> None:
        """Make what engines and deployments need."""

    def build(self, placement: Placement, source: Source) -> Built:
        """Make what a deployment needs stand in the repository, unless it does already."""

    def link(self, built: Built) -> None:
        """Have engines find this deployment when they load the model; every later load finds it changed."""

    def unlink(self, name: ModelName) -> None:
        """Have engines find no such model."""

    def linked(self, name: ModelName) -> int | None:
        """Return the deployment that engines find, whether it is whole or not, or None."""

    def override(self, name: ModelName) -> str | None:
        """Return the configuration that a request to load must carry, as JSON, or None where times tell of a change."""

    def has(self, placement: Placement) -> bool:
        """Return whether a deployment stands whole in the repository."""

    def links(self) -> list[ModelName]:
        """Return the models that are linked, to something whole or not."""

    def broken(self) -> list[ModelName]:
        """Return the models that are linked to something that is not whole."""

    def tidy(self, name: ModelName) -> None:
        """Remove what a crash left half-made of a model."""

    def prune(self, name: ModelName) -> None:
        """Remove deployments of a model that nobody is likely to go back to."""

    def discard(self, placement: Placement) -> None:
        """Remove what was built for a deployment that failed; what is linked stays."""


def open_repository(
    url: str, scratch: Path, *, on_step: Callable[[str], None] = lambda _step: None
) -> ServingRepository:
    """
    Return the repository at a URL: `s3://bucket/prefix`, or a directory.

    Args:
        url: Where it is.
        scratch: A directory of this server's own, where packages are verified on their way to an object store.
        on_step: Called with a step's name after it is done.

    Raises:
        StoreUnsupported: No engine is known for the scheme.

    """
    from keynet_server._materialize import DirectoryRepository
    from keynet_server._object_repository import ObjectRepository

    store = open_store(url)
    if isinstance(store, LocalStore):
        return DirectoryRepository(store.root, on_step=on_step)
    return ObjectRepository(store, scratch, on_step=on_step)


def check_apart(store_url: str, repository_url: str) -> None:
    """
    Refuse a serving repository that holds the packages, or is held by them: engines would take them for models.

    Raises:
        SettingsInvalid: It is so.

    """
    packages, models = f"{store_url}/packages/", f"{open_store(repository_url).url}/"
    if packages.startswith(models) or models.startswith(packages):
        raise SettingsInvalid(
            f"the model server is to read models in {models}, and packages are stored in {packages}",
            hint="set KEYNET_SERVING_REPOSITORY to a place of its own, for example s3://bucket/serving",
        )


def check_package(package: ModelPackage, version: str) -> None:
    """
    Refuse a package that would make an engine run code, or serve something else than this version.

    Raises:
        PackageInvalid: It would.

    """
    name = package.manifest.name
    for each in package.manifest.served:
        path = PurePosixPath(each.path)
        if path.suffix.lower() in _CODE:
            raise PackageInvalid(f"package {name} holds code, {path}; a model is data")
        if path.parts[0].isdigit():
            raise PackageInvalid(f"package {name} holds {path}, where a model server looks for versions")
    policy = read_package_config(package).version_policy
    if policy.HasField("specific") and int(version) not in policy.specific.versions:
        raise PackageInvalid(
            f"package {name} is to be served as version {version}, and its configuration names the versions "
            f"{', '.join(map(str, policy.specific.versions)) or 'of nothing'}",
            hint="publish without ServingOptions(specific_versions=...): it is for a repository of your own",
        )


def to_names(texts: set[str]) -> list[ModelName]:
    """Return those of the names in a repository that can be a model's, sorted."""
    return [to_model_name(text) for text in sorted(texts) if _is_model_name(text)]


def _is_model_name(text: str) -> bool:
    try:
        to_model_name(text)
    except NameRefused:
        return False
    return True
