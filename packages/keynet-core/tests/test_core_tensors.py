"""Signatures: which may be batched, what a tensor refuses, and the way through JSON."""

from __future__ import annotations

import json

import pytest

from keynet_core import DataType, NameRefused, Signature, TensorMismatch, TensorSpec


def spec(name, *shape):
    return TensorSpec(name=name, dtype=DataType.FP32, shape=shape)


def symbol(inputs, outputs):
    shapes = [tuple(spec(f"t{at}", *shape) for at, shape in enumerate(side)) for side in (inputs, outputs)]
    return Signature(inputs=shapes[0], outputs=shapes[1]).batch_symbol


def test_a_first_axis_shared_by_all_is_the_batch():
    assert symbol([("batch", 3), ("batch",)], [("batch", 10)]) == "batch"


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([("batch", 3)], [("3*batch", 10)]),
        ([("3*batch", 3)], [("3*batch", 10)]),
        ([("batch", 3), ("rows", 3)], [("batch", 1)]),
        ([("batch", 3)], [("rows", 1)]),
        ([("batch", 3)], [()]),
        ([()], [()]),
        ([(4, 3)], [(4, 1)]),
        ([("batch", 3), (1, 3)], [("batch", 1)]),
        ([(3, "batch")], [(3, "batch")]),
        ([], []),
    ],
    ids=[
        "grown",
        "expression",
        "two inputs",
        "other output",
        "scalar output",
        "scalars",
        "fixed",
        "one fixed",
        "late",
        "none",
    ],
)
def test_no_other_first_axis_is_a_batch(inputs, outputs):
    assert symbol(inputs, outputs) is None


def test_symbols_are_those_of_the_inputs_once_each_in_order():
    signature = Signature(inputs=(spec("a", "n", "t"), spec("b", "t", "k")), outputs=(spec("c", "other"),))
    assert signature.symbols == ("n", "t", "k")


def test_sizes_write_every_symbol_as_minus_one():
    assert spec("x", "batch", 3, "t").sizes == (-1, 3, -1)
    assert spec("x").sizes == ()


def test_an_array_that_fits_is_not_refused():
    assert spec("x", "batch", 3).refuses(DataType.FP32, (7, 3)) is None
    assert spec("x").refuses(DataType.FP32, ()) is None


@pytest.mark.parametrize(
    ("dtype", "shape", "sentence"),
    [
        (DataType.FP64, (1, 3), "tensor 'x' takes FP32, got FP64"),
        (DataType.FP32, (1, 4), "tensor 'x' takes shape [batch, 3], got [1, 4]"),
        (DataType.FP32, (3,), "tensor 'x' takes shape [batch, 3], got [3]"),
        (DataType.FP32, (), "tensor 'x' takes shape [batch, 3], got []"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(dtype, shape, sentence):
    assert spec("x", "batch", 3).refuses(dtype, shape) == sentence


def test_a_signature_survives_json():
    signature = Signature(inputs=(spec("a", "n", 3), spec("s")), outputs=(spec("b", "2*n", 0),))
    assert Signature.from_dict(json.loads(json.dumps(signature.to_dict()))) == signature


def test_a_signature_reads_as_people_write_it():
    signature = Signature(inputs=(spec("a", "n", 3), spec("b")), outputs=(spec("c", 1),))
    assert str(signature) == "a FP32 [n, 3]; b FP32 [] -> c FP32 [1]"


@pytest.mark.parametrize("dim", [-1, 1.5, None, "", True, [2]])
def test_what_is_neither_size_nor_symbol_is_no_dimension(dim):
    with pytest.raises(TensorMismatch, match="no dimension"):
        TensorSpec.from_dict({"name": "x", "datatype": "FP32", "shape": [dim]})


@pytest.mark.parametrize("name", ["", "a/b", 'a"b', "a\\b", "a\nb", "x" * 257])
def test_a_tensor_refuses_a_name_that_no_file_or_quoted_text_carries(name):
    with pytest.raises(NameRefused):
        spec(name)
