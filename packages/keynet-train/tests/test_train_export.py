"""Real modules through the whole of export_verified; few need the slower exporter, which takes seconds."""

import numpy as np
import pytest
import torch
from torch import nn

from keynet_core import DataType
from keynet_train._runtime import run_onnx
from torch_modules import codes, exporters, module

R = torch.randn


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_an_mlp_is_exported_with_a_batch_that_varies(export):
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10))
    told = export(model, R(1, 16))
    assert str(told.signature) == "input_0 FP32 [batch, 16] -> output_0 FP32 [batch, 10]"
    assert told.signature.batch_symbol == "batch"
    assert told.degradations == ()
    assert [case.name for case in told.parity.cases] == [
        "the sample",
        "batch=3",
        "other values",
        "opposite signs",
        "a thousand times the values",
        "a thousandth of the values",
    ]
    assert told.parity.passed
    assert (told.opset, told.external, exporters(told)) == (18, (), ["torchscript"])
    x = R(7, 16)
    answered = run_onnx(told.path, {"input_0": x.numpy()})["output_0"]
    assert np.allclose(answered, model(x).detach(), atol=1e-5)


def test_the_answer_to_the_sample_is_the_runtimes_own(export):
    told = export(nn.Linear(4, 2), {"input": R(2, 4)})
    again = run_onnx(told.path, told.sample_inputs)
    assert np.array_equal(told.sample_outputs["output_0"], again["output_0"])
    assert told.sample_shapes == {"input": (2, 4)}


def test_a_larger_sample_is_tried_with_one_element_too(export):
    told = export(nn.Linear(4, 2), R(4, 4))
    assert [case.shapes["input_0"][0] for case in told.parity.cases] == [4, 5, 1, 4, 5, 4, 4]


