"""
The module asked what it can do: which axes may vary, and what it answers to each input it will be compared on.

torch is imported here, so this module is imported by functions only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from keynet_train._axes import Observation, find_symbols
from keynet_train._bound import BoundModule, bindings_of
from keynet_train._errors import ModelRefused
from keynet_train._evaluation import Original, to_array
from keynet_train._parity import compare
from keynet_train._result import Degradation
from keynet_train._variations import is_same, nudged, opposite_signs, other_values, resized, scaled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from keynet_train._axes import Symbol
    from keynet_train._bound import Answer
    from keynet_train._sample import AxisNames, Sample
    from keynet_train._variations import Tensors
    from keynet_train._watching import DataWatch

SAMPLE = "the sample"
MAX_TRIED_ELEMENTS = 1 << 26
EXTREMES = {"a thousand times the values": 1000.0, "a thousandth of the values": 0.001}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One input, what the original answered to it, and which symbols have another size than in the sample."""

    name: str
    inputs: Tensors
    answer: Answer
    sizes: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probing:
    """What is known of a module before it is exported."""

    original: Original
    cases: tuple[Case, ...]
    skipped: dict[str, str]
    """Inputs the module itself refuses, by name, with its reason."""
    wanted: tuple[str, ...]
    """The names of the symbols that were to vary."""
    symbols: tuple[Symbol, ...]
    """The symbols that may vary, as far as the module is concerned."""
    traced_sizes: dict[str, int]
    """The size at which to export each symbol: exporters take 0 and 1 for constants."""
    degradations: tuple[Degradation, ...]
    is_steady: bool
    """Whether the module answers the same input twice with the same."""
    reads_values: tuple[str, ...]
    """Operations that hand values to Python: no trace can follow what Python does with them."""
    shapes_by_value: tuple[str, ...]
    """Operations whose result has a size that depends on values."""

    def cases_with(self, symbols: Sequence[Symbol]) -> tuple[Case, ...]:
        """Return the cases in which no other symbol than these differs from the sample."""
        names = {symbol.name for symbol in symbols}
        return tuple(case for case in self.cases if case.sizes.keys() <= names)

    def case_at(self, symbol: Symbol, size: int) -> Case | None:
        """Return what the module answers at one more size, or None when it refuses it or it is too large to try."""
        larger = max(size / symbol.size, 1.0) * sum(each.numel() for each in self.cases[0].inputs.values())
        if size == symbol.size or larger > MAX_TRIED_ELEMENTS:
            return None
        case, _ = _attempt(self.original, self.cases[0], f"{symbol.name}={size}", [(symbol, size)])
        return case

    def observations(self, symbols: Sequence[Symbol]) -> tuple[Observation, ...]:
        """Return sizes and output shapes of those cases."""
        given = {symbol.name: symbol.size for symbol in symbols}
        cases = self.cases_with(symbols)
        return tuple(Observation(sizes=given | case.sizes, shapes=case.answer.shapes) for case in cases)


