"""PyTorch against ONNX Runtime: two sets of answers compared, as a report or as one sentence about the difference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from keynet_core import DataType, format_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Arrays = Mapping[str, Array]

_EXACT_SHARE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """
    How far an element may be off: `absolute + of_greatest * max|output| + relative * |element|`.

    The part of the greatest is small, so that scores beside coordinates in one output are still compared.
    """

    absolute: float
    of_greatest: float
    relative: float

    @classmethod
    def of(cls, dtype: DataType) -> Self:
        """Return the tolerance for a type of fractions; it follows from how many digits the type has."""
        absolute, of_greatest, relative = _TOLERANCES[dtype]
        return cls(absolute=absolute, of_greatest=of_greatest, relative=relative)

    def to_dict(self) -> dict[str, float]:
        """Return plain values for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


_TOLERANCES = {
    DataType.FP64: (1e-12, 1e-9, 1e-7),
    DataType.FP32: (1e-6, 2e-5, 1e-3),
    DataType.FP16: (1e-3, 5e-3, 2e-2),
    DataType.BF16: (1e-2, 2e-2, 6e-2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputComparison:
    """
    One output of one case.

    Whole numbers and truth values have to be equal, except one in a thousand elements: where two scores tie, the
    last bit decides which index is the greatest.
    """

    name: str
    dtype: DataType
    max_abs_diff: float
    max_rel_diff: float
    tolerance: Tolerance | None
    reason: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the two agree."""
        return self.reason is None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, which has no infinity."""
        return {
            "name": self.name,
            "datatype": self.dtype.kserve,
            "max_abs_diff": _finite(self.max_abs_diff),
            "max_rel_diff": _finite(self.max_rel_diff),
            "tolerance": self.tolerance.to_dict() if self.tolerance else "equal",
            "passed": self.passed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseComparison:
    """One input, and how each output compares."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    outputs: tuple[OutputComparison, ...]

    @property
    def reason(self) -> str | None:
        """The first disagreement, in one sentence, or None."""
        return next((each.reason for each in self.outputs if each.reason), None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        told = {
            "name": self.name,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "outputs": [each.to_dict() for each in self.outputs],
            "passed": self.reason is None,
        }
        return told | {"reason": self.reason} if self.reason else told


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Every input the exported model was compared on, and those the original itself refuses."""

    reference: str
    runtime: str
    cases: tuple[CaseComparison, ...]
    skipped: Mapping[str, str]

    @property
    def reason(self) -> str | None:
        """The first disagreement, in one sentence, or None."""
        return next((case.reason for case in self.cases if case.reason), None)

    @property
    def passed(self) -> bool:
        """Whether the exported model agrees everywhere."""
        return self.reason is None

    @property
    def max_abs_diff(self) -> float:
        """The greatest difference of all."""
        return max((each.max_abs_diff for case in self.cases for each in case.outputs), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "passed": self.passed,
            "reference": self.reference,
            "runtime": self.runtime,
            "max_abs_diff": _finite(self.max_abs_diff),
            "cases": [case.to_dict() for case in self.cases],
            "skipped": dict(self.skipped),
        }


def compare(case: str, inputs: Arrays, expected: Arrays, answered: Arrays) -> CaseComparison:
    """Compare two sets of outputs of the same names for one input."""
    shapes = {name: tuple(array.shape) for name, array in inputs.items()}
    outputs = tuple(compare_output(name, array, answered[name], case) for name, array in expected.items())
    return CaseComparison(name=case, shapes=shapes, outputs=outputs)


def compare_output(name: str, expected: Array, answered: Array, case: str) -> OutputComparison:
    """Compare one output: type and shape, then every element; NaN equals NaN."""
    dtype = DataType.from_numpy(expected.dtype)
    got = DataType.from_numpy(answered.dtype)
    if got is not dtype:
        return _structural(name, dtype, f"{name} is {got.name} for input {case!r}, torch gives {dtype.name}")
    if answered.shape != expected.shape:
        told = f"{name} has shape {format_shape(answered.shape)} for input {case!r}"
        return _structural(name, dtype, f"{told}, torch gives {format_shape(expected.shape)}")
    return (
        _fractions(name, dtype, expected, answered, case)
        if dtype.is_float
        else _exact(name, dtype, expected, answered, case)
    )


def _structural(name: str, dtype: DataType, reason: str) -> OutputComparison:
    return OutputComparison(
        name=name, dtype=dtype, max_abs_diff=math.inf, max_rel_diff=math.inf, tolerance=None, reason=reason
    )


def _fractions(name: str, dtype: DataType, expected: Array, answered: Array, case: str) -> OutputComparison:
    import numpy as np

    tolerance = Tolerance.of(dtype)
    want, have = expected.astype(np.float64), answered.astype(np.float64)
    greatest = float(np.max(np.abs(want), where=np.isfinite(want), initial=0.0))
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(have - want)
    off = np.where((have == want) | (np.isnan(have) & np.isnan(want)), 0.0, off)
    off = np.where(np.isnan(off), np.inf, off)
    size = np.where(np.isfinite(want), np.abs(want), 0.0)
    allowed = tolerance.absolute + tolerance.of_greatest * greatest + tolerance.relative * size
    worst = _worst(off - allowed)
    reason = None
    if worst is not None and off[worst] > allowed[worst]:
        reason = _difference(name, case, worst, off[worst], want[worst], have[worst], f"{allowed[worst]:.2g}")
    greatest_off = float(off.max(initial=0.0))
    return OutputComparison(
        name=name,
        dtype=dtype,
        max_abs_diff=greatest_off,
        max_rel_diff=greatest_off / greatest if greatest else greatest_off,
        tolerance=tolerance,
        reason=reason,
    )


def _exact(name: str, dtype: DataType, expected: Array, answered: Array, case: str) -> OutputComparison:
    import numpy as np

    want, have = expected.astype(np.float64), answered.astype(np.float64)
    # Two whole numbers above 2**53 can be equal as fractions only.
    off = np.maximum(np.abs(have - want), expected != answered)
    count = int(np.count_nonzero(off))
    worst = _worst(off)
    reason = None
    if worst is not None and count > expected.size // _EXACT_SHARE:
        told = _difference(name, case, worst, off[worst], want[worst], have[worst], "equal")
        reason = f"{told}, {count} of {expected.size} elements differ"
    greatest = float(np.max(np.abs(want), initial=0.0))
    greatest_off = float(off.max(initial=0.0))
    return OutputComparison(
        name=name,
        dtype=dtype,
        max_abs_diff=greatest_off,
        max_rel_diff=greatest_off / greatest if greatest else greatest_off,
        tolerance=None,
        reason=reason,
    )


def _worst(off: npt.NDArray[np.float64]) -> tuple[int, ...] | None:
    import numpy as np

    if not off.size:
        return None
    return tuple(int(each) for each in np.unravel_index(int(np.argmax(off)), off.shape))


def _difference(name: str, case: str, at: tuple[int, ...], off: float, want: float, have: float, tolerance: str) -> str:
    return (
        f"{name} differs by {off:.3g} at {list(at)} for input {case!r} "
        f"(torch {want:.6g}, ONNX {have:.6g}; tolerance {tolerance})"
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
