"""
ServingRepository: packages laid out as Triton reads them, so that an engine never sees half a model.

models/<name> -> ../deployments/<name>/<number>     one relative link per model, replaced in one step
deployments/<name>/<number>/{config.pbtxt, labels.txt?, manifest.json, probe-*.json?, <version>/model.onnx, ...}
staging/<name>-<number>/                            being fetched; removed at the next attempt
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from keynet_core import ModelPackage, NameRefused, PackageInvalid, remove_tree, sync_directory, sync_tree, to_model_name
from keynet_server._errors import RepositoryFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from keynet_core import ModelName

KEPT_DEPLOYMENTS = 3
_SECOND_NS = 1_000_000_000
_MAY_PASS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.EBUSY,
    errno.ESTALE,
}
"""What the disk or the machine refuses, whatever the package is."""

_CODE = {".py", ".so", ".dll", ".dylib", ".sh"}
"""A model server may run such a file as a backend; a package carries data only."""


class ServingRepository:
    """
    The directories below one root; one process at a time writes them.

    Args:
        root: Where they stand.
        on_step: Called with a step's name after it is done.

    """

    def __init__(self, root: Path, *, on_step: Callable[[str], None] = lambda _step: None) -> None:
        self.root = root
        self._on_step = on_step
        self.models = root / "models"
        self.deployments = root / "deployments"
        self._staging = root / "staging"

    def prepare(self) -> None:
        """Make the directories that engines and deployments need, and remove what a crash left half-made."""
        with self._translating("the serving repository"):
            remove_tree(self._staging)
            for directory in (self.models, self.deployments, self._staging):
                directory.mkdir(parents=True, exist_ok=True)

    def build(self, name: ModelName, number: int, version: str, fetch: Callable[[Path], ModelPackage]) -> ModelPackage:
        """
        Make the directory of a deployment, unless it is there; it appears whole or not at all.

        Args:
            name: The model.
            number: The deployment.
            version: The version that clients ask for.
            fetch: Fills an empty directory with the verified package.

        """
        target = self._directory(name, number)
        if not target.exists():
            with self._translating(f"deployment {number} of {name}"):
                self._build(target, version, fetch)
        return ModelPackage.open(target)

    def link(self, name: ModelName, number: int) -> None:
        """Have engines find this deployment, newer than all they have loaded, when they load the model."""
        fresh = self._staging / f"{name}.link"
        with self._translating(f"the link of {name}"):
            self._touch(name, number)
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(os.path.join("..", "deployments", name, str(number)))  # noqa: PTH118 - a link's text, no path here
            fresh.replace(self.models / name)
            sync_directory(self.models)

    def unlink(self, name: ModelName) -> None:
        """Have engines find no such model."""
        with self._translating(f"the link of {name}"):
            (self.models / name).unlink(missing_ok=True)
            sync_directory(self.models)

    def linked(self, name: ModelName) -> int | None:
        """Return the deployment a model's link names, whether its directory is there or not, or None."""
        try:
            text = (self.models / name).readlink()
        except OSError:
            return None
        return int(text.name) if text.parent.name == name and text.name.isdigit() else None

    def has(self, name: ModelName, number: int) -> bool:
        """Return whether a deployment's directory is there."""
        return self._directory(name, number).is_dir()

    def links(self) -> list[ModelName]:
        """Return the models that have a link, dangling or not."""
        if not self.models.is_dir():
            return []
        with self._translating("the links"):
            names = sorted(path.name for path in self.models.iterdir() if path.is_symlink())
        return [to_model_name(name) for name in names if _is_model_name(name)]

    def prune(self, name: ModelName, *, keep: set[int]) -> list[int]:
        """Remove all but the newest deployments of a model and those in `keep`; return what was removed."""
        parent = self.deployments / name
        with self._translating(f"old deployments of {name}"):
            numbers = sorted(int(path.name) for path in parent.iterdir() if path.name.isdigit())
            kept = set(numbers[-KEPT_DEPLOYMENTS:]) | keep | {self.linked(name)}
            removed = [number for number in numbers if number not in kept]
            for number in removed:
                self._remove(name, number)
        return removed

    def discard(self, name: ModelName, number: int) -> None:
        """Remove the directory of a deployment that failed."""
        if self.linked(name) != number and self.has(name, number):
            with self._translating(f"deployment {number} of {name}"):
                self._remove(name, number)

    def _remove(self, name: ModelName, number: int) -> None:
        # Renamed first: a directory under its own name is whole, always.
        doomed = self._staging / f"{name}-{number}.old"
        remove_tree(doomed)
        self._directory(name, number).rename(doomed)
        remove_tree(doomed)

    def _touch(self, name: ModelName, number: int) -> None:
        # An engine that compares times would keep what it has loaded. The clock may stand, or go back.
        newest = max((path.stat().st_mtime_ns for path in (self.deployments / name).rglob("*")), default=0)
        later = max(time.time_ns(), newest + _SECOND_NS)
        for path in (self._directory(name, number), *self._directory(name, number).rglob("*")):
            os.utime(path, ns=(later, later))

    def _build(self, target: Path, version: str, fetch: Callable[[Path], ModelPackage]) -> None:
        staged = self._staging / f"{target.parent.name}-{target.name}"
        remove_tree(staged)
        staged.mkdir(parents=True)
        try:
            package = fetch(staged)
            _lay_out(package, staged / version)
            self._on_step("laid-out")
            sync_tree(staged)
            self._on_step("synced")
            target.parent.mkdir(exist_ok=True)
            staged.rename(target)
            sync_directory(target.parent)
        finally:
            remove_tree(staged)

    def _directory(self, name: ModelName, number: int) -> Path:
        return self.deployments / name / str(number)

    @contextmanager
    def _translating(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RepositoryFailed(
                f"{what} cannot be written below {self.root}: {error.strerror or error}",
                hint=f"df -h {self.root}",
                may_pass=error.errno in _MAY_PASS,
            ) from error


def _lay_out(package: ModelPackage, version_directory: Path) -> None:
    for each in package.manifest.served:
        _refuse_what_misleads(package, each.path)
    version_directory.mkdir()
    for each in package.manifest.served:
        path = package.directory / each.path
        if not _stands_beside(each.path):
            moved = version_directory / each.path
            moved.parent.mkdir(parents=True, exist_ok=True)
            path.rename(moved)


def _refuse_what_misleads(package: ModelPackage, path: str) -> None:
    parts = PurePosixPath(path).parts
    if PurePosixPath(path).suffix.lower() in _CODE:
        raise PackageInvalid(f"package {package.manifest.name} holds code, {path}; a model is data")
    if parts[0].isdigit():
        raise PackageInvalid(f"package {package.manifest.name} holds {path}, where a model server looks for versions")


def _is_model_name(text: str) -> bool:
    """Return whether a name in the serving repository can be a model's."""
    try:
        to_model_name(text)
    except NameRefused:
        return False
    return True


def _stands_beside(path: str) -> bool:
    """Return whether Triton looks for a file next to the version directories: its configuration, and labels."""
    return path == "config.pbtxt" or path.endswith(".txt")
