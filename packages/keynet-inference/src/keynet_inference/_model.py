"""What a model server says a model takes and gives, in the form a request is checked against."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from keynet_core import DataType, KeynetError, format_shape, to_wire
from keynet_inference._errors import InferenceFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]


class Asked(NamedTuple):
    """A model and the version that is asked; an empty version leaves the choice to the server."""

    model: str
    version: str

    def __str__(self) -> str:
        return f"{self.model!r} version {self.version}" if self.version else repr(self.model)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output; -1 in `sizes` is an axis that may vary."""

    name: str
    datatype: DataType
    dtype: np.dtype[Any]
    sizes: tuple[int, ...]

    @classmethod
    def read(cls, name: str, datatype: str, sizes: Iterable[int]) -> Tensor:
        """Return the tensor that metadata names so."""
        found = to_datatype(datatype)
        return cls(name, found, found.to_numpy(), tuple(map(int, sizes)))

    def is_fit_by(self, array: Array) -> bool:
        """Whether an array has this element type and shape."""
        return array.dtype == self.dtype and self.is_shape(array.shape)

    def is_shape(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape fits."""
        return _fits(self.sizes, tuple(shape))

    def __str__(self) -> str:
        return f"{self.name} {self.datatype.name} {format_shape(self.sizes)}"


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its server describes it."""

    asked: Asked
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


_COPIED_BYTES = 64 * 1024
"""Up to here copying an array is cheaper than three views of it."""


@functools.lru_cache(maxsize=256)
def _fits(sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a shape is one of those that `sizes` allows; the next request mostly has the same one."""
    return len(shape) == len(sizes) and all(taken in {size, -1} for size, taken in zip(shape, sizes, strict=True))


@functools.lru_cache(maxsize=32)
def to_datatype(name: str) -> DataType:
    """Return the type KServe v2 calls `name`; every answer names some."""
    return DataType.from_kserve(name)


def read_model(asked: Asked, told: Mapping[str, Any]) -> Model:
    """
    Read the metadata of KServe v2.

    Raises:
        InferenceFailed: It is something else.

    """
    try:
        return Model(asked, _tensors(told["inputs"]), _tensors(told["outputs"]))
    except (KeyError, TypeError, ValueError, KeynetError) as error:
        raise InferenceFailed(f"the metadata of model {asked} cannot be read: {error}") from error


def _tensors(told: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    tensors = (Tensor.read(each["name"], each["datatype"], each["shape"]) for each in told)
    return {tensor.name: tensor for tensor in tensors}


def to_data(array: Array) -> bytes | memoryview:
    """Return an array's bytes as they are sent; those of numbers that lie in a row are not copied."""
    if array.dtype.kind == "O" or not array.size:
        return to_wire(array)
    if array.nbytes <= _COPIED_BYTES:
        return array.tobytes()
    import numpy as np

    # Through uint8: the buffer protocol knows no bfloat16.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
