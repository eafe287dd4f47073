"""What cannot vary is fixed, and told why; what can is never fixed by accident."""

import numpy as np
import pytest
import torch
from torch import nn

from keynet_train._runtime import run_onnx
from torch_modules import codes, exporters, module

R = torch.randn


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_what_the_module_refuses_is_fixed_and_told_in_its_own_words(export):
    def forward(self, x):
        torch._check(x.shape[0] == 4, lambda: "four at a time")
        return x * 2

    told = export(module(forward), R(4, 6))
    assert told.signature.inputs[0].shape == (4, 6)
    assert codes(told) == ["axes.fixed"]
    assert "fixed at 4" in told.degradations[0].message
    assert "four at a time" in told.degradations[0].message


def test_a_squeeze_that_drops_the_batch_is_fixed_and_told(export):
    told = export(module(lambda self, x: x.sum(1).squeeze()), R(1, 4))
    assert told.signature.inputs[0].shape == (1, 4)
    assert "squeeze() without an axis" in told.degradations[0].message


def test_an_answer_with_as_many_tensors_as_the_batch_is_fixed(export):
    told = export(module(lambda self, x: list(x.unbind(0))), R(2, 4))
    assert len(told.signature.outputs) == 2
    assert "3 tensors instead of 2" in told.degradations[0].message


def test_an_input_that_is_shared_by_the_batch_is_found(export):
    told = export(module(lambda self, x, scale: x * scale), {"x": R(1, 4), "scale": R(1)})
    assert [each.shape for each in told.signature.inputs] == [("batch", 4), (1,)]
    assert codes(told) == ["axes.fixed"]
    other = export(module(lambda self, x, w: x @ w), {"x": R(2, 4), "w": R(4, 4)})
    assert [each.shape for each in other.signature.inputs] == [("batch", 4), (4, 4)]
    assert codes(other) == ["axes.not_batch"]


def test_a_loop_over_the_batch_falls_back_to_a_fixed_batch(export):
    model = module(lambda self, x: torch.cat([x[i : i + 1] * 2 for i in range(x.shape[0])]))
    told = export(model, R(2, 4))
    assert str(told.signature) == "input_0 FP32 [2, 4] -> output_0 FP32 [2, 4]"
    assert [(each.exporter, each.symbols) for each in told.attempts] == [
        ("torchscript", ("batch",)),
        ("torch.export", ("batch",)),
        ("torchscript", ()),
    ]
    assert codes(told) == ["axes.fixed"]
    assert "torchscript: " in told.degradations[0].message
    assert "torch.export: " in told.degradations[0].message


def test_a_branch_on_a_size_is_never_taken_for_every_size(export):
    """Both sizes tried are on one side of the branch; the exporter's own range leads to the other side."""
    model = module(lambda self, x: x * 2 if x.shape[1] > 100 else x * 3)
    told = export(model, R(1, 50), {"input_0": {0: "batch", 1: "len"}})
    assert told.signature.inputs[0].shape == ("batch", 50)
    assert codes(told) == ["axes.fixed"]
    assert "'len=101'" in told.attempts[1].reason


def test_layers_stay_in_evaluation_mode_from_one_attempt_to_the_next(export):
    """An exporter that is done may leave a module in another mode than it found it."""

    def forward(self, x):
        if x.shape[1] != 4:
            raise ValueError
        return self.dropout(x)

    model = module(forward, dropout=nn.Dropout(0.5)).train()
    told = export(model, R(1, 4))
    assert exporters(told) == ["torchscript", "torch.export"]
    assert told.degradations == ()
    assert model.dropout.training


def test_a_branch_written_for_exporters_is_exported_with_both_sides(export):
    model = module(lambda self, x: torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x * 3, (x,)))
    told = export(model, R(1, 4))
    assert told.signature.batch_symbol == "batch"
    for sign, factor in ((1, 2), (-1, 3)):
        x = np.full((2, 4), sign, np.float32)
        assert run_onnx(told.path, {"input_0": x})["output_0"].tolist() == (x * factor).tolist()
