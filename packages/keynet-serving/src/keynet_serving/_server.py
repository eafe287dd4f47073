"""ModelServer: which models are loaded, and the one door through which HTTP, gRPC and calls in process ask them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from keynet_serving._config import PLATFORM, to_json
from keynet_serving._errors import ControlRefused, LoadFailed, ModelUnknown, ModelUnloadable, RequestRefused
from keynet_serving._loading import LoadOptions, load_model
from keynet_serving._repository import Repository

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from keynet_serving._contract import TensorContract
    from keynet_serving._loading import Loaded
    from keynet_serving._model import Call, ServedVersion
    from keynet_serving._requests import InferRequest

    Array = npt.NDArray[Any]

ControlMode = Literal["explicit", "none"]

EVERY_MODEL = "*"
_LOADERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One line of the repository index; a model that was never loaded has only a name."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return what Triton tells: the fields that are not empty."""
        told = {"name": self.name, "version": self.version, "state": self.state, "reason": self.reason}
        return {key: value for key, value in told.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What is known of one model; replaced as a whole, so that a reader sees the old or the new."""

    served: Mapping[str, ServedVersion] = field(default_factory=dict)
    default: ServedVersion | None = None
    lines: tuple[IndexEntry, ...] = ()


class ModelServer:
    """
    Serves the ONNX models of one Triton model repository.

    Args:
        repository: The directory with one folder per model.
        control_mode: `explicit` loads by request, `none` loads everything at start and refuses requests to load.
        load_options: Defaults for threads and queues.
    """

    def __init__(
        self,
        repository: Path,
        *,
        control_mode: ControlMode = "explicit",
        load_options: LoadOptions | None = None,
    ) -> None:
        self._repository = Repository(path=repository)
        self._control_mode = control_mode
        self._load_options = load_options or LoadOptions()
        self._entries: dict[str, _Entry] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._locks_lock = threading.Lock()
        self._started = threading.Event()
        self._is_stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Asking

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: str = "",
        outputs: Sequence[str] | None = None,
    ) -> dict[str, Array]:
        """
        Return a model's outputs for these arrays; STRING outputs are arrays of `bytes`.

        Raises:
            ModelUnknown: The model or version is not served.
            RequestRefused: The arrays do not fit the model.
            ModelFailed: ONNX Runtime failed.
        """
        entry = self._entries.get(model)
        if entry is not None and entry.default is not None and not version:
            return entry.default.infer(inputs, outputs)
        return self._find(model, version).infer(inputs, outputs)

    def start(self, request: InferRequest) -> Call:
        """
        Check a client's request and return it, ready to run.

        Raises:
            ModelUnknown: The model or version is not served.
            RequestRefused: The request does not fit the model.
        """
        return self._find(request.model, request.version).start(request)

    def is_live(self) -> bool:
        """Whether the server has not been closed."""
        return not self._is_stopped

    def is_ready(self) -> bool:
        """Whether every model that was to be loaded at start has been loaded or refused."""
        return self._started.is_set() and not self._is_stopped

    def is_model_ready(self, model: str, version: str = "") -> bool:
        """Whether a request for this model and version would be answered."""
        try:
            self._find(model, version)
        except ModelUnknown:
            return False
        return True

    def metadata(self, model: str, version: str = "") -> dict[str, Any]:
        """
        Return a model's metadata as KServe v2 tells it.

        Raises:
            ModelUnknown: The model or version is not served.
        """
        served = self._find(model, version)
        versions = [version] if version else list(self._entries[model].served)
        return {
            "name": model,
            "versions": versions,
            "platform": PLATFORM,
            "inputs": [_to_metadata(row) for row in served.contract.inputs.values()],
            "outputs": [_to_metadata(row) for row in served.contract.outputs.values()],
        }

    def config_message(self, model: str, version: str = "") -> Any:
        """
        Return a model's complete `ModelConfig`.

        Raises:
            ModelUnknown: The model or version is not served.
        """
        return self._find(model, version).config

    def config(self, model: str, version: str = "") -> dict[str, Any]:
        """
        Return a model's complete configuration as JSON values.

        Raises:
            ModelUnknown: The model or version is not served.
        """
        return to_json(self.config_message(model, version))

    def statistics(self, model: str = "", version: str = "") -> list[dict[str, Any]]:
        """
        Return the statistics of one model, or of all.

        Raises:
            RequestRefused: The model or version is not served.
        """
        return [
            {"name": served.name, "version": served.version} | served.statistics.to_dict()
            for served in self._selected(model, version)
        ]

    def served(self) -> list[ServedVersion]:
        """Return every version that serves, by name and number."""
        return [served for _, entry in sorted(self._entries.items()) for served in entry.served.values()]

    # Control

    def index(self, *, only_ready: bool = False) -> list[IndexEntry]:
        """Return one line per model and version, those of the repository that were never loaded included."""
        lines: list[IndexEntry] = []
        for name in sorted({*self._repository.names(), *self._entries}):
            entry = self._entries.get(name)
            lines += entry.lines if entry is not None else (IndexEntry(name=name),)
        return [line for line in lines if line.state == "READY" or not only_ready]

    def load(self, model: str, *, override: str | None = None) -> None:
        """
        Load or reload a model; requests in flight finish on what served them, and a failed load changes nothing.

        Args:
            model: Its name.
            override: A configuration as JSON in place of `config.pbtxt`.

        Raises:
            ModelUnloadable: There is no such folder, or its configuration cannot be read.
            LoadFailed: A version cannot serve.
        """
        with self._lock_of(model):
            try:
                loaded = load_model(self._repository, model, self._load_options, override)
            except ModelUnloadable as error:
                self._keep_reason(model, (IndexEntry(name=model, state="UNAVAILABLE", reason=error.message),))
                raise
            if loaded.refused or not loaded.served:
                self._discard(loaded)
            self._publish(loaded)

    def unload(self, model: str) -> None:
        """Stop serving a model; requests in flight are answered, then its session is freed."""
        with self._lock_of(model):
            entry = self._entries.get(model)
            if entry is None or not entry.served:
                return
            lines = tuple(
                IndexEntry(name=model, version=version, state="UNAVAILABLE", reason="unloaded")
                for version in entry.served
            )
            self._entries[model] = _Entry(lines=lines)
            _retire(entry.served.values())

    def check_control(self) -> None:
        """
        Refuse a request to load or unload in a mode that does not take any.

        Raises:
            ControlRefused: The control mode is not `explicit`.
        """
        if self._control_mode != "explicit":
            raise ControlRefused("explicit model load / unload is not allowed if polling is enabled")

    def load_at_start(self, models: Iterable[str] = ()) -> None:
        """Load these models, or all for `*` and in mode `none`, side by side; what fails says why in the index."""
        try:
            names = self._names_at_start(models)
            with ThreadPoolExecutor(_LOADERS, thread_name_prefix="keynet-serving-load") as pool:
                list(pool.map(self._load_or_note, names))
        finally:
            self._started.set()

    def close(self) -> None:
        """Stop serving every model."""
        self._is_stopped = True
        for name in list(self._entries):
            self.unload(name)

    def _names_at_start(self, models: Iterable[str]) -> list[str]:
        asked = list(models)
        if self._control_mode == "none" or EVERY_MODEL in asked:
            return self._repository.names()
        return sorted(set(asked))

    def _load_or_note(self, model: str) -> None:
        try:
            self.load(model)
        except (ModelUnloadable, LoadFailed) as error:
            self._note(model, error.message)
        except Exception as error:  # noqa: BLE001 -- what nobody foresaw in one model must not keep the others from loading
            self._note(model, f"Internal: {error!r}")

    def _note(self, model: str, reason: str) -> None:
        if model not in self._entries:
            self._entries[model] = _Entry(lines=(IndexEntry(name=model, state="UNAVAILABLE", reason=reason),))

    def _discard(self, loaded: Loaded) -> None:
        _retire(loaded.served)
        name = loaded.name
        if not loaded.refused:
            told = f"at least one version must be available under the version policy of model '{name}'\n"
            self._keep_reason(name, (IndexEntry(name=name, state="UNAVAILABLE", reason=told.strip()),))
            raise LoadFailed(f"load failed for model '{name}': {told}")
        self._keep_reason(
            name,
            tuple(
                IndexEntry(name=name, version=str(version), state="UNAVAILABLE", reason=reason)
                for version, reason in loaded.refused.items()
            ),
        )
        told = "".join(
            f"version {version} is at UNAVAILABLE state: {reason};\n" for version, reason in loaded.refused.items()
        )
        raise LoadFailed(f"load failed for model '{name}': {told}")

    def _keep_reason(self, model: str, lines: tuple[IndexEntry, ...]) -> None:
        """Tell in the index why a load failed, unless an older load still serves or nobody knows the name."""
        entry = self._entries.get(model)
        is_known = entry is not None or model in self._repository.names()
        if is_known and not (entry is not None and entry.served):
            self._entries[model] = _Entry(lines=lines)

    def _publish(self, loaded: Loaded) -> None:
        before = self._entries.get(loaded.name)
        served = {each.version: each for each in loaded.served}
        lines = [
            IndexEntry(name=loaded.name, version=each.version, state="READY", reason=each.note)
            for each in loaded.served
        ]
        gone = before.served.keys() - served.keys() if before is not None else ()
        lines += [
            IndexEntry(name=loaded.name, version=version, state="UNAVAILABLE", reason="unloaded") for version in gone
        ]
        lines.sort(key=lambda line: int(line.version))
        self._entries[loaded.name] = _Entry(served=served, default=loaded.served[-1], lines=tuple(lines))
        if before is not None:
            _retire(before.served.values())

    def _find(self, model: str, version: str) -> ServedVersion:
        entry = self._entries.get(model)
        if entry is None:
            raise ModelUnknown(f"Request for unknown model: '{model}' is not found")
        if entry.default is None:
            raise ModelUnknown(f"Request for unknown model: '{model}' has no available versions")
        if not version:
            return entry.default
        if version not in entry.served:
            raise ModelUnknown(f"Request for unknown model: '{model}' version {version} is not found")
        return entry.served[version]

    def _selected(self, model: str, version: str) -> list[ServedVersion]:
        if not model:
            return self.served()
        entry = self._entries.get(model)
        if entry is None or not entry.served:
            raise RequestRefused(f"requested model '{model}' is not available")
        if not version:
            return list(entry.served.values())
        if version not in entry.served:
            raise RequestRefused(f"requested model version is not available for model '{model}'")
        return [entry.served[version]]

    def _lock_of(self, model: str) -> threading.Lock:
        with self._locks_lock:
            return self._locks.setdefault(model, threading.Lock())


def _to_metadata(row: TensorContract) -> dict[str, Any]:
    return {"name": row.name, "datatype": row.dtype.kserve, "shape": list(row.shape)}


def _retire(versions: Iterable[ServedVersion]) -> None:
    for version in versions:
        version.retire()
