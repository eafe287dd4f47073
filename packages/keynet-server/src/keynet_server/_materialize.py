"""
DirectoryRepository: a serving repository on a disk.

models/<name> -> ../deployments/<name>/<number>     one relative link per model, replaced in one step
deployments/<name>/<number>/{config.pbtxt, labels.txt?, manifest.json, probe-*.json?, <version>/model.onnx, ...}
staging/<name>-<number>.<token>/                    being fetched; removed at the next attempt
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from keynet_core import ModelPackage, ObjectMissing, PackageInvalid, remove_tree, sync_directory, sync_tree
from keynet_server._errors import RepositoryFailed
from keynet_server._model_config import CONFIG
from keynet_server._repository import Built, check_package, to_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from keynet_core import ModelName
    from keynet_server._repository import Placement, Source

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

_NO_LINKS = {errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}
"""What a disk answers that gives no file a second name."""


_STAGED = re.compile(r"(\d+|link)(\.|$)", re.ASCII)
"""What follows a model's name in the staging directory."""


class DirectoryRepository:
    """
    The directories below one root.

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
        """Make the directories that engines and deployments need."""
        with translating_disk("the serving repository", self.root):
            for directory in (self.models, self.deployments, self._staging):
                directory.mkdir(parents=True, exist_ok=True)

    def build(self, placement: Placement, source: Source) -> Built:
        """Make the directory of a deployment, unless it is there; it appears whole or not at all."""
        target = self._directory(placement.model, placement.number)
        left_out: tuple[str, ...] = ()
        if not self.has(placement):
            with self._translating(f"deployment {placement.number} of {placement.model}"):
                left_out = self._build(target, placement, source)
        versions = sorted((path.name for path in target.iterdir() if path.name.isdigit()), key=int)
        probe = ModelPackage.open(target).probe()
        return Built(placement=placement, probe=probe, versions=tuple(versions), left_out=left_out)

    def link(self, built: Built) -> None:
        """Have engines find this deployment, newer than all they have loaded, when they load the model."""
        name, number = built.placement.model, built.placement.number
        fresh = self._of_its_own(name, "link")
        with self._translating(f"the link of {name}"):
            self._touch(name, number)
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

    def override(self, name: ModelName) -> None:
        """Return None: what is linked is newer than all that was."""

    def has(self, placement: Placement) -> bool:
        """Return whether a deployment's directory is there, and of this very package: every journal counts from 1."""
        target = self._directory(placement.model, placement.number)
        try:
            return (target / placement.version).is_dir() and ModelPackage.open(target).digest == placement.digest
        except PackageInvalid:
            return False

    def links(self) -> list[ModelName]:
        """Return the models that have a link, dangling or not."""
        if not self.models.is_dir():
            return []
        with self._translating("the links"):
            return to_names({path.name for path in self.models.iterdir() if path.is_symlink()})

    def broken(self) -> list[ModelName]:
        """Return the models whose link points nowhere."""
        return [name for name in self.links() if not (self.models / name).exists()]

    def tidy(self, name: ModelName) -> None:
        """Remove what a crash left in the staging directory."""
        with self._translating(f"what is staged of {name}"):
            for path in self._staged(name):
                if path.is_symlink():
                    path.unlink(missing_ok=True)
                else:
                    remove_tree(path)

    def prune(self, name: ModelName) -> None:
        """Remove all but the newest deployments of a model and the one that is linked."""
        parent = self.deployments / name
        with self._translating(f"old deployments of {name}"):
            numbers = sorted(int(path.name) for path in parent.iterdir() if path.name.isdigit())
            kept = {*numbers[-KEPT_DEPLOYMENTS:], self.linked(name)}
            for number in numbers:
                if number not in kept:
                    self._remove(name, number)

    def discard(self, placement: Placement) -> None:
        """Remove the directory of a deployment that failed."""
        name, number = placement.model, placement.number
        if self.linked(name) != number and self.has(placement):
            with self._translating(f"deployment {number} of {name}"):
                self._remove(name, number)

    def _build(self, target: Path, placement: Placement, source: Source) -> tuple[str, ...]:
        self.tidy(placement.model)
        staged = self._of_its_own(placement.model, target.name)
        staged.mkdir(parents=True)
        try:
            package = source.fetch(placement, staged)
            check_package(package, placement.version)
            earlier = source.earlier(placement, package)
            _lay_out(package, staged / placement.version)
            missing = [self._add_earlier(each, staged, source) for each in earlier.placements]
            self._on_step("laid-out")
            sync_tree(staged)
            self._on_step("synced")
            target.parent.mkdir(exist_ok=True)
            if not self.has(placement):  # else a server that was cut off was quicker
                self._put(staged, placement)
        finally:
            remove_tree(staged)
        return (*earlier.left_out, *filter(None, missing))

    def _put(self, staged: Path, placement: Placement) -> None:
        target = self._directory(placement.model, placement.number)
        if target.exists():
            self._remove(placement.model, placement.number)
        staged.rename(target)
        sync_directory(target.parent)

    def _add_earlier(self, earlier: Placement, staged: Path, source: Source) -> str | None:
        """Put an earlier version beside a new one, and return why that cannot be, or None."""
        here = self._directory(earlier.model, earlier.number) / earlier.version
        into = staged / earlier.version
        if self.has(earlier):
            _link_tree(here, into)
            return None
        aside = staged / f"fetched-{earlier.version}"
        aside.mkdir()
        try:
            _lay_out(source.fetch(earlier, aside), into)
        except (ObjectMissing, PackageInvalid) as error:
            return f"version {earlier.version} cannot be had any more: {error.message}"
        finally:
            remove_tree(aside)
        return None

    def _staged(self, name: ModelName) -> list[Path]:
        if not self._staging.is_dir():
            return []
        parts = ((path, *path.name.rpartition("-")[::2]) for path in self._staging.iterdir())
        return [path for path, model, rest in parts if model == name and _STAGED.match(rest)]

    def _of_its_own(self, name: ModelName, what: str) -> Path:
        # A server that was cut off may still be building what another builds by now.
        return self._staging / f"{name}-{what}.{secrets.token_hex(4)}"

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

    def _directory(self, name: ModelName, number: int) -> Path:
        return self.deployments / name / str(number)

    @contextmanager
    def _translating(self, what: str) -> Iterator[None]:
        with translating_disk(what, self.root):
            yield


@contextmanager
def translating_disk(what: str, where: Path) -> Iterator[None]:
    """Raise RepositoryFailed for what a disk refuses."""
    try:
        yield
    except OSError as error:
        raise RepositoryFailed(
            f"{what} cannot be written below {where}: {error.strerror or error}",
            hint=f"df -h {where}",
            may_pass=error.errno in _MAY_PASS,
        ) from error


def _lay_out(package: ModelPackage, version_directory: Path) -> None:
    version_directory.mkdir()
    for each in package.manifest.served:
        path = package.directory / each.path
        if not _stands_beside(each.path):
            moved = version_directory / each.path
            moved.parent.mkdir(parents=True, exist_ok=True)
            path.rename(moved)


def _link_tree(source: Path, target: Path) -> None:
    """Give a directory of verified files a second name."""
    target.mkdir()
    for path in sorted(source.rglob("*")):
        if path.is_dir():
            (target / path.relative_to(source)).mkdir()
        else:
            _link_or_copy(path, target / path.relative_to(source))


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)


def _stands_beside(path: str) -> bool:
    """Return whether Triton looks for a file next to the version directories: its configuration, and labels."""
    return path == CONFIG or path.endswith(".txt")
