"""Real modules through the whole of export_verified; few need the slower exporter, which takes seconds."""

import hashlib
import logging
import sys
import threading
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from keynet_core import DataType
from keynet_train._errors import ExportFailed, ModelRefused, ParityFailed
from keynet_train._evaluation import held_still
from keynet_train._export import export_verified
from keynet_train._exporters import MAX_INLINE_BYTES, GraphExporter, TracingExporter, exporters_for
from keynet_train._graph import validate
from keynet_train._runtime import run_onnx
from keynet_train._sample import Sample, check_dynamic_axes

R = torch.randn


def tracing(plan):
    return (TracingExporter(),)


def capturing(plan):
    return (GraphExporter(),)


def module(forward, **members):
    """Return a module with this forward and these members."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name, member in members.items():
                setattr(self, name, member)

    Net.forward = forward
    return Net()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def export(tmp_path):
    def run(model, sample_input, axes=None):
        sample = Sample.of(sample_input)
        exported = export_verified(model, sample, check_dynamic_axes(axes, sample), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
        assert validate(exported.path).signature == exported.signature
        return exported

    return run


def codes(exported):
    return [each.code for each in exported.degradations]


def exporters(exported):
    return [each.exporter for each in exported.attempts]


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


def test_a_branch_on_values_is_never_accepted(tmp_path, capfd):
    model = module(lambda self, x: self.layer(x) if x.sum() > 0 else self.layer(x) * 3, layer=nn.Linear(4, 4))
    with pytest.raises(ExportFailed) as caught:
        export_verified(model, Sample.of(R(1, 4)), None, tmp_path)
    assert [each.exporter for each in caught.value.attempts] == ["torchscript", "torch.export"]
    assert "reads values of tensors" in str(caught.value)
    assert "data-dependent" in str(caught.value)
    assert "torch.where" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


READS = {
    "tolist": lambda x: x.tolist() > 50,
    "numpy": lambda x: x.numpy() > 50,
    "asarray": lambda x: np.asarray(x) > 50,
    "__array__": lambda x: x.__array__() > 50,
    "from_dlpack": lambda x: np.from_dlpack(x) > 50,
    "item": lambda x: x.item() > 50,
    "float": lambda x: float(x) > 50,
    "int": lambda x: int(x) > 50,
    "bool": lambda x: bool(x > 50),
    "index": lambda x: range(1000)[x.long()] > 50,
    "complex": lambda x: complex(x).real > 50,
    "format": lambda x: float(f"{x}") > 50,
    "storage": lambda x: x.untyped_storage().tolist()[3] > 67,
    "loop": lambda x: any(each > 50 for each in x.reshape(1)),
    "of whole numbers": lambda x: x.round().long().tolist() > 50,
    "written in place": lambda x: torch.zeros(1).copy_(x).tolist()[0] > 50,
    "of a part": lambda x: torch.zeros(2).index_fill_(0, torch.tensor([1]), x).tolist()[1] > 50,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_every_way_to_read_a_value_is_seen(tmp_path, read):
    """No case reaches the other side of this branch: what decides is that the value was read at all."""
    model = module(lambda self, x: x * 0 if read(x.abs().max() * 1e-6) else x * 2)
    with pytest.raises(ExportFailed, match="reads values of tensors"):
        export_verified(model, Sample.of(R(2, 4)), {}, tmp_path, exporters=tracing)


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: torch.tensor(x.max()),
        lambda x: torch.tensor([x.max(), 1.0]),
        lambda x: torch.as_tensor([x.max()]),
        lambda x: torch.asarray([x.max()]),
        lambda x: torch.Tensor([x.max()]),
        lambda x: x.new_tensor([x.max()]),
    ],
)
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_a_constant_made_of_data_is_seen(tmp_path, copy):
    model = module(lambda self, x: torch.where(copy(x * 1e-6).max() > 50, x * 0, x * 2))
    with pytest.raises(ExportFailed, match="reads values of tensors"):
        export_verified(model, Sample.of(R(2, 4)), {}, tmp_path, exporters=tracing)


def test_constants_may_be_read_and_made(export):
    model = module(lambda self, x: x.split(self.parts.tolist(), 1)[1] * x.new_tensor([1.0, 2.0, 3.0]))
    model.register_buffer("parts", torch.tensor([1, 3]))
    told = export(model, R(2, 4))
    assert told.signature.outputs[0].shape == ("batch", 3)


@pytest.mark.parametrize("message", ["Python list", "Python float", "NumPy array"])
def test_a_tracers_warning_about_values_is_never_about_shapes(tmp_path, message):
    def forward(self, x):
        if torch.jit.is_tracing():
            warnings.warn(f"Converting a tensor to a {message} might be wrong", torch.jit.TracerWarning, stacklevel=1)
        return x * 2

    with pytest.raises(ExportFailed, match=f"the tracer warns: Converting a tensor to a {message}"):
        export_verified(module(forward), Sample.of(R(2, 4)), {}, tmp_path, exporters=tracing)


class Bounded(torch.autograd.Function):
    """An operation whose ONNX form forgets that it is bounded."""

    @staticmethod
    def forward(ctx, x, low, high):
        size = x.abs().clamp(low, high)
        return torch.where(x < 0, -size, size)

    @staticmethod
    def symbolic(graph, x, low, high):
        return graph.op("Identity", x)


@pytest.mark.parametrize(
    ("low", "high", "case"), [(0.0, 50.0, "a thousand times the values"), (0.1, 1e9, "a thousandth of the values")]
)
def test_what_differs_only_far_from_the_sample_is_found(tmp_path, low, high, case):
    sample = Sample.of(torch.tensor([[3.0, -4.0], [5.0, -3.5]]))
    model = module(lambda self, x: Bounded.apply(x, low, high))
    with pytest.raises(ParityFailed, match=f"for input '{case}'"):
        export_verified(model, sample, {}, tmp_path, exporters=tracing)


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (lambda self, x: x.softmax(1).topk(2).indices, "aten.topk"),
        (lambda self, x: x[x > 0], "aten.index"),
        (lambda self, x: torch.sin(x * 30), "last digits"),
        (lambda self, x: x.exp() + x.exp2(), "not finite"),
    ],
)
def test_extreme_values_are_not_tried_where_they_prove_nothing(export, forward, told):
    assert told in export(module(forward), R(2, 4)).parity.skipped["a thousand times the values"]


def test_a_module_that_is_random_in_evaluation_mode_is_refused_at_once(tmp_path):
    model = module(lambda self, x: F.dropout(x, 0.5, training=True))
    with pytest.raises(ParityFailed, match="answers the same input twice") as caught:
        export_verified(model, Sample.of(R(4, 4)), None, tmp_path)
    assert len(caught.value.attempts) == 1
    assert not caught.value.report.passed
    assert caught.value.path == tmp_path / "model.onnx"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


class Rounded(torch.autograd.Function):
    """An operation whose ONNX form is deliberately another one."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def symbolic(graph, x):
        return graph.op("Ceil", x)


