"""A model over two gigabytes: more than one protobuf can hold, so its weights are beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from keynet_core import ModelPackage
from keynet_train import trace_pytorch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("home"), pytest.mark.timeout(900)]

ROWS, COLUMNS = 23_200, 23_200
NEEDED_BYTES = 14 << 30


def available_bytes() -> int:
    """Return the memory that programs can have, what the system only caches included."""
    told = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
    return int(told) << 10


def test_a_model_over_two_gigabytes_is_published_with_its_weights_beside_it(home: Path) -> None:
    if shutil.disk_usage(home).free < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES >> 30} GiB of free disk below {home}")
    if available_bytes() < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES >> 30} GiB of free memory")

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((ROWS, COLUMNS), 1e-4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    result = trace_pytorch("large", torch.rand(1, ROWS), enable_autolog=False)(Large).trace()
    folder = Path(result.publication.url.removeprefix("file://"))
    package = ModelPackage.open(folder)
    package.verify()
    sizes = {each.path: each.size_bytes for each in package.manifest.served}
    assert sizes["model.onnx"] < 1 << 20
    assert sizes["model.onnx.data"] >= 2 << 30
    assert package.manifest.signature.inputs[0].shape == ("batch", ROWS)
    assert not list((home / "outbox" / "staging").glob("*"))

    from keynet_train._runtime import run_onnx

    answer = run_onnx(folder / "model.onnx", {"input_0": np.ones((2, ROWS), np.float32)})
    np.testing.assert_allclose(answer["output_0"], np.full((2, COLUMNS), ROWS * 1e-4), rtol=1e-3)
