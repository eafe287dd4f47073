"""ModelClient: the seam to a model server, and which class speaks the scheme of its URL."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from keynet_inference._errors import TritonTimeout

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from keynet_inference._model import Asked, Model

    Arrays = Mapping[str, npt.NDArray[Any]]


class Deadline:
    """When a request must be answered, whatever it consists of."""

    __slots__ = ("at", "timeout_s")

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.at = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """
        Return the seconds that are left, which are more than none.

        Raises:
            TritonTimeout: There are none.

        """
        left = self.at - time.monotonic()
        if left <= 0:
            raise TritonTimeout(f"no answer within {self.timeout_s:g} s", hint="TritonPlugin(timeout_s=...)")
        return left


class ModelClient(Protocol):
    """Asks one model server; any number of threads may use it at once."""

    def describe(self, asked: Asked, deadline: Deadline) -> Model:
        """Return what a model takes and gives, or raise ModelNotServed."""

    def ready_models(self, deadline: Deadline) -> tuple[str, ...]:
        """Return the names of the models that can be asked now, sorted."""

    def infer(self, model: Model, inputs: Arrays, deadline: Deadline) -> dict[str, npt.NDArray[Any]]:
        """Return what a model gives for inputs that fit it, as arrays that may be written to."""

    def close(self) -> None:
        """Give back connections."""


def open_client(url: str, connect_timeout_s: float) -> ModelClient:
    """Return what speaks the scheme of `url`."""
    scheme = urlsplit(url).scheme
    if scheme == "file":
        from keynet_inference._local import LocalClient

        return LocalClient(url)
    if scheme in {"grpc", "grpcs"}:
        from keynet_inference._grpc import GrpcClient

        return GrpcClient(url)
    from keynet_inference._http import HttpClient

    return HttpClient(url, connect_timeout_s)
