"""
One plan written by one exporter, made final, and compared with the module on every input it can be tried on.

torch is imported here, so this module is imported by functions only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from keynet_train._errors import GraphInvalid
from keynet_train._evaluation import to_array
from keynet_train._finishing import finish
from keynet_train._parity import ParityReport, compare
from keynet_train._probing import SAMPLE
from keynet_train._runtime import OnnxSession

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from keynet_train._exporters import Exporter, Plan
    from keynet_train._graph import OnnxFile
    from keynet_train._parity import CaseComparison
    from keynet_train._probing import Case

    Array = npt.NDArray[Any]

MODEL_FILE = "model.onnx"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Written:
    """A file that runs, and how it compares. `sample_outputs` are its answers to the sample."""

    file: OnnxFile
    unused: tuple[str, ...]
    parity: ParityReport
    sample_outputs: Mapping[str, Array]


def write_and_compare(exporter: Exporter, plan: Plan, directory: Path) -> Written:
    """
    Write `model.onnx` into a new directory.

    Raises:
        Unexportable: The exporter cannot write the module.
        GraphInvalid: What it wrote cannot be loaded, or fails on an input that the module takes.
    """
    directory.mkdir(parents=True)
    raw, path = directory / "exported.onnx", directory / MODEL_FILE
    beyond = exporter.write(plan, raw)
    file, unused = finish(raw, path, plan.inputs, plan.outputs)
    session = OnnxSession(path)
    compared, answers = [], {}
    for case in (*plan.cases, *_cases_at(plan, beyond)):
        comparison, answered = _compare(session, case, plan)
        compared.append(comparison)
        answers[case.name] = answered
        if comparison.reason:
            break
    parity = ParityReport(
        reference=f"torch {torch.__version__}",
        runtime=OnnxSession.version(),
        cases=tuple(compared),
        skipped=plan.probing.skipped,
    )
    return Written(file=file, unused=unused, parity=parity, sample_outputs=answers[SAMPLE])


def _cases_at(plan: Plan, sizes: tuple[int, ...]) -> Iterator[Case]:
    for symbol in plan.symbols:
        for size in sizes:
            if case := plan.probing.case_at(symbol, size):
                yield case


def _compare(session: OnnxSession, case: Case, plan: Plan) -> tuple[CaseComparison, Mapping[str, Array]]:
    inputs = {name: to_array(tensor) for name, tensor in case.inputs.items()}
    expected = {name: to_array(tensor) for name, tensor in zip(plan.output_names, case.answer.tensors, strict=True)}
    try:
        answered = session.run(inputs)
    except GraphInvalid as error:
        raise GraphInvalid(f"for input {case.name!r}: {error.message}") from error
    return compare(case.name, inputs, expected, answered), answered
