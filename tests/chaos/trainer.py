"""A trainer's process: publishes its items in order, and begins where its ledger ends when it is started again."""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

from chaos.ledger import Ledger
from chaos.plan import Plan, write_model


def main(plan_file: str, number: str, ledger_file: str) -> None:
    """Publish what is not in the ledger yet."""
    from keynet_train import ServingOptions, log_onnx_model

    warnings.simplefilter("ignore")  # a package that waits is what this is about
    plan, ledger = Plan.read(Path(plan_file)), Ledger(Path(ledger_file))
    done = {each.item for each in ledger.read()}
    with tempfile.TemporaryDirectory() as folder:
        for item in plan.items_of(int(number)):
            if item not in done:
                path = Path(folder) / "model.onnx"
                write_model(item, path)
                address = log_onnx_model(
                    "chaos", path, model_name=plan.model_of(item), serving=ServingOptions(instance_count=1)
                )
                ledger.append(item, address)


if __name__ == "__main__":
    main(*sys.argv[1:])
