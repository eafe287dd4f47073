"""Arrays as bytes: the same bytes as Triton's own client, and back."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient import utils
from tritonclient.http import InferInput

from keynet_core import DataType, TensorMismatch, from_wire, to_wire

NUMERIC = [dtype for dtype in DataType if dtype is not DataType.STRING]


@given(st.data())
def test_numbers_come_back_bit_by_bit(data):
    dtype = data.draw(st.sampled_from([each for each in NUMERIC if each is not DataType.BF16]))
    array = data.draw(hnp.arrays(dtype.to_numpy(), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
    back = from_wire(to_wire(array), dtype, array.shape)
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(st.lists(st.binary(max_size=20), max_size=12))
def test_bytes_come_back_as_they_were(elements):
    array = np.empty(len(elements), object)
    array[:] = elements
    back = from_wire(to_wire(array), DataType.STRING, (len(elements), 1))
    assert back.shape == (len(elements), 1)
    assert back.ravel().tolist() == elements


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=8))
def test_text_is_the_bytes_tritons_client_writes(elements):
    array = np.array(elements, dtype=object)
    assert to_wire(array) == utils.serialize_byte_tensor(array).item()
    assert utils.deserialize_bytes_tensor(to_wire(array)).tolist() == [each.encode() for each in elements]


@pytest.mark.parametrize(
    "array",
    [
        np.array([["a", "한글"], ["", "emoji \U0001f600"]], dtype=object),
        np.array([b"\x00\xff", b""], dtype=object),
        np.array(["fixed", "width"]),
        np.array([b"ab", b"c"], dtype="S2"),
        np.array([1, None, 2.5], dtype=object),
    ],
    ids=["text", "bytes", "U", "S", "other objects"],
)
def test_every_kind_of_text_array_is_what_tritons_client_writes(array):
    expected = utils.serialize_byte_tensor(array if array.dtype.kind == "S" else array.astype(object)).item()
    assert to_wire(array) == expected


def test_bfloat16_is_what_tritons_client_writes():
    values = np.array([1.0, -2.5, 0.0, np.inf, 3.140625], ml_dtypes.bfloat16)
    sent = InferInput("x", [5], "BF16").set_data_from_numpy(values)
    assert to_wire(values) == sent._get_binary_data()
    back = from_wire(to_wire(values), DataType.BF16, (5,))
    assert (back.dtype, back.tolist()) == (values.dtype, values.tolist())


@pytest.mark.parametrize("dtype", NUMERIC, ids=lambda dtype: dtype.name)
def test_numbers_are_written_little_endian_and_row_major(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype.to_numpy())
    assert to_wire(np.asfortranarray(array)) == array.tobytes()
    assert to_wire(array[:, ::-1]) == array[:, ::-1].copy().tobytes()
    if dtype is not DataType.BF16:
        assert to_wire(array.astype(array.dtype.newbyteorder(">"))) == array.tobytes()


def test_text_in_a_view_keeps_its_order():
    array = np.array([["a", "b"], ["c", "d"]], dtype=object)
    assert from_wire(to_wire(array.T), DataType.STRING, (4,)).tolist() == [b"a", b"c", b"b", b"d"]


def test_numbers_are_a_view_that_cannot_be_written():
    data = b"\x00" * 8
    assert not from_wire(memoryview(data), DataType.FP32, (2,)).flags.writeable


@pytest.mark.parametrize("dtype", NUMERIC, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("wrong", [-1, 1])
def test_too_few_or_too_many_bytes_are_refused(dtype, wrong):
    with pytest.raises(TensorMismatch, match=f"takes {3 * dtype.size_bytes} bytes"):
        from_wire(b"\x00" * (3 * dtype.size_bytes + wrong), dtype, (3,))


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=4), st.data())
def test_text_cut_anywhere_is_refused(elements, data):
    array = np.empty(len(elements), object)
    array[:] = elements
    whole = to_wire(array)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(TensorMismatch):
        from_wire(whole[:cut], DataType.STRING, (len(elements),))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\x01\x00", "inside the length"),
        (b"\x05\x00\x00\x00ab", "inside an element"),
        (b"\x01\x00\x00\x00a" * 2, "1 elements holds 2"),
        (b"", "1 elements holds 0"),
    ],
)
def test_text_of_another_length_is_refused_with_the_reason(data, sentence):
    with pytest.raises(TensorMismatch, match=sentence):
        from_wire(data, DataType.STRING, (1,))


@pytest.mark.parametrize("shape", [(-1,), (-1, -1), (0, -1), (0, 2**70), (1,) * 70, ("3",), (1.0,), (None,)])
@pytest.mark.parametrize("dtype", [DataType.UINT8, DataType.STRING])
def test_a_shape_that_no_array_has_is_refused(dtype, shape):
    with pytest.raises(TensorMismatch):
        from_wire(b"" if 0 in shape else b"\x00", dtype, shape)


def test_sizes_that_numpy_counted_are_sizes():
    assert from_wire(b"ab", DataType.UINT8, tuple(np.array([2, 1]))).shape == (2, 1)


def test_half_a_surrogate_pair_cannot_be_sent():
    with pytest.raises(TensorMismatch, match="UTF-8"):
        to_wire(np.array(["\ud800"], dtype=object))


def test_a_type_that_cannot_be_served_cannot_be_sent():
    with pytest.raises(TensorMismatch, match="complex128"):
        to_wire(np.zeros(2, complex))
