"""What a model accepts and answers, by its configuration; one row per tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from keynet_core import DataType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorContract:
    """
    One tensor as clients see it, and the shape the graph gives it instead where the configuration says `reshape`.

    `dims` leave out the batch axis; `graph_dims` are None where graph and client see the same shape.
    """

    name: str
    dtype: DataType
    numpy_dtype: np.dtype[Any]
    dims: tuple[int, ...]
    graph_dims: tuple[int, ...] | None
    is_batched: bool
    labels: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape clients see, -1 for each axis that may vary."""
        return (-1, *self.dims) if self.is_batched else self.dims

    def has_shape(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape fits, its batch axis aside."""
        sizes = shape[1:] if self.is_batched else shape
        if sizes == self.dims:
            return True
        return len(sizes) == len(self.dims) and all(d in {-1, s} for d, s in zip(self.dims, sizes, strict=True))

    def to_graph(self, array: Array) -> Array:
        """Return an array in the shape the graph takes."""
        if self.graph_dims is None:
            return array
        return array.reshape((array.shape[0], *self.graph_dims) if self.is_batched else self.graph_dims)

    def from_graph(self, array: Array) -> Array:
        """Return an array in the shape clients see."""
        if self.graph_dims is None:
            return array
        return array.reshape((array.shape[0], *self.dims) if self.is_batched else self.dims)

    @classmethod
    def from_config(cls, row: Any, *, is_batched: bool, graph_rank: int, labels: tuple[str, ...] = ()) -> Self:
        """Read a row of a `ModelConfig`; `graph_rank` tells the scalar that Triton shows as `[1]`."""
        from tritonclient.grpc import model_config_pb2

        dtype = DataType.from_triton(model_config_pb2.DataType.Name(row.data_type))
        graph_dims = tuple(row.reshape.shape) if row.HasField("reshape") else None
        if graph_dims is None and graph_rank == 0:
            graph_dims = ()
        return cls(
            name=row.name,
            dtype=dtype,
            numpy_dtype=dtype.to_numpy(),
            dims=tuple(row.dims),
            graph_dims=graph_dims,
            is_batched=is_batched,
            labels=labels,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """A model's inputs and outputs, and how many rows one request may have; 0 means there is no batch axis."""

    model: str
    max_batch_size: int
    inputs: Mapping[str, TensorContract]
    outputs: Mapping[str, TensorContract]

    @classmethod
    def from_config(cls, config: Any, ranks: Mapping[str, int], labels: Mapping[str, tuple[str, ...]]) -> Self:
        """Read a complete `ModelConfig`; `ranks` are the graph's, by tensor."""

        def rows(told: Iterable[Any]) -> dict[str, TensorContract]:
            return {
                row.name: TensorContract.from_config(
                    row,
                    is_batched=config.max_batch_size > 0,
                    graph_rank=ranks[row.name],
                    labels=labels.get(row.name, ()),
                )
                for row in told
            }

        return cls(
            model=config.name,
            max_batch_size=config.max_batch_size,
            inputs=rows(config.input),
            outputs=rows(config.output),
        )


def to_text(shape: Sequence[int]) -> str:
    """Return a shape as Triton writes it: `[-1,2]`."""
    return f"[{','.join(map(str, shape))}]"
