"""
The attempts to export a module, in order, and what each one answered. A file is believed only when it is verified.

torch is imported here, so this module is imported by functions only.
"""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keynet_core import TensorSpec
from keynet_train._axes import input_dims, output_dims
from keynet_train._bound import unwrap
from keynet_train._errors import ExportFailed, GraphInvalid, ParityFailed
from keynet_train._evaluation import held_still, to_array
from keynet_train._exporters import Plan, Unexportable, exporters_for
from keynet_train._probing import probe
from keynet_train._result import Degradation
from keynet_train._verifying import write_and_compare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from torch import nn

    from keynet_core import Signature
    from keynet_train._axes import Symbol
    from keynet_train._exporters import Exporter
    from keynet_train._parity import ParityReport
    from keynet_train._probing import Probing
    from keynet_train._sample import AxisNames, Sample
    from keynet_train._verifying import Written

    Array = npt.NDArray[Any]

# Exporters replace what belongs to the process: its streams, filters of warnings, torch's switches.
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try to export: with which exporter, which symbols varying, how long, and why it was not believed."""

    exporter: str
    symbols: tuple[str, ...]
    seconds: float
    reason: str | None = None

    def __str__(self) -> str:
        shapes = f"with {', '.join(self.symbols)} varying" if self.symbols else "with fixed shapes"
        return f"{self.exporter} {shapes}: {self.reason or 'verified'}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exported:
    """A verified ONNX file and everything that is known of it."""

    path: Path
    signature: Signature
    opset: int
    external: tuple[str, ...]
    """The files its weights are in, beside it; none below 2 GB."""
    parity: ParityReport
    attempts: tuple[Attempt, ...]
    degradations: tuple[Degradation, ...]
    output_keys: tuple[str, ...] | None
    sample_shapes: Mapping[str, tuple[int, ...]]
    sample_inputs: Mapping[str, Array]
    sample_outputs: Mapping[str, Array]
    """What ONNX Runtime, not torch, answered to the sample."""


def export_verified(
    model: nn.Module,
    sample: Sample,
    dynamic_axes: AxisNames | None,
    directory: Path,
    *,
    exporters: Callable[[Plan], Sequence[Exporter]] = exporters_for,
) -> Exported:
    """
    Write a module to `directory` as ONNX that was seen to answer as the module does.

    The module, its mode, its buffers and torch's random numbers are as before when this returns or raises. Nothing is
    written outside of `directory`, which then has a new `model.onnx` and, for weights that one file cannot carry,
    `model.onnx.data`. One export runs at a time, others wait: an exporter changes switches of the whole process.

    Raises:
        ModelRefused: The module cannot answer its own sample, or not with tensors.
        ExportFailed: No exporter wrote a file that runs.
        ParityFailed: A file was written and runs, but answers differently; it is in `directory`.
    """
    module = unwrap(model)
    search = _Search(directory, exporters)
    with _ONE_AT_A_TIME, held_still(module):
        probing = probe(module, sample, dynamic_axes)
        try:
            plan, written = search.run(probing, _plans(probing, sample, dynamic_axes), type(module).__name__)
            path = _keep(written.file.path, directory)
        finally:
            search.clean()
    _, contradicted = _derive_outputs(probing, plan.symbols, dynamic_axes)
    return Exported(
        path=path,
        signature=written.file.signature,
        opset=written.file.opset,
        external=written.file.external,
        parity=written.parity,
        attempts=tuple(search.attempts),
        degradations=(*probing.degradations, *search.given_up(plan), *contradicted, *_ignored(written)),
        output_keys=probing.cases[0].answer.keys,
        sample_shapes=sample.shapes,
        sample_inputs={name: to_array(tensor) for name, tensor in sample.tensors.items()},
        sample_outputs=written.sample_outputs,
    )


class _Search:
    """The attempts on one module: the first that is verified wins, the last that only disagrees is kept for a look."""

    def __init__(self, directory: Path, exporters: Callable[[Plan], Sequence[Exporter]]) -> None:
        self._exporters = exporters
        self.attempts: list[Attempt] = []
        self._directory = directory
        self._workshop = directory / ".attempts"
        self._rejected: Written | None = None
        self._hopeless: set[str] = set()

    def run(self, probing: Probing, plans: Iterator[Plan], model: str) -> tuple[Plan, Written]:
        """Return the first verified file, or raise what the attempts amount to."""
        for plan in plans:
            for exporter in self._exporters(plan):
                if exporter.name in self._hopeless:
                    continue
                if written := self._try(exporter, plan):
                    return plan, written
                if self._rejected and not probing.is_steady:
                    raise self._failure(model, is_steady=False)
        raise self._failure(model, is_steady=probing.is_steady)

    def given_up(self, plan: Plan) -> list[Degradation]:
        """Return what the module would have let vary, and no exporter could."""
        return [
            Degradation(
                code="axes.fixed",
                message=f"{symbol} is fixed at {symbol.size}: "
                + "; ".join(f"{each.exporter}: {each.reason}" for each in self.attempts if symbol.name in each.symbols),
            )
            for symbol in plan.probing.symbols
            if symbol not in plan.symbols
        ]

    def clean(self) -> None:
        """Remove what the attempts left behind."""
        shutil.rmtree(self._workshop, ignore_errors=True)

    def _try(self, exporter: Exporter, plan: Plan) -> Written | None:
        started = time.perf_counter()
        place = self._workshop / str(len(self.attempts))
        written, reason = None, ""
        try:
            written = write_and_compare(exporter, plan, place)
        except Unexportable as error:
            reason = str(error)
            if error.is_final:
                self._hopeless.add(exporter.name)
        except GraphInvalid as error:
            reason = error.message
        if written and written.parity.reason:
            reason = written.parity.reason
            self._rejected = written
        self.attempts.append(
            Attempt(
                exporter=exporter.name,
                symbols=tuple(symbol.name for symbol in plan.symbols),
                seconds=round(time.perf_counter() - started, 4),
                reason=reason or None,
            )
        )
        return None if reason else written

    def _failure(self, model: str, *, is_steady: bool) -> ExportFailed | ParityFailed:
        told, attempts = "".join(f"\n  {each}" for each in self.attempts), tuple(self.attempts)
        if self._rejected is None:
            lacks_kernel = any("NOT_IMPLEMENTED" in (each.reason or "") for each in attempts)
            return ExportFailed(
                f"{model} could not be written as an ONNX file that runs:{told}",
                attempts=attempts,
                hint="return model.float(): ONNX Runtime does not compute everything in every precision"
                if lacks_kernel
                else "a branch on values becomes torch.where; torch.onnx.export(..., report=True) shows where it is",
            )
        path = _keep(self._rejected.file.path, self._directory)
        return ParityFailed(
            f"{model} was exported, but answers differently: {self._rejected.parity.reason}\nWhat was tried:{told}",
            report=self._rejected.parity,
            path=path,
            attempts=attempts,
            hint="a branch on values becomes torch.where; a loop over sizes becomes a tensor operation"
            if is_steady
            else "the model answers the same input twice with different values, in evaluation mode too: "
            "make dropout and noise depend on self.training, and keep no state between calls",
        )


def _plans(probing: Probing, sample: Sample, asked: AxisNames | None) -> Iterator[Plan]:
    """Yield every symbol varying, then the batch alone, then nothing."""
    every = probing.symbols
    batch = tuple(symbol for symbol in every if symbol.is_batch)
    for symbols in dict.fromkeys((every, batch, ())):
        inputs = (
            TensorSpec(name=name, dtype=sample.dtypes[name], shape=input_dims(name, shape, symbols))
            for name, shape in sample.shapes.items()
        )
        outputs, _ = _derive_outputs(probing, symbols, asked)
        yield Plan(probing=probing, symbols=symbols, inputs=tuple(inputs), outputs=outputs)


def _derive_outputs(
    probing: Probing, symbols: tuple[Symbol, ...], asked: AxisNames | None
) -> tuple[tuple[tuple[int | str, ...], ...], tuple[Degradation, ...]]:
    return output_dims(probing.observations(symbols), asked, probing.wanted)


def _keep(path: Path, directory: Path) -> Path:
    """Move a model and its weights to where the caller wants them."""
    for source in (path, path.with_name(f"{path.name}.data")):
        if source.exists():
            source.replace(directory / source.name)
    return directory / path.name


def _ignored(written: Written) -> list[Degradation]:
    return [
        Degradation(
            code="input.unused",
            message=f"the model's answer does not depend on input {name!r}; callers have to send it all the same",
        )
        for name in written.unused
    ]