def test_a_file_that_answers_differently_is_kept_for_a_look(tmp_path):
    """The slower exporter writes what the module does; without it only the wrong file is left."""
    with pytest.raises(ParityFailed, match="output_0 differs by") as caught:
        export_verified(module(lambda self, x: Rounded.apply(x)), Sample.of(R(1, 4)), None, tmp_path, exporters=tracing)
    assert caught.value.path.exists()
    assert "tensor operation" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_type_the_runtime_cannot_compute_is_said_so(tmp_path):
    with pytest.raises(ExportFailed, match="could not be written") as caught:
        export_verified(nn.Linear(8, 4).bfloat16(), Sample.of(R(1, 8).bfloat16()), None, tmp_path, exporters=tracing)
    assert "model.float()" in caught.value.hint


def test_a_module_that_cannot_take_its_sample_is_refused(tmp_path):
    with pytest.raises(ModelRefused, match="Linear cannot answer its own sample: RuntimeError: mat1") as caught:
        export_verified(nn.Linear(4, 4), Sample.of(R(1, 5)), None, tmp_path)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(ModelRefused, match="a int at output"):
        export_verified(module(lambda self, x: (x, 3)), Sample.of(R(1, 5)), None, tmp_path)


@pytest.mark.parametrize("batch", ["dict", "tensor"])
def test_a_dict_goes_whole_to_the_module_that_wants_it(export, batch):
    if batch == "dict":
        told = export(module(lambda self, batch: batch["a"] - batch["b"]), {"b": R(1, 4), "a": R(1, 4)})
        assert [each.name for each in told.signature.inputs] == ["b", "a"]
    else:
        told = export(nn.Linear(4, 4), {"image": R(1, 4)})
        assert [each.name for each in told.signature.inputs] == ["image"]


