import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keynet_core import DataType
from keynet_train._parity import ParityReport, Tolerance, compare, compare_output

X = {"x": np.zeros((1, 2), np.float32)}


def reason(expected, answered):
    return compare_output("output_0", np.asarray(expected), np.asarray(answered), "the sample").reason


def floats(*values):
    return np.array(values, dtype=np.float32)


def test_a_difference_is_one_sentence_with_place_and_values():
    told = reason(floats([0, 0, 0, 0, 1.2]), floats([0, 0, 0, 0, -1.1]))
    assert told == ("output_0 differs by 2.3 at [0, 4] for input 'the sample' (torch 1.2, ONNX -1.1; tolerance 0.0012)")


def test_noise_of_the_type_is_no_difference():
    assert reason(floats(1, 100), floats(1.0005, 100.05)) is None
    assert reason(np.float64([1.0]), np.float64([1.00001])) is not None
    assert reason(np.float16([1.0]), np.float16([1.01])) is None
    assert reason(np.array([1], ml_dtypes.bfloat16), np.array([1.03], ml_dtypes.bfloat16)) is None


def test_scores_beside_coordinates_are_still_compared():
    assert reason(floats(640, 0.9), floats(640, 0.5)) is not None


def test_small_outputs_are_compared_at_their_own_scale():
    assert reason(floats(1e-3, 2e-3), floats(1e-3, 2.1e-3)) is not None


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_equals_itself_only(special):
    assert reason(floats(special, 1), floats(special, 1)) is None
    assert reason(floats(special, 1), floats(1, 1)) is not None
    assert reason(floats(1, 1), floats(special, 1)) is not None
    assert reason(floats(special), floats(0 if np.isnan(special) else -special)) is not None


def test_whole_numbers_are_equal_except_one_in_a_thousand():
    many = np.arange(2000)
    off = many.copy()
    off[:2] += 1
    assert reason(many, off) is None
    off[2] += 1
    assert "3 of 2000 elements differ" in reason(many, off)
    assert reason([1], [2]) is not None
    assert reason([True, False], [True, True]) is not None


def test_whole_numbers_beyond_53_bits_are_compared_exactly():
    assert reason([2**60], [2**60 + 1]) is not None


def test_other_shapes_and_types_are_differences():
    assert "has shape [2, 1] for input 'the sample', torch gives [1, 2]" in reason(floats([1, 2]), floats([1], [2]))
    assert "is FP64 for input 'the sample', torch gives FP32" in reason(floats(1), np.float64([1]))


def test_scalars_and_empty_outputs_are_compared():
    assert reason(np.float32(1), np.float32(1)) is None
    assert reason(np.float32(1), np.float32(2)) is not None
    assert reason(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32)) is None
    assert reason(np.zeros((0,), np.int64), np.zeros((0,), np.int64)) is None


@given(st.floats(-(2.0**99), 2.0**99, width=32), st.floats(2e-3, 1.0))
def test_more_than_the_tolerance_is_always_seen(number, share):
    off = abs(number) * share + 1e-5
    assert reason(np.float64([number]).astype(np.float32), np.float32([number + 2 * off])) is not None


def report(*cases):
    return ParityReport(reference="torch 1", runtime="onnxruntime 1", cases=cases, skipped={"other values": "none"})


def test_a_report_can_be_written_as_json():
    good = compare("the sample", X, {"output_0": floats(1)}, {"output_0": floats(1.0001)})
    told = report(good).to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["passed"]
    assert told["max_abs_diff"] == pytest.approx(1e-4, rel=0.01)
    assert told["cases"][0]["shapes"] == {"x": [1, 2]}
    assert told["cases"][0]["outputs"][0]["tolerance"] == Tolerance.of(DataType.FP32).to_dict()
    assert told["skipped"] == {"other values": "none"}


def test_a_report_says_the_first_difference_and_stays_json():
    good = compare("the sample", X, {"output_0": floats(1)}, {"output_0": floats(1)})
    bad = compare("batch=3", X, {"output_0": floats(1)}, {"output_0": floats(np.inf)})
    told = report(good, bad)
    assert not told.passed
    assert told.reason == bad.reason
    assert told.max_abs_diff == np.inf
    assert json.loads(json.dumps(told.to_dict(), allow_nan=False))["cases"][1]["reason"] == bad.reason
