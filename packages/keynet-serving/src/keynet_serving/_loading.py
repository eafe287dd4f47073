"""A model's folder to versions that serve, or to the reason why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keynet_core import KeynetError
from keynet_serving._classification import read_labels
from keynet_serving._config import complete_config, read_config, session_options
from keynet_serving._contract import Contract
from keynet_serving._errors import VersionRefused
from keynet_serving._model import ServedVersion
from keynet_serving._repository import poll_failed, select_versions
from keynet_serving._session import Session
from keynet_serving._validate import validate
from keynet_serving._warmup import warm_up

if TYPE_CHECKING:
    from keynet_serving._repository import ModelFolder, Repository

MAX_LABEL_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How versions are loaded, whatever their configuration says."""

    default_threads: int = 0
    """Threads inside one operator where the configuration does not say; 0 leaves it to ONNX Runtime."""
    max_queue: int = 256
    """How many requests one version takes at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a load came to: the versions that serve, and the reason for each that does not."""

    name: str
    served: tuple[ServedVersion, ...]
    refused: dict[int, str]


def load_model(repository: Repository, name: str, options: LoadOptions, override: str | None = None) -> Loaded:
    """
    Load every version of a model that its policy serves.

    Raises:
        ModelUnloadable: There is no folder, or its configuration cannot be read.
    """
    folder = repository.open(name)
    try:
        config = read_config(folder, override)
        versions = select_versions(config.version_policy, folder.versions())
    except (KeynetError, OSError) as error:
        raise poll_failed(name, _to_keynet(error)) from error
    served: list[ServedVersion] = []
    refused: dict[int, str] = {}
    for version in versions:
        try:
            served.append(_load_version(folder, version, config, options))
        except VersionRefused as error:
            refused[version] = error.reason
        except (KeynetError, OSError, MemoryError) as error:
            refused[version] = f"Internal: {error}"
    return Loaded(name=name, served=tuple(served), refused=refused)


def _load_version(folder: ModelFolder, version: int, template: Any, options: LoadOptions) -> ServedVersion:
    config = type(template)()
    config.CopyFrom(template)
    how = session_options(config, default_threads=options.default_threads)
    session = Session(folder.model_file(version, config.default_model_filename), how)
    complete_config(config, session)
    validate(config, session)
    ranks = {tensor.name: len(tensor.shape) for tensor in (*session.inputs, *session.outputs)}
    contract = Contract.from_config(config, ranks, _labels(config, folder))
    served = ServedVersion(
        version=version, config=config, contract=contract, session=session, max_queue=options.max_queue
    )
    try:
        warm_up(served, folder)
    except BaseException:
        served.retire()
        raise
    return served


def _labels(config: Any, folder: ModelFolder) -> dict[str, tuple[str, ...]]:
    found = {}
    for row in config.output:
        if row.label_filename:
            path = folder.confine(folder.root / row.label_filename)
            try:
                with path.open("rb") as file:
                    found[row.name] = read_labels(file.read(MAX_LABEL_BYTES).decode())
            except (OSError, UnicodeDecodeError) as error:
                raise VersionRefused(f"failed to read label file '{row.label_filename}': {error}") from error
    return found


def _to_keynet(error: Exception) -> KeynetError:
    return error if isinstance(error, KeynetError) else KeynetError(str(error))
