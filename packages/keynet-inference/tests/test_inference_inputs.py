"""What a caller hands over, against what a model takes, without any server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from keynet_inference import InferenceFailed, InputRefused
from keynet_inference._inputs import bind
from keynet_inference._model import Asked, read_model

if TYPE_CHECKING:
    from keynet_inference._model import Model


def model(*inputs: tuple[str, str, list[int]]) -> Model:
    rows = [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in inputs]
    return read_model(Asked("m", ""), {"inputs": rows, "outputs": []})


def bound(value: object, datatype: str, shape: list[int]) -> np.ndarray:
    return bind({"x": value}, model(("x", datatype, shape)))["x"]


def test_an_array_that_fits_is_not_copied() -> None:
    array = np.zeros((2, 3), np.float32)

    assert bound(array, "FP32", [-1, 3]) is array


@pytest.mark.parametrize(
    ("value", "datatype", "expected"),
    [
        ([1, 2], "FP32", np.array([1, 2], np.float32)),
        ([1, 2.5], "FP16", np.array([1, 2.5], np.float16)),
        ([0.1, float("nan")], "FP32", np.array([0.1, np.nan], np.float32)),
        ([1.0, 2.0], "INT64", np.array([1, 2], np.int64)),
        ([0, 255], "UINT8", np.array([0, 255], np.uint8)),
        ([2**53 + 1], "INT64", np.array([2**53 + 1], np.int64)),
        ([True], "BOOL", np.array([True])),
        ([], "INT32", np.array([], np.int32)),
        (["a", b"b"], "BYTES", np.array(["a", b"b"], object)),
    ],
)
def test_lists_become_the_model_s_type_where_values_survive(value: list, datatype: str, expected: np.ndarray) -> None:
    array = bound(value, datatype, [-1])

    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("value", "datatype"),
    [
        ([256], "UINT8"),
        ([-1], "UINT8"),
        ([0.5], "INT64"),
        ([float("nan")], "INT64"),
        ([2**24 + 1], "FP32"),
        ([1e39], "FP32"),
        ([2**63], "INT64"),
        ([True], "FP32"),
        ([1], "BOOL"),
        (["1"], "FP32"),
        ([1], "BYTES"),
        ([None], "FP32"),
    ],
)
def test_lists_are_refused_where_a_value_would_change(value: list, datatype: str) -> None:
    with pytest.raises(InputRefused, match="model 'm' takes x"):
        bound(value, datatype, [-1])


def test_a_ragged_list_is_refused() -> None:
    with pytest.raises(InputRefused, match="ragged"):
        bound([[1, 2], [3]], "FP32", [-1, -1])


@pytest.mark.parametrize("shape", [[], [1], [-1], [-1, 1]])
def test_a_number_alone_takes_the_shape_of_one_element(shape: list[int]) -> None:
    assert bound(3, "FP32", shape).shape == (1,) * len(shape)


def test_a_number_alone_does_not_fill_a_larger_shape() -> None:
    with pytest.raises(InputRefused, match=r"takes x FP32 \[-1, 2\], got FP32 \[\]"):
        bound(3, "FP32", [-1, 2])


@pytest.mark.parametrize(
    ("array", "datatype", "hint"),
    [
        (np.zeros(2), "FP32", "x: .astype(numpy.float32)"),
        (np.zeros(2, np.int32), "INT64", "x: .astype(numpy.int64)"),
        (np.zeros(2), "BF16", "x: .astype(ml_dtypes.bfloat16)"),
        (np.zeros(2), "BYTES", "x: .astype(numpy.object_)"),
        (np.zeros(2, np.complex64), "FP32", None),
    ],
)
def test_an_array_of_another_type_is_refused_with_the_cast(array: np.ndarray, datatype: str, hint: str | None) -> None:
    with pytest.raises(InputRefused, match=f"takes x {datatype.replace('BYTES', 'STRING')}") as caught:
        bound(array, datatype, [-1])

    assert caught.value.hint == hint


def test_a_missing_batch_axis_is_told() -> None:
    with pytest.raises(InputRefused) as caught:
        bound(np.zeros((3, 8, 8), np.float32), "FP32", [-1, 3, 8, 8])

    assert "expand_dims" in str(caught.value.hint)


def test_a_frame_s_columns_are_inputs_of_one_or_two_axes() -> None:
    frame = pd.DataFrame({"price": [0.5, 2], "count": [3, 4], "name": ["a", "b"]})

    arrays = bind(frame, model(("price", "FP32", [-1]), ("count", "INT32", [-1, 1]), ("name", "BYTES", [-1, 1])))

    assert arrays["price"].tolist() == [0.5, 2]
    assert arrays["count"].tolist() == [[3], [4]]
    assert arrays["name"].tolist() == [["a"], ["b"]]


def test_a_frame_is_the_only_input_of_two_axes() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4]})

    assert bind(frame, model(("x", "FP32", [-1, 2])))["x"].tolist() == [[1, 3], [2, 4]]


def test_a_frame_with_another_number_of_columns_is_refused() -> None:
    with pytest.raises(InputRefused, match=r"takes x FP32 \[-1, 2\], got FP32 \[1, 3\]"):
        bind(pd.DataFrame({"a": [1.0], "b": [2.0], "c": [3.0]}), model(("x", "FP32", [-1, 2])))


def test_a_frame_s_unknown_column_is_named() -> None:
    with pytest.raises(InputRefused, match="does not know 'colour'"):
        bind(pd.DataFrame({"x": [1.0], "colour": [2.0]}), model(("x", "FP32", [-1])))


@pytest.mark.parametrize("given", [None, [1], np.zeros(2)])
def test_anything_else_than_a_dict_or_frame_is_refused(given: object) -> None:
    with pytest.raises(InputRefused, match="takes a dict of arrays by name"):
        bind(given, model(("x", "FP32", [-1])))


@pytest.mark.parametrize("told", [{}, {"inputs": [{"name": "x"}], "outputs": []}, {"inputs": 3, "outputs": []}])
def test_metadata_that_cannot_be_read_is_a_failure(told: dict) -> None:
    with pytest.raises(InferenceFailed, match="metadata of model 'm' cannot be read"):
        read_model(Asked("m", ""), told)


def test_metadata_with_a_type_nobody_knows_is_a_failure() -> None:
    with pytest.raises(InferenceFailed, match="FP8"):
        model(("x", "FP8", [1]))
