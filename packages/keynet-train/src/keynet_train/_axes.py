"""Which axis of which tensor carries which symbol. Shapes and names only: no tensor is touched here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keynet_train._result import Degradation
from keynet_train._sample import to_own_symbol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from keynet_core import Dim
    from keynet_train._sample import AxisNames

    Shape = tuple[int, ...]
    Place = tuple[str, int]

BATCH = "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbol:
    """
    A size that may vary, and every input axis that has it.

    `is_asked` says whether the user named one of the axes, or it is the batch by default.
    """

    name: str
    size: int
    places: tuple[Place, ...]
    is_asked: bool

    @property
    def is_batch(self) -> bool:
        """Whether it is only ever a first axis."""
        return all(axis == 0 for _, axis in self.places)

    def candidates(self) -> tuple[int, ...]:
        """Return other sizes to try, the most telling first: one more, half, a multiple of 32 more, double."""
        more = max(self.size + 1, 3)
        tried = (more, self.size // 2, self.size + 32, self.size * 2)
        return tuple(dict.fromkeys(size for size in tried if size not in {0, self.size}))

    def without(self, name: str) -> Symbol:
        """Return the symbol with one input left out."""
        places = tuple(place for place in self.places if place[0] != name)
        return Symbol(name=self.name, size=self.size, places=places, is_asked=self.is_asked)

    def __str__(self) -> str:
        where = " and ".join(f"axis {axis} of {name!r}" for name, axis in self.places)
        return f"{where} ({self.name!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The sizes of the symbols in one run of the module, and the shapes of what it answered."""

    sizes: Mapping[str, int]
    shapes: tuple[Shape, ...]


def find_symbols(
    shapes: Mapping[str, Shape], asked: AxisNames | None
) -> tuple[tuple[Symbol, ...], tuple[Degradation, ...]]:
    """
    Return the symbols of a model's inputs.

    Axis 0 of an input is the batch, unless `asked` names axes of that input: then exactly those vary. Where the user
    named a first axis of another input, the batch has that name. A first axis of another size than the batch is not
    the batch.
    """
    names = asked or {}
    batch, size = _batch_of(shapes, names)
    places: dict[str, list[Place]] = {}
    degradations = []
    for name, shape in shapes.items():
        if name in names:
            for axis, symbol in names[name].items():
                places.setdefault(symbol, []).append((name, axis))
        elif shape and shape[0] == size:
            places.setdefault(batch, []).append((name, 0))
        elif shape:
            degradations.append(_not_batch(name, shape[0], batch, size))
    told = {symbol for name in shapes for symbol in names.get(name, {}).values()}
    symbols = (
        Symbol(name=symbol, size=shapes[at[0][0]][at[0][1]], places=tuple(at), is_asked=symbol in told)
        for symbol, at in places.items()
    )
    return tuple(symbols), tuple(degradations)


def input_dims(name: str, shape: Shape, symbols: Sequence[Symbol]) -> tuple[Dim, ...]:
    """Return an input's shape with a symbol at each axis that may vary."""
    varying = {axis: symbol.name for symbol in symbols for place, axis in symbol.places if place == name}
    return tuple(varying.get(axis, size) for axis, size in enumerate(shape))


def output_dims(
    observations: Sequence[Observation], asked: AxisNames | None, taken: Collection[str]
) -> tuple[tuple[tuple[Dim, ...], ...], tuple[Degradation, ...]]:
    """
    Derive the shape of each output from how it grew from run to run.

    An axis that always had the size of a symbol has that symbol; one that never varied is fixed; any other, such as
    `3 * batch` or the number of objects found, has a symbol of its own, which is the user's where they gave one.
    `taken` are the names of the input axes that were asked for, also of those that turned out to be fixed.
    """
    names = asked or {}
    degradations = _unknown_outputs(observations[0].shapes, names)
    own: dict[str, list[int]] = {}
    found = []
    for index, shape in enumerate(observations[0].shapes):
        declared = names.get(f"output_{index}", {})
        dims: list[Dim] = []
        for axis in range(len(shape)):
            seen = [each.shapes[index][axis] for each in observations]
            dim = _dim(f"output_{index}", axis, observations, seen, declared.get(axis), taken, own)
            degradations += _contradiction(f"output_{index}", axis, declared.get(axis), dim, observations)
            dims.append(dim)
        found.append(tuple(dims))
    return tuple(found), tuple(degradations)


def _batch_of(shapes: Mapping[str, Shape], names: AxisNames) -> tuple[str, int | None]:
    for name, shape in shapes.items():
        if symbol := names.get(name, {}).get(0):
            return symbol, shape[0]
    sizes = [shape[0] for name, shape in shapes.items() if shape and name not in names]
    return BATCH, sizes[0] if sizes else None


def _not_batch(name: str, size: int, batch: str, batch_size: int | None) -> Degradation:
    return Degradation(
        code="axes.not_batch",
        message=f"axis 0 of {name!r} is fixed at {size}: it is not {batch!r}, which has {batch_size} in the sample; "
        f"dynamic_axes={{{name!r}: {{0: ...}}}} lets it vary",
    )


def _dim(
    output: str,
    axis: int,
    observations: Sequence[Observation],
    seen: list[int],
    declared: str | None,
    taken: Collection[str],
    own: dict[str, list[int]],
) -> Dim:
    for symbol in observations[0].sizes:
        if seen == [each.sizes[symbol] for each in observations]:
            return symbol
    is_free = declared is not None and declared not in taken
    if len(set(seen)) == 1 and not is_free:
        return seen[0]
    name = declared if declared is not None and is_free else to_own_symbol(output, axis)
    while name in taken or own.setdefault(name, seen) != seen:
        name = f"{name}_"
    return name


def _unknown_outputs(shapes: tuple[Shape, ...], names: AxisNames) -> list[Degradation]:
    ranks = {f"output_{index}": len(shape) for index, shape in enumerate(shapes)}
    return [
        Degradation(
            code="axes.unknown",
            message=f"dynamic_axes names axis {axis} of {name!r}; the model has "
            + (f"{ranks[name]} axes there" if name in ranks else f"{len(ranks)} outputs"),
        )
        for name, axes in names.items()
        if name.startswith("output_")
        for axis in axes
        if axis >= ranks.get(name, 0)
    ]


def _contradiction(
    output: str, axis: int, declared: str | None, dim: Dim, observations: Sequence[Observation]
) -> list[Degradation]:
    if declared is None or declared == dim or declared not in observations[0].sizes:
        return []
    told = f"varies on its own, as {dim!r}" if isinstance(dim, str) else f"always has {dim}"
    return [
        Degradation(
            code="axes.contradicted",
            message=f"axis {axis} of {output!r} was named {declared!r}, but {told} when {declared!r} varies",
        )
    ]
