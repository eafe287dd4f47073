"""ModelClient: the seam to a model server, and which class speaks the scheme of its URL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from keynet_inference._deadlines import Deadline
    from keynet_inference._model import Asked, Model

    Arrays = Mapping[str, npt.NDArray[Any]]


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


class Slice(NamedTuple):
    """Where in shared memory one array is."""

    region: str
    offset_bytes: int
    size_bytes: int


class ServerTold(NamedTuple):
    """What a server says of itself."""

    version: str
    extensions: frozenset[str]


class RegionServer(ModelClient, Protocol):
    """A way to a model server that may map shared memory."""

    def infer(
        self, model: Model, inputs: Arrays, deadline: Deadline, shared: Mapping[str, Slice] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Return what a model gives; inputs that are in `shared` are there already."""

    def describe_server(self, deadline: Deadline) -> ServerTold:
        """Return what the server says of itself."""

    def register_region(self, name: str, size_bytes: int, deadline: Deadline) -> None:
        """Have the server map a region."""

    def unregister_region(self, name: str, deadline: Deadline) -> None:
        """Have the server let go of a region; one that it does not have is fine."""

    def region_names(self, deadline: Deadline) -> tuple[str, ...]:
        """Return the names of the regions that the server has mapped."""


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