def test_a_compiled_module_is_exported_as_what_it_compiles(export):
    told = export(torch.compile(nn.Linear(4, 4), backend="eager"), R(1, 4))
    assert exporters(told) == ["torchscript"]


def test_a_module_that_counts_its_calls_is_left_as_it_was(export):
    def forward(self, x):
        self.calls += 1
        return x * 2

    model = module(forward)
    model.register_buffer("calls", torch.zeros(1))
    told = export(model, R(1, 4))
    assert model.calls.item() == 0
    assert told.parity.passed


def test_a_replaced_buffer_is_put_back_even_when_something_raises():
    model = module(lambda self, x: x)
    kept = torch.zeros(1)
    model.register_buffer("state", kept)

    def replace_and_fail():
        with held_still(model):
            model.state = torch.ones(1)
            assert not model.training
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        replace_and_fail()
    assert model.state is kept
    assert model.training


def test_the_same_module_becomes_the_same_bytes(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = export_verified(model, Sample.of(R(1, 3, 8, 8)), None, tmp_path / name).path
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_the_slower_exporter_writes_the_same_bytes_twice_and_names_no_file(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        exported = export_verified(model, Sample.of({"input": R(2, 4)}), None, tmp_path / name, exporters=capturing)
        contents.append(exported.path.read_bytes())
        assert onnx.load(str(exported.path)).ir_version == 8
    assert contents[0] == contents[1]
    assert b".py" not in contents[0]


def test_weights_too_large_for_one_message_get_a_file_of_their_own(tmp_path):
    small = GraphExporter(max_inline_bytes=100)
    exported = export_verified(nn.Linear(64, 64), Sample.of(R(1, 64)), None, tmp_path, exporters=lambda plan: (small,))
    assert exported.external == ("model.onnx.data",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert validate(exported.path).external == ("model.onnx.data",)


@pytest.mark.slow
@pytest.mark.parametrize("exporters", [tracing, capturing])
def test_more_than_two_gigabytes_are_exported(tmp_path, exporters):
    model = nn.Sequential(nn.Embedding(270_000, 2048), nn.Linear(2048, 2))
    exported = export_verified(model, Sample.of(torch.tensor([[1, 2]])), None, tmp_path, exporters=exporters)
    assert exported.external == ("model.onnx.data",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]


class PlanOfSize:
    def __init__(self, size_bytes):
        self.size_bytes = size_bytes


def test_small_weights_are_traced_first_and_large_ones_last():
    small, large = PlanOfSize(MAX_INLINE_BYTES), PlanOfSize(MAX_INLINE_BYTES + 1)
    assert [each.name for each in exporters_for(small)] == ["torchscript", "torch.export"]
    assert [each.name for each in exporters_for(large)] == ["torch.export", "torchscript"]


def test_logging_and_warnings_are_as_before(export):
    level = logging.getLogger("torch.onnx").level
    filters = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(nn.LSTM(4, 4, batch_first=True), R(1, 3, 4))
    assert logging.getLogger("torch.onnx").level == level
    assert warnings.filters == filters


def test_several_threads_leave_the_process_as_it_was(tmp_path):
    streams, filters = (sys.stdout, sys.stderr), list(warnings.filters)
    fast_path, level = torch.backends.mha.get_fastpath_enabled(), logging.getLogger("torch.onnx").level
    told, start = [], threading.Barrier(3)

    def work(place):
        start.wait(30)
        for index in range(3):
            directory = place / str(index)
            directory.mkdir(parents=True)
            told.append(export_verified(model, Sample.of(R(1, 4)), None, directory).parity.passed)

    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(10)])
    threads = [threading.Thread(target=work, args=(tmp_path / name,), daemon=True) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert told == [True] * 9
    assert (sys.stdout, sys.stderr) == streams
    assert warnings.filters == filters
    assert torch.backends.mha.get_fastpath_enabled() is fast_path
    assert logging.getLogger("torch.onnx").level == level
