"""A Triton model repository on disk: folders, versions, policies, and the one folder a model may read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keynet_core import NameRefused, to_model_name
from keynet_serving._errors import ModelUnloadable, VersionRefused

if TYPE_CHECKING:
    from pathlib import Path

    from keynet_core import KeynetError

_VERSION_DIGITS = 18
MAX_CONFIG_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """
    One model's folder, its symbolic links resolved once.

    `<repository>/<model>` may be a link to another place; every file of the model must lie in the place it leads to.
    """

    name: str
    root: Path

    def versions(self) -> list[int]:
        """Return the version numbers that are directories, ascending."""
        return sorted(int(entry.name) for entry in self.root.iterdir() if _is_version(entry.name) and entry.is_dir())

    def read_config(self) -> str | None:
        """
        Return the text of `config.pbtxt`, or None where there is none.

        Raises:
            ModelUnloadable: It lies outside the folder, is too large, or is no text.
        """
        path = self.root / "config.pbtxt"
        if not path.exists():
            return None
        try:
            with self.confine(path).open("rb") as file:
                text = file.read(MAX_CONFIG_BYTES + 1)
            if len(text) > MAX_CONFIG_BYTES:
                raise ModelUnloadable(f"{path.name} of '{self.name}' is larger than {MAX_CONFIG_BYTES} bytes")
            return text.decode()
        except (VersionRefused, OSError, UnicodeDecodeError) as error:
            raise ModelUnloadable(f"failed to read {path.name} of '{self.name}': {error}") from error

    def model_file(self, version: int, filename: str) -> Path:
        """
        Return a version's real ONNX file; a directory of that name holds `model.onnx` and its external data.

        Raises:
            VersionRefused: It is missing, or lies outside the model's folder.
        """
        path = self.root / str(version) / filename
        if path.is_dir():
            path /= "model.onnx"
        if not path.is_file():
            raise VersionRefused(f"unable to find '{path}' for model '{self.name}'")
        return self.confine(path)

    def confine(self, path: Path) -> Path:
        """
        Return the real path of a file of this model.

        Raises:
            VersionRefused: It leads out of the model's folder.
        """
        real = path.resolve()
        if not real.is_relative_to(self.root):
            raise VersionRefused(f"'{path}' of model '{self.name}' leads out of the model's folder, to '{real}'")
        return real


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A directory with one folder per model."""

    path: Path

    def names(self) -> list[str]:
        """Return the names of the folders, sorted; what is no folder or hidden is no model."""
        try:
            return sorted(e.name for e in self.path.iterdir() if not e.name.startswith(".") and e.is_dir())
        except OSError as error:
            raise ModelUnloadable(f"model repository '{self.path}' cannot be read: {error}") from error

    def open(self, name: str) -> ModelFolder:
        """
        Return a model's folder. A text that is no model's name never reaches the disk.

        Raises:
            ModelUnloadable: There is no such folder.
        """
        try:
            root = (self.path / to_model_name(name)).resolve(strict=True)
        except NameRefused as error:
            raise ModelUnloadable(_poll_failure(name), hint=error.message) from error
        except (OSError, RuntimeError) as error:
            raise ModelUnloadable(_poll_failure(name)) from error
        if not root.is_dir():
            raise ModelUnloadable(_poll_failure(name))
        return ModelFolder(name=name, root=root)


def poll_failed(name: str, error: KeynetError) -> ModelUnloadable:
    """Return Triton's sentence for a folder it cannot read, with the reason that Triton keeps in its log."""
    return ModelUnloadable(f"{_poll_failure(name)}: {error.message}")


def select_versions(policy: Any, present: list[int]) -> list[int]:
    """Return those of the present versions that a `ModelVersionPolicy` serves, ascending."""
    if policy.HasField("all"):
        return present
    if policy.HasField("specific"):
        return sorted(set(present) & set(policy.specific.versions))
    return present[-max(1, policy.latest.num_versions) :]


def _poll_failure(name: str) -> str:
    return f"failed to load '{name}', failed to poll from model repository"


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= _VERSION_DIGITS and name[0] != "0"
