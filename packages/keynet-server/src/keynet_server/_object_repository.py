"""
ObjectRepository: a serving repository in an object store, where nothing can be renamed.

README.txt                      makes the address a directory before there is a model
<name>/config.pbtxt             the switch, put last: which versions are served, and by which deployment
<name>/<version>/model.onnx     with every other file of the package, and manifest.json, put last of them
<name>/<version>/linked.pbtxt   what becomes the switch when the version's deployment is linked

A version that is being put, or removed, is named by no switch. Times of objects are whole seconds on S3, too coarse
for an engine that compares them: a request to load carries the configuration itself.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from keynet_core import ObjectMissing, PackageInvalid, remove_tree
from keynet_server._errors import RepositoryFailed
from keynet_server._materialize import translating_disk
from keynet_server._model_config import (
    CONFIG,
    MAX_CONFIG_BYTES,
    deployment_of,
    linked_config,
    nothing_served,
    read_config,
    read_package_config,
    to_json,
    versions_of,
    without_versions,
)
from keynet_server._object_versions import LINKED, Versions, to_key, translating_store
from keynet_server._repository import Built, check_package, to_names

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keynet_core import ModelName, ModelPackage, ObjectStore
    from keynet_server._repository import Earlier, Placement, Source

_README = "README.txt"


class ObjectRepository:
    """
    The objects below one address.

    Args:
        store: Where they are.
        scratch: A directory of this server's own, where packages are verified on their way.
        on_step: Called with a step's name after it is done.

    """

    def __init__(
        self, store: ObjectStore, scratch: Path, *, on_step: Callable[[str], None] = lambda _step: None
    ) -> None:
        self.store = store
        self._versions = Versions(store)
        self._scratch = scratch
        self._on_step = on_step

    def prepare(self) -> None:
        """Make the directory that packages are verified in, and a first object: Triton starts on no empty address."""
        with translating_disk("the directory for packages on their way", self._scratch):
            self._scratch.mkdir(parents=True, exist_ok=True)
        with translating_store("a first object"):
            if self.store.stat(_README) is None:
                self.store.put(_README, b"Models that keynet deploys, for Triton to read.\n")

    def build(self, placement: Placement, source: Source) -> Built:
        """Put the package of a deployment, unless it is there."""
        left_out: tuple[str, ...] = ()
        if not self.has(placement):
            left_out = self._build(placement, source)
        probe = self._versions.probe(placement.model, placement.version)
        return Built(placement=placement, probe=probe, versions=versions_of(self._plan(placement)), left_out=left_out)

    def link(self, built: Built) -> None:
        """Have engines find this deployment, by the one object that says what is served."""
        name = built.placement.model
        with translating_store(f"the configuration of {name}"):
            plan = self.store.get(to_key(name, built.placement.version, LINKED), max_bytes=MAX_CONFIG_BYTES)
            self.store.put(to_key(name, CONFIG), plan)

    def unlink(self, name: ModelName) -> None:
        """Have engines find no such model: first no version is named any more, then all are removed."""
        config = self._config(name)
        if config is None:
            return
        with translating_store(f"the objects of {name}"):
            self.store.put(to_key(name, CONFIG), without_versions(config))
            self._on_step("unnamed")
            for version in self._versions.numbers(name):
                self._versions.remove(name, version)
            self.store.delete(to_key(name, CONFIG))

    def linked(self, name: ModelName) -> int | None:
        """Return the deployment whose configuration stands, or None."""
        config = self._config(name)
        return deployment_of(config) if config is not None and versions_of(config) else None

    def override(self, name: ModelName) -> str | None:
        """Return the configuration that stands, as JSON."""
        config = self._config(name)
        return None if config is None else to_json(config)

    def has(self, placement: Placement) -> bool:
        """Return whether every version that a deployment serves is there, whole."""
        plan = self._plan(placement)
        return (
            deployment_of(plan) == placement.number
            and self._versions.is_whole(placement.model, placement.version, digest=placement.digest)
            and all(self._versions.is_whole(placement.model, version) for version in versions_of(plan))
        )

    def links(self) -> list[ModelName]:
        """Return the models of whom a version is named."""
        with translating_store("the models"):
            paths = [key.split("/") for key in self.store.list("")]
        names = to_names({path[0] for path in paths if path[1:] == [CONFIG]})
        return [name for name in names if self.linked(name) is not None]

    def broken(self) -> list[ModelName]:
        """Return the models of whom a version is named that is not whole."""
        return [name for name in self.links() if not self._is_linked_whole(name)]

    def tidy(self, name: ModelName) -> None:
        """Remove what a crash left in the scratch directory, and among the objects what the switch does not name."""
        self.prune(name)
        with translating_disk(f"what was on its way for {name}", self._scratch):
            for path in self._scratch.glob("*") if self._scratch.is_dir() else ():
                head, _, number = path.name.rpartition("-")
                if head == name and number.isdigit():
                    remove_tree(path)

    def prune(self, name: ModelName) -> None:
        """Remove every version that is not served: an engine copies all that stand below a model when it loads it."""
        config = self._config(name)
        if config is None:
            return
        for version in set(self._versions.numbers(name)) - set(versions_of(config)):
            self._versions.remove(name, version)

    def discard(self, placement: Placement) -> None:
        """Remove the version of a deployment that failed, unless it is served."""
        config = self._config(placement.model)
        if config is None or placement.version in versions_of(config):
            return
        self._versions.remove(placement.model, placement.version)
        if not versions_of(config):
            self.unlink(placement.model)

    def _build(self, placement: Placement, source: Source) -> tuple[str, ...]:
        name, number, version = placement.model, placement.number, placement.version
        aside = self._scratch / f"{name}-{number}"
        with translating_disk(f"deployment {number} of {name}", self._scratch):
            try:
                remove_tree(aside)
                aside.mkdir(parents=True)
                package = _fetch(placement, aside, source)
                check_package(package, version)
                config, earlier = read_package_config(package), source.earlier(placement, package)
                self._on_step("laid-out")
                self._claim(name)
                self._ensure(placement, source, lambda: package)
                beside, missing = self._ensure_earlier(earlier, aside, source)
                self._on_step("synced")
                with translating_store(f"deployment {number} of {name}"):
                    self.store.put(to_key(name, version, LINKED), linked_config(config, number, [version, *beside]))
            finally:
                remove_tree(aside)
        return (*earlier.left_out, *missing)

    def _ensure_earlier(self, earlier: Earlier, aside: Path, source: Source) -> tuple[list[str], list[str]]:
        """Have earlier versions stand in the repository; return which do, and why others cannot."""
        beside, missing = [], []
        for each in earlier.placements:
            try:
                self._ensure(each, source, partial(_fetch, each, aside, source))
                beside.append(each.version)
            except (ObjectMissing, PackageInvalid) as error:
                missing.append(f"version {each.version} cannot be had any more: {error.message}")
        return beside, missing

    def _ensure(self, placement: Placement, source: Source, fetch: Callable[[], ModelPackage]) -> None:
        """Have a version stand in the repository, whole; while it is put, it is not named."""
        name, version = placement.model, placement.version
        if self._versions.is_whole(name, version, digest=placement.digest):
            return
        package = fetch()
        config = self._config(name)
        if config is not None and version in versions_of(config):
            with translating_store(f"the configuration of {name}"):
                self.store.put(to_key(name, CONFIG), without_versions(config, {version}))
        self._versions.put(name, version, package, source.store)

    def _claim(self, name: ModelName) -> None:
        """Put a switch that names nothing where there is none: no engine loads what is half put."""
        with translating_store(f"the configuration of {name}"):
            if self.store.stat(to_key(name, CONFIG)) is None:
                self.store.put(to_key(name, CONFIG), nothing_served(name))
        if self._config(name) is None:
            raise RepositoryFailed(
                f"{self.store.url}/{name} has a {CONFIG} that no deployment of keynet's wrote",
                hint="move it away, or give keynet a repository of its own: KEYNET_SERVING_REPOSITORY",
                may_pass=False,
            )

    def _config(self, name: ModelName) -> Any:
        """Return the configuration that stands, or None where there is none, or not one of ours."""
        config = self._read(to_key(name, CONFIG))
        return config if config is not None and deployment_of(config) is not None else None

    def _plan(self, placement: Placement) -> Any:
        config = self._read(to_key(placement.model, placement.version, LINKED))
        return config if config is not None else read_config(b"", placement.model)

    def _read(self, key: str) -> Any:
        with translating_store(key):
            try:
                return read_config(self.store.get(key, max_bytes=MAX_CONFIG_BYTES), key)
            except (ObjectMissing, PackageInvalid):
                return None

    def _is_linked_whole(self, name: ModelName) -> bool:
        return all(self._versions.is_whole(name, version) for version in versions_of(self._config(name)))


def _fetch(placement: Placement, aside: Path, source: Source) -> ModelPackage:
    into = aside / placement.version
    into.mkdir()
    return source.fetch(placement, into)
