"""HttpClient: KServe v2 over HTTP with the binary tensor extension."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import numpy as np

from keynet_core import KeynetError, from_wire
from keynet_inference._client import ServerTold
from keynet_inference._errors import InferenceFailed
from keynet_inference._model import read_model, to_data, to_datatype
from keynet_inference._refusals import from_http
from keynet_inference._sockets import ConnectionPool

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from keynet_inference._client import Arrays, Slice
    from keynet_inference._deadlines import Deadline
    from keynet_inference._model import Asked, Model
    from keynet_inference._sockets import Answer

    Array = npt.NDArray[Any]

_HEADER_LENGTH = "Inference-Header-Content-Length"


class HttpClient:
    """Asks a server at `http://host:port/base` or `https://`."""

    def __init__(self, url: str, connect_timeout_s: float) -> None:
        parts = urlsplit(url)
        self.url = url
        self._base = f"{parts.path.rstrip('/')}/v2"
        self._pool = ConnectionPool(url, connect_timeout_s)

    def describe(self, asked: Asked, deadline: Deadline) -> Model:
        """Return what a model takes and gives."""
        answer = self._pool.ask("GET", self._path(asked), {}, (), deadline)
        return read_model(asked, self._json(answer))

    def ready_models(self, deadline: Deadline) -> tuple[str, ...]:
        """Return the names of the models that are ready."""
        told: Any = self._json(
            self._pool.ask("POST", f"{self._base}/repository/index", {}, (b'{"ready":true}',), deadline)
        )
        ready = (each for each in told if each.get("state", "READY") == "READY")
        return tuple(sorted({each["name"] for each in ready}))

    def infer(
        self, model: Model, inputs: Arrays, deadline: Deadline, shared: Mapping[str, Slice] | None = None
    ) -> dict[str, Array]:
        """Return what a model gives; inputs that are in `shared` are there already."""
        there = shared or {}
        datas = {name: to_data(array) for name, array in inputs.items() if name not in there}
        told = [
            _tell(model, name, array, _told_slice(there[name]) if name in there else _told_size(datas[name]))
            for name, array in inputs.items()
        ]
        head = json.dumps({"inputs": told, "parameters": {"binary_data_output": True}}).encode()
        headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(head))}
        body = (head, *datas.values())
        answer = self._pool.ask("POST", f"{self._path(model.asked)}/infer", headers, body, deadline)
        return self._outputs(answer)

    def describe_server(self, deadline: Deadline) -> ServerTold:
        """Return what the server says of itself."""
        told: Any = self._json(self._pool.ask("GET", self._base, {}, (), deadline))
        return ServerTold(str(told.get("version", "")), frozenset(map(str, told.get("extensions", ()))))

    def register_region(self, name: str, size_bytes: int, deadline: Deadline) -> None:
        """Have the server map a region."""
        body = json.dumps({"key": f"/{name}", "offset": 0, "byte_size": size_bytes}).encode()
        self._checked(self._pool.ask("POST", f"{self._shared_path}/region/{name}/register", {}, (body,), deadline))

    def unregister_region(self, name: str, deadline: Deadline) -> None:
        """Have the server let go of a region."""
        self._checked(self._pool.ask("POST", f"{self._shared_path}/region/{name}/unregister", {}, (b"{}",), deadline))

    def region_names(self, deadline: Deadline) -> tuple[str, ...]:
        """Return the names of the regions that the server has mapped."""
        told: Any = self._json(self._pool.ask("GET", f"{self._shared_path}/status", {}, (), deadline))
        return tuple(str(each["name"]) for each in told)

    def close(self) -> None:
        """Close the connections that are idle now, and the others when they become so."""
        self._pool.close()

    def _path(self, asked: Asked) -> str:
        version = f"/versions/{quote(asked.version, safe='')}" if asked.version else ""
        return f"{self._base}/models/{quote(asked.model, safe='')}{version}"

    @property
    def _shared_path(self) -> str:
        return f"{self._base}/systemsharedmemory"

    def _checked(self, answer: Answer) -> None:
        """Raise where the status is not 200; what says yes here has no body."""
        if answer.status != 200:
            self._json(answer)

    def _json(self, answer: Answer) -> Any:
        return self._parse(answer.status, bytes(answer.body))

    def _parse(self, status: int, text: bytes) -> Any:
        try:
            told = json.loads(text)
        except ValueError as error:
            if status != 200:
                raise from_http(status, text[:200].decode(errors="replace"), self.url) from None
            raise InferenceFailed(f"{self.url} answered something that is no JSON: {error}") from error
        if status != 200:
            message = told.get("error", told) if isinstance(told, dict) else told
            raise from_http(status, str(message), self.url)
        return told

    def _outputs(self, answer: Answer) -> dict[str, Array]:
        length = answer.headers.get(_HEADER_LENGTH, "")
        head = int(length) if length.isdecimal() else len(answer.body)
        told = self._parse(answer.status, bytes(answer.body[:head]))
        try:
            return _read_outputs(told["outputs"], answer.body[head:])
        except (KeyError, TypeError, ValueError, AttributeError, KeynetError) as error:
            raise InferenceFailed(f"{self.url} answered outputs that cannot be read: {error!r}") from error


def _tell(model: Model, name: str, array: Array, parameters: Mapping[str, Any]) -> dict[str, Any]:
    datatype = model.inputs[name].datatype.kserve
    return {"name": name, "datatype": datatype, "shape": array.shape, "parameters": parameters}


def _told_size(data: bytes | memoryview) -> dict[str, Any]:
    return {"binary_data_size": len(data)}


def _told_slice(where: Slice) -> dict[str, Any]:
    return {
        "shared_memory_region": where.region,
        "shared_memory_offset": where.offset_bytes,
        "shared_memory_byte_size": where.size_bytes,
    }


def _read_outputs(told: list[Mapping[str, Any]], data: memoryview) -> dict[str, Array]:
    outputs: dict[str, Array] = {}
    at = 0
    for each in told:
        datatype = to_datatype(each["datatype"])
        size = each.get("parameters", {}).get("binary_data_size")
        if size is None:
            outputs[each["name"]] = np.array(each["data"], datatype.to_numpy()).reshape(each["shape"])
        else:
            outputs[each["name"]] = from_wire(data[at : at + size], datatype, each["shape"])
            at += size
    return outputs