def test_image_sizes_vary_where_asked_and_training_goes_on_as_before(export):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(), nn.Linear(8, 4),
    )  # fmt: skip
    model.train()
    model[1].eval()
    state = {name: each.clone() for name, each in model.state_dict().items()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    told = export(model, R(1, 3, 32, 32), {"input_0": {0: "n", 2: "height", 3: "width"}})
    assert told.signature.inputs[0].shape == ("n", 3, "height", "width")
    assert told.signature.outputs[0].shape == ("n", 4)
    assert [each.training for each in model] == [True, False, True, True, True, True, True]
    assert model.training
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled() is fast_path


def test_random_numbers_go_on_as_if_nothing_had_happened(export):
    sample = R(1, 4)
    before = torch.get_rng_state()
    export(module(lambda self, x: x + 0 * torch.rand(1)), sample)
    assert torch.equal(before, torch.get_rng_state())


def test_an_lstm_takes_sequences_of_any_length(export):
    model = module(lambda self, x: self.lstm(x), lstm=nn.LSTM(8, 16, 2, batch_first=True))
    axes = {"input_0": {0: "batch_size", 1: "sequence_length"}, "output_0": {0: "batch_size", 1: "sequence_length"}}
    told = export(model, R(1, 7, 8), axes)
    assert [each.shape for each in told.signature.outputs] == [
        ("batch_size", "sequence_length", 16),
        (2, "batch_size", 16),
        (2, "batch_size", 16),
    ]
    assert told.degradations == ()
    assert exporters(told) == ["torchscript"]


def test_a_transformer_takes_sequences_of_any_length_through_the_other_exporter(export, capfd):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    told = export(nn.TransformerEncoder(layer, 1), R(1, 7, 16), {"input_0": {0: "batch", 1: "len"}})
    assert told.signature.outputs[0].shape == ("batch", "len", 16)
    assert exporters(told) == ["torchscript", "torch.export"]
    assert "len=8" in told.attempts[0].reason
    assert told.degradations == ()
    assert capfd.readouterr() == ("", "")


def test_a_padding_mask_is_compared_without_the_fast_path(export):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = module(
        lambda self, x, mask: self.encoder(x, src_key_padding_mask=mask), encoder=nn.TransformerEncoder(layer, 1)
    )
    told = export(model, {"x": R(1, 7, 16), "mask": torch.tensor([[False] * 5 + [True] * 2])})
    assert told.signature.batch_symbol == "batch"
    assert exporters(told) == ["torchscript"]


def test_inputs_are_bound_by_name_and_outputs_numbered(export):
    model = module(lambda self, image, mask: (image - mask, image + mask))
    told = export(model, {"mask": R(1, 4), "image": R(1, 4)})
    assert [each.name for each in told.signature.inputs] == ["mask", "image"]
    assert [each.name for each in told.signature.outputs] == ["output_0", "output_1"]
    answered = run_onnx(told.path, {"image": np.full((1, 4), 3, np.float32), "mask": np.ones((1, 4), np.float32)})
    assert answered["output_0"].tolist() == [[2.0] * 4]


def test_a_nested_answer_keeps_its_keys(export):
    model = module(lambda self, x: {"logits": x * 2, "boxes": [x + 1, (x - 1, None)]})
    told = export(model, R(1, 4))
    assert told.output_keys == ("logits", "boxes.0", "boxes.1.0")
    assert len(told.signature.outputs) == 3


FLOATS = "input_0 FP32 [batch, 4] -> output_0 "


@pytest.mark.parametrize(
    ("forward", "sample", "told"),
    [
        (lambda self, x: x.mean(), R(1, 4), FLOATS + "FP32 []"),
        (lambda self, x: x.sum(1), R(1, 4), FLOATS + "FP32 [batch]"),
        (lambda self, x: x, R(1, 4), FLOATS + "FP32 [batch, 4]"),
        (lambda self, x: torch.ones(3) + 0, R(1, 4), FLOATS + "FP32 [3]"),
        (lambda self, x: (x + 1,) * 2, R(1, 4), FLOATS + "FP32 [batch, 4]; output_1 FP32 [batch, 4]"),
        (lambda self, x: torch.where(x, 1.0, 2.0), R(1, 4) > 0, FLOATS.replace("FP32", "BOOL") + "FP32 [batch, 4]"),
        (lambda self, x: x.float() / 255, torch.ones(1, 4).byte(), FLOATS.replace("FP32", "UINT8") + "FP32 [batch, 4]"),
        (lambda self, x: x.float().bfloat16(), R(1, 4).bfloat16(), FLOATS.replace("FP32", "BF16") + "BF16 [batch, 4]"),
        (lambda self, x: x.argmax(1), R(1, 4), FLOATS + "INT64 [batch]"),
        (lambda self, x: x.view(1, -1), R(1, 4), FLOATS + "FP32 [1, output_0_dim_1]"),
        (lambda self, x: x.repeat(3, 1), R(1, 4), FLOATS + "FP32 [output_0_dim_0, 4]"),
        (lambda self, x: x[x > 0], R(1, 9), "input_0 FP32 [batch, 9] -> output_0 FP32 [output_0_dim_0]"),
        (lambda self, x: x.add_(1), R(1, 4), FLOATS + "FP32 [batch, 4]"),
        (lambda self, x: x * 2, torch.tensor(3.0), "input_0 FP32 [] -> output_0 FP32 []"),
    ],
)  # fmt: skip
def test_shapes_and_types_are_those_of_the_module(export, forward, sample, told):
    exported = export(module(forward), sample)
    assert str(exported.signature) == told
    assert exporters(exported) == ["torchscript"]


def test_indices_stay_in_range(export):
    told = export(nn.Embedding(10, 4), torch.tensor([[9, 0, 5]]), {"input_0": {0: "batch", 1: "len"}})
    assert str(told.signature) == "input_0 INT64 [batch, len] -> output_0 FP32 [batch, len, 4]"
    assert "other values" in [case.name for case in told.parity.cases]


@pytest.mark.parametrize(
    ("model", "sample", "told"),
    [
        (nn.Embedding(10, 4), torch.tensor([[5]]), "no values that could be changed"),
        (module(lambda self, x: x.log()), torch.full((1, 64), 0.1), "not finite"),
        (
            module(
                lambda self, x: self.city(x[:, 0]) + self.age(x[:, 1]), city=nn.Embedding(10, 4), age=nn.Embedding(2, 4)
            ),
            torch.tensor([[9, 1]]),
            "the model says IndexError",
        ),
    ],
)
def test_values_that_make_no_sense_to_the_module_are_skipped_and_told(export, model, sample, told):
    assert told in export(model, sample).parity.skipped["other values"]


def test_half_precision_is_exported(export):
    told = export(nn.Linear(8, 4).half(), R(1, 8).half())
    assert told.signature.outputs[0].dtype is DataType.FP16


def test_an_unused_input_stays_in_the_signature_and_is_told(export):
    told = export(module(lambda self, x, label: x * 2), {"x": R(1, 4), "label": torch.zeros(1, dtype=torch.long)})
    assert [each.name for each in told.signature.inputs] == ["x", "label"]
    assert codes(told) == ["input.unused"]
    assert "'label'" in told.degradations[0].message
