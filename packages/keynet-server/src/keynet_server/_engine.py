"""The model server: the seam, and the one adapter, for KServe v2 with Triton's repository extension over HTTP."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlsplit

from keynet_core import DataType, KeynetError, from_wire, to_wire
from keynet_server._errors import EngineRefused, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from keynet_core import ModelName

    Arrays = Mapping[str, npt.NDArray[Any]]

_MAX_ANSWER_BYTES = 256 * 1024 * 1024
_AWAY = {502, 504}
"""What a proxy answers in place of the model server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow:
    """A version of a model that the model server knows, and what it says of it."""

    name: str
    version: str
    state: str
    reason: str = ""


class ServingEngine(Protocol):
    """
    Loads what stands in the serving repository, and answers.

    Every method raises EngineUnavailable when the engine does not answer in time. A refused load leaves what was
    served before.
    """

    def load(self, name: ModelName, config: str | None = None) -> None:
        """
        Load a model, or load it again; return when it is loaded, or raise EngineRefused.

        Args:
            name: The model.
            config: Its configuration as JSON, where the engine could not see that it changed.

        """

    def unload(self, name: ModelName) -> None:
        """Stop serving a model; one that is not served is unloaded already."""

    def is_live(self) -> bool:
        """Return whether the engine takes requests."""

    def is_ready(self, name: ModelName, version: str) -> bool:
        """Return whether this version of a model can be asked."""

    def index(self) -> list[IndexRow]:
        """Return what the engine knows of its repository."""

    def infer(self, name: ModelName, version: str, inputs: Arrays) -> Arrays:
        """Return a model's outputs, or raise EngineRefused."""


@dataclass(frozen=True, kw_only=True)
class KServeEngine:
    """Triton, or any server that speaks its HTTP protocol; one bounded connection per request, never a proxy."""

    url: str
    timeout_s: float = 10.0
    load_timeout_s: float = 120.0

    def load(self, name: ModelName, config: str | None = None) -> None:
        """Load a model, or load it again; an engine that is told a configuration does not look at times."""
        parameters = {} if config is None else {"parameters": {"config": config}}
        self._control(name, "load", self.load_timeout_s, parameters)

    def unload(self, name: ModelName) -> None:
        """Stop serving a model."""
        self._control(name, "unload", self.timeout_s, {})

    def is_live(self) -> bool:
        """Return whether the engine takes requests."""
        return self._ask("GET", "/v2/health/live")[0] == 200

    def is_ready(self, name: ModelName, version: str) -> bool:
        """Return whether this version of a model can be asked."""
        return self._ask("GET", f"/v2/models/{quote(name)}/versions/{quote(version)}/ready")[0] == 200

    def index(self) -> list[IndexRow]:
        """Return what the engine knows of its repository."""
        status, _, body = self._ask("POST", "/v2/repository/index", b"{}")
        if status != 200:
            raise EngineRefused(f"the model server at {self.url} has no index: {_words(status, body)}")
        return [_to_row(each) for each in self._read_json(body, list)]

    def infer(self, name: ModelName, version: str, inputs: Arrays) -> Arrays:
        """Return a model's outputs; tensors travel in the binary extension."""
        head, tensors = _request_of(inputs)
        headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        path = f"/v2/models/{quote(name)}/versions/{quote(version)}/infer"
        status, announced, body = self._ask("POST", path, head + tensors, headers, self.load_timeout_s)
        if status != 200:
            raise EngineRefused(f"the model server does not answer for {name}: {_words(status, body)}")
        length = len(body) if announced is None else announced
        try:
            return _arrays_of(self._read_json(body[:length], dict), memoryview(body)[length:])
        except (KeyError, TypeError, ValueError) as error:
            raise EngineRefused(f"the model server's answer for {name} cannot be read: {error!r}") from error

    def _control(self, name: ModelName, verb: str, timeout_s: float, asked: dict[str, Any]) -> None:
        path, sent = f"/v2/repository/models/{quote(name)}/{verb}", json.dumps(asked).encode()
        status, _, body = self._ask("POST", path, sent, timeout_s=timeout_s)
        if status != 200:
            raise EngineRefused(f"the model server refused to {verb} {name}: {_words(status, body)}")

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> tuple[int, int | None, bytes]:
        connection = self._connect(self.timeout_s if timeout_s is None else timeout_s)
        try:
            connection.request(method, urlsplit(self.url).path + path, body, dict(headers or {}))
            answer = connection.getresponse()
            told = answer.read(_MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise self._unavailable(str(error) or type(error).__name__) from error
        finally:
            connection.close()
        if answer.status in _AWAY:
            raise self._unavailable(f"it answered {answer.status}")
        if len(told) > _MAX_ANSWER_BYTES:
            raise EngineRefused(f"the model server at {self.url} answered more than {_MAX_ANSWER_BYTES} bytes")
        length = answer.getheader("Inference-Header-Content-Length")
        return answer.status, int(length) if length and length.isdigit() else None, told

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        host = str(parts.hostname)
        if parts.scheme != "https":
            return http.client.HTTPConnection(host, parts.port or 80, timeout=timeout_s)
        import ssl

        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, parts.port or 443, timeout=timeout_s, context=context)

    def _read_json(self, body: bytes, kind: type) -> Any:
        try:
            told = json.loads(body)
        except ValueError as error:
            raise EngineRefused(f"what answers at {self.url} is no model server: {body[:80]!r}") from error
        if not isinstance(told, kind):
            raise EngineRefused(f"what answers at {self.url} is no model server: {body[:80]!r}")
        return told

    def _unavailable(self, reason: str) -> EngineUnavailable:
        return EngineUnavailable(f"the model server at {self.url} does not answer: {reason}", hint="keynet doctor")


def _request_of(inputs: Arrays) -> tuple[bytes, bytes]:
    described, parts = [], []
    for name, array in inputs.items():
        data = to_wire(array)
        datatype = DataType.from_numpy(array.dtype).kserve
        # The protocol has no tensors without axes: a scalar travels as [1].
        shape = list(array.shape) or [1]
        parts.append(data)
        parameters = {"binary_data_size": len(data)}
        described.append({"name": name, "datatype": datatype, "shape": shape, "parameters": parameters})
    head = {"inputs": described, "parameters": {"binary_data_output": True}}
    return json.dumps(head).encode(), b"".join(parts)


def _arrays_of(told: dict[str, Any], data: memoryview) -> dict[str, npt.NDArray[Any]]:
    arrays = {}
    at = 0
    for each in told["outputs"]:
        size = int(each["parameters"]["binary_data_size"])
        if len(data) < at + size:
            raise ValueError(f"output {each['name']!r} was cut off")
        try:
            dtype = DataType.from_kserve(each["datatype"])
            arrays[str(each["name"])] = from_wire(data[at : at + size], dtype, [int(dim) for dim in each["shape"]])
        except KeynetError as error:
            raise ValueError(error.message) from error
        at += size
    return arrays


def _to_row(told: Any) -> IndexRow:
    if not isinstance(told, dict):
        raise EngineRefused(f"the model server's index has a row that is no object: {told!r:.80}")
    name, version, state, reason = (str(told.get(key) or "") for key in ("name", "version", "state", "reason"))
    return IndexRow(name=name, version=version, state=state, reason=reason)


def _words(status: int, body: bytes) -> str:
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    words = told.get("error") if isinstance(told, dict) else None
    return str(words or body[:500].decode(errors="replace") or f"status {status}")[:2000]
