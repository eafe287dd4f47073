"""What an export leaves: the same bytes each time, weights where they fit, and the process as it was."""

import hashlib
import logging
import sys
import threading
import warnings

import onnx
import pytest
import torch
from torch import nn

from keynet_train._evaluation import held_still
from keynet_train._export import export_verified
from keynet_train._exporters import MAX_INLINE_BYTES, GraphExporter, TracingExporter, exporters_for
from keynet_train._graph import validate
from keynet_train._sample import Sample
from torch_modules import exporters, module

R = torch.randn


def tracing(plan):
    return (TracingExporter(),)


def capturing(plan):
    return (GraphExporter(),)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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
