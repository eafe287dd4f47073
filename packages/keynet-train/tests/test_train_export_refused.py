"""Modules that no file can stand for: they are refused, and the reason is the right one."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from keynet_train._errors import ExportFailed, ModelRefused, ParityFailed
from keynet_train._export import export_verified
from keynet_train._exporters import TracingExporter
from keynet_train._sample import Sample
from torch_modules import module

R = torch.randn


def tracing(plan):
    return (TracingExporter(),)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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
