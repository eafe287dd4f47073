"""PackageSource: packages out of the store, and which earlier versions stay loaded beside a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keynet_core import ObjectMissing, PackageCorrupt, PackageInvalid, download_package, package_key, read_manifest
from keynet_server._model_config import (
    CONFIG,
    MAX_CONFIG_BYTES,
    difference,
    read_config,
    read_package_config,
    wanted_versions,
)
from keynet_server._repository import Earlier, Placement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from keynet_core import Manifest, ModelPackage, ObjectStore
    from keynet_server._journal import Journal
    from keynet_server._records import Deployment

_LOOKED_AT = 20
"""How many earlier versions are compared at most."""

_TOLD = 3


class PackageSource:
    """
    The store, and what the journal knows was served before.

    Args:
        store: Where packages are fetched from.
        journal: What was deployed.
        on_step: Called with a step's name after it is done.

    """

    def __init__(self, store: ObjectStore, journal: Journal, on_step: Callable[[str], None]) -> None:
        self.store = store
        self._journal = journal
        self._on_step = on_step

    def fetch(self, placement: Placement, into: Path) -> ModelPackage:
        """Fill an empty directory with a package, every byte of it verified."""
        package = download_package(self.store, placement.model, placement.digest, into)
        self._on_step("fetched")
        return package

    def earlier(self, placement: Placement, package: ModelPackage) -> Earlier:
        """
        Return what is to stay loaded beside a fetched package: as many versions as its configuration asks for.

        An earlier version stays when its configuration, its labels included, is the same but for the versions served:
        an engine reads one configuration for all of them.
        """
        config = read_package_config(package)
        wanted = wanted_versions(config) - 1
        if wanted < 1:
            return Earlier()
        kept: list[Placement] = []
        left_out: list[str] = []
        for each in candidates(self._journal.history(placement.model, limit=1000), placement):
            if len(kept) == wanted:
                break
            reason = self._reason_against(each, package.manifest, config)
            if reason is None:
                kept.append(each)
            else:
                left_out.append(f"version {each.version} is not kept: {reason}")
        return Earlier(placements=tuple(kept), left_out=tuple(left_out[:_TOLD]))

    def _reason_against(self, placement: Placement, manifest: Manifest, config: Any) -> str | None:
        try:
            other = read_manifest(self.store, placement.model, placement.digest)
            differing = difference(config, self._config(placement, other))
        except (ObjectMissing, PackageInvalid) as error:
            return error.message
        if differing is not None:
            return f"its configuration differs in {differing}"
        return None if _beside(manifest) == _beside(other) else "its labels differ"

    def _config(self, placement: Placement, manifest: Manifest) -> Any:
        import hashlib

        listed = {each.path: each.sha256 for each in manifest.served}
        if CONFIG not in listed:
            return read_config(b"", placement.model)
        key = f"{package_key(placement.model, placement.digest)}/{CONFIG}"
        text = self.store.get(key, max_bytes=MAX_CONFIG_BYTES)
        if hashlib.sha256(text).hexdigest() != listed[CONFIG]:
            raise PackageCorrupt(f"{CONFIG} of package {placement.model} is not what its manifest says")
        return read_config(text, f"package {placement.model}")


def candidates(history: Sequence[Deployment], placement: Placement) -> list[Placement]:
    """
    Return what was live before a deployment under a lower version, newest first, each package once.

    Of a lower version only: an engine answers with the highest one when none is asked for, and that must be the live
    one. What an operator unloaded does not come back by itself, nor what a rollback took back.
    """
    by_number = {each.number: each for each in history}
    before = _origin(by_number, placement.number)
    found: dict[str, Placement] = {}
    for each in _without_taken_back(_until_unloaded(each for each in history if each.number < before), by_number):
        is_lower = int(each.served_version) < int(placement.version)
        if each.state in {"superseded", "deployed"} and is_lower and each.digest != placement.digest:
            found.setdefault(each.digest, to_placement(each))
    return list(found.values())[:_LOOKED_AT]


def to_placement(deployment: Deployment) -> Placement:
    """Return what a deployment has stand in the repository."""
    return Placement(
        model=deployment.model,
        number=deployment.number,
        version=deployment.served_version,
        digest=deployment.digest,
    )


def _origin(history: Mapping[int, Deployment], number: int) -> int:
    """Return the deployment that first brought what a deployment brings back."""
    while (deployment := history.get(number)) is not None and deployment.restores is not None:
        number = deployment.restores
    return number


def _until_unloaded(deployments: Iterable[Deployment]) -> Iterator[Deployment]:
    for each in deployments:
        if each.state == "unloaded":
            return
        yield each


def _without_taken_back(deployments: Iterable[Deployment], by_number: Mapping[int, Deployment]) -> Iterator[Deployment]:
    """Yield the deployments, newest first, but for those between a rollback that went live and what it went back to."""
    limit: int | None = None
    for each in deployments:
        if limit is not None and each.number > limit:
            continue
        if each.restores is not None and each.state in {"superseded", "deployed"}:
            limit = _origin(by_number, each.number)
        yield each


def _beside(manifest: Manifest) -> set[tuple[str, str]]:
    return {(each.path, each.sha256) for each in manifest.served if each.path.endswith(".txt")}
