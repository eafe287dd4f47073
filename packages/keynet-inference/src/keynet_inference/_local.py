"""LocalClient: a model repository served in this process; the only module that knows keynet_serving."""

from __future__ import annotations

import functools
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from keynet_core import MissingDependency
from keynet_inference._errors import ModelNotServed
from keynet_inference._model import read_model
from keynet_inference._refusals import from_grpc

try:
    from keynet_serving import LoadFailed, ModelServer, ModelUnknown, ModelUnloadable, ServingError
except ModuleNotFoundError as missing:
    raise MissingDependency(
        "a file:// address serves the model in this process, which needs keynet-serving",
        hint="pip install 'keynet-inference[local]'",
    ) from missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from keynet_inference._client import Arrays
    from keynet_inference._deadlines import Deadline
    from keynet_inference._model import Asked, Model

    Array = npt.NDArray[Any]

_MAX_REPOSITORIES = 8


class LocalClient:
    """
    Asks the models of a repository at `file:///path/to/repository`.

    A model is loaded when it is first asked for, and stays as it was then until the process ends: every plugin of a
    process shares it. A request runs to its end, whatever its deadline.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._server = _serve(Path(unquote(urlsplit(url).path)), os.getpid())

    def describe(self, asked: Asked, deadline: Deadline) -> Model:  # noqa: ARG002 - nothing here waits for others
        """Return what a model takes and gives."""
        with self._translating():
            if not self._server.is_model_ready(asked.model):
                self._server.load(asked.model)
            return read_model(asked, self._server.metadata(asked.model, asked.version))

    def ready_models(self, deadline: Deadline) -> tuple[str, ...]:  # noqa: ARG002 - nothing here waits for others
        """Return the names of the models that are loaded, or will be when they are asked for."""
        with self._translating():
            lines = self._server.index()
        return tuple(sorted({line.name for line in lines if line.state in {"", "READY"}}))

    def infer(self, model: Model, inputs: Arrays, deadline: Deadline) -> dict[str, Array]:  # noqa: ARG002 - see class
        """Return what a model gives."""
        try:
            return self._server.infer(model.asked.model, inputs, version=model.asked.version)
        except ServingError as error:
            raise from_grpc(error.grpc_status, error.message, self.url) from error

    def close(self) -> None:
        """Do nothing: the models are shared with the other plugins of this process."""

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except (LoadFailed, ModelUnloadable, ModelUnknown) as error:
            raise ModelNotServed(f"{self.url} cannot serve it: {error.message}", hint=error.hint) from error


@functools.lru_cache(maxsize=_MAX_REPOSITORIES)
def _serve(repository: Path, pid: int) -> ModelServer:  # noqa: ARG001 - part of the key: a forked session would hang
    """Return this process's server of a repository; a plugin per call must not load a model per call."""
    return ModelServer(repository)
