"""
torch's two exporters behind one call: each writes an ONNX file, or says why it cannot.

torch is imported here, so this module is imported by functions only.
"""

from __future__ import annotations

import io
import logging
import os
import re
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from keynet_train._disk import is_full
from keynet_train._evaluation import summary
from keynet_train._variations import resized

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from keynet_core import Dim, TensorSpec
    from keynet_train._axes import Symbol
    from keynet_train._probing import Case, Probing
    from keynet_train._variations import Tensors

OPSET = 18
"""The newest that both exporters write without converting, and old enough for servers of the last three years."""

MAX_INLINE_BYTES = 1_900_000_000
"""Weights of more bytes go into a file of their own: one protobuf message ends at 2 GiB."""

_ABOUT_SHAPES = re.compile(
    r"Converting a tensor to a Python (?:boolean|integer|index)|Iterating over a tensor|registered as constants"
)
_TORCH = os.fspath(Path(torch.__file__).parent)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """What an exporter is to write: the module, the axes that vary, and the tensors the graph is to have."""

    probing: Probing
    symbols: tuple[Symbol, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[tuple[Dim, ...], ...]

    @property
    def cases(self) -> tuple[Case, ...]:
        """The inputs that a file with these axes can be tried on."""
        return self.probing.cases_with(self.symbols)

    @property
    def output_names(self) -> list[str]:
        """`output_0`, `output_1`, ..."""
        return [f"output_{index}" for index in range(len(self.outputs))]

    def tensors(self) -> Tensors:
        """Return the sample's tensors, with axes that are to vary at a size no exporter takes for a constant."""
        sizes = ((symbol, self.probing.traced_sizes[symbol.name]) for symbol in self.symbols)
        return resized(self.probing.cases[0].inputs, sizes)

    def placed(self) -> tuple[Tensor, ...]:
        """Return the tensors where the module's weights are."""
        return self.probing.original.place(tuple(self.tensors().values()))

    def axes(self) -> dict[str, dict[int, str]]:
        """Return input to axis to symbol, with an entry for each input."""
        found: dict[str, dict[int, str]] = {name: {} for name in self.probing.cases[0].inputs}
        for symbol in self.symbols:
            for name, axis in symbol.places:
                found[name][axis] = symbol.name
        return found

    @property
    def size_bytes(self) -> int:
        """The size of the module's weights."""
        bound = self.probing.original.bound
        return sum(each.numel() * each.element_size() for each in (*bound.parameters(), *bound.buffers()))


class Unexportable(Exception):
    """
    Says that an exporter cannot write this module.

    `is_final` says that it cannot with fewer varying axes either.
    """

    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


class Exporter(Protocol):
    """One of torch's ways to write an ONNX file."""

    @property
    def name(self) -> str:
        """What users read in the list of attempts."""

    def write(self, plan: Plan, path: Path) -> tuple[int, ...]:
        """Write the file, or raise Unexportable; return sizes at which it may stop to be right."""


class TracingExporter:
    """
    Runs the module once and records it: a second's fraction for most models.

    What Python decides on the way is decided for ever. So a module that reads values out of its tensors is refused,
    and so is a warning of the tracer, unless it can only be about shapes and either every shape is fixed or the check
    is in torch's own layers. A list, a fraction or a numpy array made of a tensor is no shape.
    """

    name = "torchscript"

    def write(self, plan: Plan, path: Path) -> tuple[int, ...]:
        """Write the file, or raise Unexportable."""
        probing = plan.probing
        if probing.reads_values:
            read = ", ".join(probing.reads_values)
            raise Unexportable(
                f"forward reads values of tensors into Python ({read}), which a trace cannot follow", is_final=True
            )
        with _recorded_warnings() as warned, _quiet(), _translated():
            torch.onnx.export(
                probing.original.bound,
                plan.placed(),
                os.fspath(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(probing.cases[0].inputs),
                output_names=plan.output_names,
                dynamic_axes={name: axes for name, axes in plan.axes().items() if axes},
            )
        for each in warned:
            if _is_from_tracer(each) and not _is_harmless(each, plan):
                raise Unexportable(f"the tracer warns: {str(each.message).split('. ')[0]} ({_place(each)})")
        return ()


class GraphExporter:
    """
    Captures the module with `torch.export`: slower, and it refuses what it cannot follow instead of guessing.

    A branch on a size is followed on one side, and the sizes of that side are known: the first size beyond is returned.
    """

    name = "torch.export"

    def __init__(self, *, max_inline_bytes: int = MAX_INLINE_BYTES) -> None:
        self._max_inline_bytes = max_inline_bytes

    def write(self, plan: Plan, path: Path) -> tuple[int, ...]:
        """Write the file, or raise Unexportable; return the first sizes beyond what was followed."""
        dynamic = torch.export.Dim.DYNAMIC
        shapes = tuple(dict.fromkeys(axes, dynamic) for axes in plan.axes().values())
        with _recorded_warnings(), _quiet(), _translated():
            program = torch.onnx.export(
                plan.probing.original.bound,
                plan.placed(),
                os.fspath(path),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(plan.probing.cases[0].inputs),
                output_names=plan.output_names,
                dynamic_shapes={"tensors": shapes} if plan.symbols else None,
                external_data=plan.size_bytes > self._max_inline_bytes,
                verbose=False,
            )
        return _sizes_beyond(program)


def exporters_for(plan: Plan) -> tuple[Exporter, ...]:
    """
    Return the exporters in the order they are tried.

    Tracing copies every weight several times, so weights too large for one message go to the other one first: measured
    on 2.2 GB, a third of the time and of the memory.
    """
    quick: tuple[Exporter, Exporter] = (TracingExporter(), GraphExporter())
    return quick if plan.size_bytes <= MAX_INLINE_BYTES else quick[::-1]


@contextmanager
def _recorded_warnings() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield warned


def _sizes_beyond(program: Any) -> tuple[int, ...]:
    # An end that is no whole number is infinity.
    ranges = program.exported_program.range_constraints.values()
    ends = ((str(each.lower), str(each.upper)) for each in ranges)
    beyond = {int(lower) - 1 for lower, _ in ends if lower.isdigit()}
    beyond |= {int(str(each.upper)) + 1 for each in ranges if str(each.upper).isdigit()}
    return tuple(sorted(size for size in beyond if size > 1))


@contextmanager
def _quiet() -> Iterator[None]:
    # What matters is raised; the rest is half a graph, and packages the user does not have.
    names = ("torch.onnx", "torch.export", "torch._export", "torch._dynamo", "torch.fx", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # An exporter runs the user's code and its own passes: it may raise anything.
        root = _root_of(error)
        if is_full(root):
            raise root from None  # no other exporter mends that
        is_about_data = "DataDependent" in type(root).__name__
        raise Unexportable(f"{type(root).__name__}: {summary(root)}", is_final=is_about_data) from error


def _root_of(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_from_tracer(warned: warnings.WarningMessage) -> bool:
    return warned.category.__name__ == "TracerWarning"


def _is_harmless(warned: warnings.WarningMessage, plan: Plan) -> bool:
    if plan.probing.shapes_by_value or not _ABOUT_SHAPES.search(str(warned.message)):
        return False
    return not plan.symbols or Path(warned.filename).is_relative_to(_TORCH)


def _place(warned: Any) -> str:
    return f"{Path(warned.filename).name}:{warned.lineno}"
