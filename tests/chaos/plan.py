"""What is to be published, by whom, and under how much trouble; the same seed gives the same plan."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

MODELS_PER_TRAINER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    A run of chaos.

    Item `i` is a model that answers `x * (i + 1)` and `x + (i + 1)`, so that an answer tells which item gave it, and
    two halves of different items do not agree.
    """

    publications: int
    kills: int
    trainers: int = 2
    servers: int = 2
    seed: int = 0
    engine: str = "triton"
    timeout_s: float = 3600.0

    def items_of(self, trainer: int) -> range:
        """Return what one trainer publishes, in order."""
        return range(trainer, self.publications, self.trainers)

    def model_of(self, item: int) -> str:
        """Return the name an item is published under: one trainer's, so that the order of its versions is known."""
        return f"chaos_{item % (self.trainers * MODELS_PER_TRAINER)}"

    def models(self) -> list[str]:
        """Return every name that is used."""
        return sorted({self.model_of(item) for item in range(self.publications)})

    def write(self, path: Path) -> None:
        """Hand the plan to other processes."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Take a plan that was handed over."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def factor_of(item: int) -> float:
    """Return the number that an item multiplies by and adds."""
    return float(item + 1)


def write_model(item: int, path: Path) -> None:
    """Write the ONNX file of an item."""
    from onnx import TensorProto, helper

    factor = helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor_of(item)])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["product"]), helper.make_node("Add", ["x", "factor"], ["sum"])],
        "chaos",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("product", "sum")],
        [factor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
