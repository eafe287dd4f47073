"""Tensors as a contract: what a model takes and gives, without any array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from keynet_core._dtypes import DataType
from keynet_core._errors import TensorMismatch
from keynet_core._names import to_tensor_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Dim = int | str
"""A size, or the symbol of an axis whose size may vary. The same symbol is the same size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output: its name, element type and shape, for example `image FP32 [batch, 3, 224, 224]`."""

    name: str
    dtype: DataType
    shape: tuple[Dim, ...]

    def __post_init__(self) -> None:
        to_tensor_name(self.name)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape as Triton and KServe write it: -1 for each axis that may vary."""
        return tuple(-1 if isinstance(dim, str) else dim for dim in self.shape)

    def refuses(self, dtype: DataType, shape: Sequence[int]) -> str | None:
        """Return why an array of this type and shape does not fit, in one sentence, or None when it does."""
        if dtype is not self.dtype:
            return f"tensor {self.name!r} takes {self.dtype.name}, got {dtype.name}"
        fits = len(shape) == len(self.shape) and all(
            isinstance(dim, str) or dim == size for dim, size in zip(self.shape, shape, strict=True)
        )
        if fits:
            return None
        return f"tensor {self.name!r} takes shape {format_shape(self.shape)}, got {format_shape(shape)}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"name": self.name, "datatype": self.dtype.kserve, "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Self:
        """
        Read what `to_dict` wrote.

        Raises:
            TensorMismatch: The type is unknown, or a dimension is neither a size nor a symbol.
            NameRefused: The name is none.

        """
        dims = tuple(map(_dim, told["shape"]))
        return cls(name=told["name"], dtype=DataType.from_kserve(told["datatype"]), shape=dims)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype.name} {format_shape(self.shape)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a model takes and gives, in the order of its graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batch_symbol(self) -> str | None:
        """
        The symbol that is the first axis of every input and every output, or None.

        Only such a model may be batched by a server: a first axis that is merely variable (`3*batch`, or another
        symbol) would hand one caller a part of another's answer. An expression is a size computed from others, so it is
        no batch even where all tensors share it.
        """
        firsts = {spec.shape[0] if spec.shape else None for spec in (*self.inputs, *self.outputs)}
        only = firsts.pop() if len(firsts) == 1 else None
        return only if isinstance(only, str) and only.isidentifier() else None

    @property
    def symbols(self) -> tuple[str, ...]:
        """Every symbol of the inputs, each once, in the order they appear."""
        return tuple(dict.fromkeys(dim for spec in self.inputs for dim in spec.shape if isinstance(dim, str)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
        }

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        return cls(inputs=_specs(told["inputs"]), outputs=_specs(told["outputs"]))

    def __str__(self) -> str:
        takes, gives = ("; ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"{takes} -> {gives}"


def format_shape(shape: Iterable[Dim]) -> str:
    """Return a shape as people write it: `[batch, 3, 224, 224]`."""
    return f"[{', '.join(map(str, shape))}]"


def _dim(told: object) -> Dim:
    if (isinstance(told, str) and told) or (type(told) is int and told >= 0):
        return told
    raise TensorMismatch(f"{told!r:.80} is no dimension: a dimension is a size of at least 0, or a symbol")


def _specs(told: Iterable[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec.from_dict(each) for each in told)