def probe(module: nn.Module, sample: Sample, asked: AxisNames | None) -> Probing:
    """
    Run a module on its sample, at other sizes and with other values. It must be held still.

    Raises:
        ModelRefused: It cannot answer its own sample, or not with tensors.
    """
    original, answer = _first_answer(module, sample)
    base = Case(name=SAMPLE, inputs=dict(sample.tensors), answer=answer, sizes={})
    wanted, degradations = find_symbols(sample.shapes, asked)
    varied = [_vary(original, base, symbol) for symbol in wanted]
    symbols = tuple(each.symbol for each in varied if each.case is not None)
    sized = tuple(each.case for each in varied if each.case is not None)
    values, skipped = _with_values(original, base, sized, symbols)
    ones = _ones(original, base, symbols)
    # After the others: torch compiles torch.cond anew for each size, and cannot after it was watched.
    again, watch = original.watch(tuple(base.inputs.values()))
    extremes, not_extreme = _extremes(original, base, watch)
    return Probing(
        original=original,
        cases=(base, *sized, *ones, *values, *extremes),
        skipped=skipped | not_extreme,
        wanted=tuple(symbol.name for symbol in wanted),
        symbols=symbols,
        traced_sizes=_traced_sizes(symbols, sized),
        degradations=(*degradations, *(note for each in varied for note in each.degradations)),
        is_steady=_is_steady(answer, again),
        reads_values=tuple(sorted(watch.reads_values)),
        shapes_by_value=tuple(sorted(watch.shapes_by_value)),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Varied:
    symbol: Symbol
    case: Case | None
    degradations: tuple[Degradation, ...] = ()


def _first_answer(module: nn.Module, sample: Sample) -> tuple[Original, Answer]:
    refusal: ModelRefused | None = None
    for binding in bindings_of(module, sample):
        original = Original(BoundModule(module, binding))
        try:
            return original, original.ask(tuple(sample.tensors.values()))
        except ModelRefused as error:
            refusal = error
    if refusal is None or refusal.__cause__ is None:
        raise refusal or ModelRefused("the model has no way to take its sample")
    raise ModelRefused(
        f"{type(module).__name__} cannot answer its own sample: {refusal.message}",
        hint="call the model with exactly this sample before you return it",
    ) from refusal.__cause__


def _vary(original: Original, base: Case, symbol: Symbol) -> _Varied:
    """Find another size of a symbol that the module takes; a batch nobody asked for may lose inputs on the way."""
    case, reason = _at_other_size(original, base, symbol)
    if case is not None:
        return _Varied(symbol=symbol, case=case)
    inputs = dict.fromkeys(name for name, _ in symbol.places)
    if not symbol.is_asked and len(inputs) > 1:
        for name in reversed(inputs):
            fewer = symbol.without(name)
            case, _ = _at_other_size(original, base, fewer)
            if case is not None:
                note = _fixed(f"axis 0 of {name!r}", base.inputs[name].shape[0], reason)
                return _Varied(symbol=fewer, case=case, degradations=(note,))
    return _Varied(symbol=symbol, case=None, degradations=(_fixed(str(symbol), symbol.size, reason),))


def _fixed(what: str, size: int, reason: str) -> Degradation:
    return Degradation(code="axes.fixed", message=f"{what} is fixed at {size}: {reason}")


def _at_other_size(original: Original, base: Case, symbol: Symbol) -> tuple[Case | None, str]:
    reasons = []
    for size in symbol.candidates():
        case, reason = _attempt(original, base, f"{symbol.name}={size}", [(symbol, size)])
        if case is not None:
            return case, ""
        reasons.append(f"at {size} instead of {symbol.size} the model {reason}")
    return None, reasons[0]


def _attempt(original: Original, base: Case, name: str, sizes: Iterable[tuple[Symbol, int]]) -> tuple[Case | None, str]:
    changed = list(sizes)
    inputs = resized(base.inputs, changed)
    try:
        answer = original.ask(tuple(inputs.values()))
    except ModelRefused as error:
        return None, f"says {error.message}"
    if reason := _other_structure(base.answer, answer):
        return None, reason
    return Case(name=name, inputs=inputs, answer=answer, sizes={each.name: size for each, size in changed}), ""


def _other_structure(first: Answer, second: Answer) -> str | None:
    if len(first.tensors) != len(second.tensors):
        return f"answers with {len(second.tensors)} tensors instead of {len(first.tensors)}"
    for index, (left, right) in enumerate(zip(first.tensors, second.tensors, strict=True)):
        if left.dim() != right.dim():
            return (
                f"answers with output_{index} of shape {list(right.shape)} instead of {list(left.shape)}: "
                "a squeeze() without an axis drops whatever is 1"
            )
        if left.dtype != right.dtype:
            return f"answers with output_{index} of type {right.dtype} instead of {left.dtype}"
    return None


def _ones(original: Original, base: Case, symbols: Sequence[Symbol]) -> list[Case]:
    """Return the cases in which a batch has one element: what a server is asked most, and exporters get wrong."""
    batches = [symbol for symbol in symbols if symbol.is_batch and symbol.size != 1]
    tried = (_attempt(original, base, f"{symbol.name}=1", [(symbol, 1)])[0] for symbol in batches)
    return [case for case in tried if case is not None]


def _with_values(
    original: Original, base: Case, sized: Sequence[Case], symbols: Sequence[Symbol]
) -> tuple[list[Case], dict[str, str]]:
    sizes = {name: size for case in sized for name, size in case.sizes.items()}
    grown = resized(base.inputs, [(symbol, sizes[symbol.name]) for symbol in symbols])
    shuffled = other_values(base.inputs, may_shuffle=original.device.type == "cpu")
    tried = (
        Case(name="other values", inputs=shuffled, answer=base.answer, sizes={}),
        Case(name="opposite signs", inputs=opposite_signs(grown), answer=base.answer, sizes=sizes),
    )
    cases: list[Case] = []
    skipped: dict[str, str] = {}
    for case in tried:
        if case.inputs.keys() and not case.sizes and is_same(case.inputs, base.inputs):
            skipped[case.name] = "the sample has no values that could be changed safely"
            continue
        answered, reason = _answered(original, base, case)
        if answered is None:
            skipped[case.name] = reason
        else:
            cases.append(answered)
    return cases, skipped


def _extremes(original: Original, base: Case, watch: DataWatch) -> tuple[list[Case], dict[str, str]]:
    """Return the cases with fractions far from the sample's, beyond what a branch is likely to compare them with."""
    cases: list[Case] = []
    skipped: dict[str, str] = {}
    against = _against_extremes(original, watch)
    for name, factor in EXTREMES.items():
        inputs = scaled(base.inputs, factor)
        if is_same(inputs, base.inputs):
            continue
        case = Case(name=name, inputs=inputs, answer=base.answer, sizes={})
        answered, reason = (None, against) if against else _answered_steadily(original, base, case)
        if answered is None:
            skipped[name] = reason
        else:
            cases.append(answered)
    return cases, skipped


def _against_extremes(original: Original, watch: DataWatch) -> str:
    # A size fills the memory, equal scores have no order, and torch.cond cannot be compiled after it was watched.
    decisive = sorted(watch.reads_values | watch.shapes_by_value | watch.orders_values | watch.branches)
    if decisive:
        return f"extreme values would decide a size, an order of equal scores or a side: {', '.join(decisive)}"
    if original.device.type != "cpu":
        return f"an index that follows from extreme values ends a process on {original.device.type}"
    return ""


def _answered_steadily(original: Original, base: Case, case: Case) -> tuple[Case | None, str]:
    """Answer a case, unless rounding decides what the answer is."""
    answered, reason = _answered(original, base, case)
    if answered is None:
        return None, reason
    beside, _ = _answered(original, base, replace(case, inputs=nudged(case.inputs)))
    if beside is None or _is_apart(answered, beside):
        return None, "the model's answer changes with the last digits of such values"
    return answered, ""


def _is_apart(left: Case, right: Case) -> bool:
    answers = (
        {str(index): to_array(tensor) for index, tensor in enumerate(each.answer.tensors)} for each in (left, right)
    )
    return compare(left.name, {}, *answers).reason is not None


def _answered(original: Original, base: Case, case: Case) -> tuple[Case | None, str]:
    try:
        answer = original.ask(tuple(case.inputs.values()))
    except ModelRefused as error:
        return None, f"the model says {error.message}"
    if reason := _other_structure(base.answer, answer):
        return None, f"the model {reason}"
    if _is_finite(base.answer) and not _is_finite(answer):
        return None, "the model's answer is not finite, so the input makes no sense to it"
    return replace(case, answer=answer), ""


def _traced_sizes(symbols: Sequence[Symbol], sized: Sequence[Case]) -> dict[str, int]:
    accepted = {name: size for case in sized for name, size in case.sizes.items()}
    sizes = {}
    for symbol in symbols:
        # A module that takes 3 takes 2, and so the exported file is tried at sizes it has not seen.
        other = 2 if accepted[symbol.name] == 3 else accepted[symbol.name]
        sizes[symbol.name] = symbol.size if symbol.size > 1 else other
    return sizes


def _is_finite(answer: Answer) -> bool:
    return all(bool(torch.isfinite(each).all()) for each in answer.tensors if each.is_floating_point())


def _is_steady(first: Answer, second: Answer) -> bool:
    if first.shapes != second.shapes:
        return False
    return all(
        torch.allclose(left.double(), right.double(), rtol=1e-3, atol=1e-5, equal_nan=True)
        for left, right in zip(first.tensors, second.tensors, strict=True)
    )
