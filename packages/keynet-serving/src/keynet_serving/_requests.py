"""A request and its answer as values, the same for HTTP, gRPC and calls in process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

    from keynet_core import DataType

    Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferInput:
    """One input as a client sent it: bytes of the binary extension, or an array where the protocol carried values."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array | memoryview | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedOutput:
    """One output a client asked for; with a class count it is answered as `value:index:label` texts."""

    name: str
    class_count: int = 0
    is_binary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """What a client asks of one model; without outputs it gets all of them."""

    model: str
    version: str = ""
    id: str = ""
    inputs: tuple[InferInput, ...] = ()
    outputs: tuple[RequestedOutput, ...] = ()
    is_binary: bool = False

    @property
    def size_bytes(self) -> int:
        """How much data the inputs carry."""
        return sum(len(each.data) if isinstance(each.data, bytes) else each.data.nbytes for each in self.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTensor:
    """One output of an answer, in the shape the model's metadata promises."""

    name: str
    dtype: DataType
    array: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class InferResponse:
    """An answer: which version gave it, and its outputs in the order of the model's configuration."""

    model: str
    version: str
    id: str
    outputs: tuple[OutputTensor, ...]
