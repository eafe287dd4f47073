"""A recorded request and answer: the way through JSON, and what counts as another answer."""

from __future__ import annotations

import base64
import json
from contextlib import suppress

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keynet_core import PackageInvalid, Probe


def probe(array, **tolerances):
    return Probe(inputs={}, outputs={"y": np.asarray(array)}, **tolerances)


ARRAYS = {
    "numbers": np.array([[1.5, np.nan], [np.inf, -0.0]], np.float32),
    "bfloat16": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "scalar": np.array(3, np.int64),
    "flags": np.array([True, False]),
    "nothing": np.zeros((0, 3), np.float64),
    "text": np.array([b"caf\xc3\xa9", b"\xff\x00"], object),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_a_probe_survives_json(array):
    told = Probe(inputs={"x": array}, outputs={"y": array}, rtol=1e-4, atol=1e-5)
    back = Probe.from_json(told.to_json())
    assert (back.rtol, back.atol) == (1e-4, 1e-5)
    for side in (back.inputs["x"], back.outputs["y"]):
        assert (side.dtype, side.shape) == (array.dtype, array.shape)
        assert side.tolist() == array.tolist() if array.dtype == object else side.tobytes() == array.tobytes()


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_the_recorded_answer_is_not_refused(array):
    assert probe(array).refuses({"y": array, "more": array}) is None


def test_a_scalar_that_travelled_as_one_element_is_the_same():
    assert probe(np.float32(2)).refuses({"y": np.array([2], np.float32)}) is None
    assert probe(np.array([2], np.float32)).refuses({"y": np.float32(2)}) is None


def test_text_is_the_same_whether_it_was_decoded_or_not():
    assert probe(np.array(["é"], object)).refuses({"y": np.array(["é".encode()], object)}) is None


def test_bfloat16_read_as_float32_is_the_same():
    assert probe(ARRAYS["bfloat16"]).refuses({"y": ARRAYS["bfloat16"].astype(np.float32)}) is None


def test_a_difference_within_the_tolerance_is_none():
    assert probe(np.float32([1000.0])).refuses({"y": np.float32([1000.9])}) is None


@pytest.mark.parametrize(
    ("recorded", "answer", "sentence"),
    [
        (np.float32([1, 2]), {"z": np.float32([1, 2])}, "no output 'y', only ['z']"),
        (np.float32([1, 2]), {"y": np.float32([[1, 2]])}, "output 'y' has shape [1, 2], recorded [2]"),
        (np.float32([1, 2]), {"y": np.float32([1, 3])}, "output 'y' is 3 at element 1, recorded 2"),
        (np.float32([1, 2]), {"y": np.float32([np.nan, 2])}, "output 'y' is nan at element 0, recorded 1"),
        (np.float32([np.nan]), {"y": np.float32([0])}, "output 'y' is 0 at element 0, recorded nan"),
        (np.float32([np.inf]), {"y": np.float32([-np.inf])}, "output 'y' is -inf at element 0, recorded inf"),
        (np.float32([1e30]), {"y": np.float32([np.inf])}, "output 'y' is inf at element 0"),
        (np.float32([1]), {"y": np.float64([1])}, "output 'y' is FP64, recorded FP32"),
        (np.float32([1]), {"y": np.array([b"1"], object)}, "output 'y' is STRING, recorded FP32"),
        (np.int64([1]), {"y": np.int32([1])}, "output 'y' is INT32, recorded INT64"),
        (np.int64([1]), {"y": np.int64([2])}, "output 'y' is not what was recorded"),
        (np.array([b"a"], object), {"y": np.array([b"b"], object)}, "output 'y' is not what was recorded"),
    ],
)
def test_another_answer_is_refused_in_one_sentence(recorded, answer, sentence):
    assert sentence in (probe(recorded).refuses(answer) or "")


def test_the_absolute_tolerance_grows_with_the_output_but_is_never_below_its_value():
    large = probe(np.float32([1e6, 0.0]), rtol=0.0, atol=1e-3)
    assert large.refuses({"y": np.float32([1e6, 900.0])}) is None
    assert large.refuses({"y": np.float32([1e6, 1100.0])})
    assert probe(np.float32([1e-6]), rtol=0.0, atol=1e-3).refuses({"y": np.float32([9e-4])}) is None


def told(**changes):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": base64.b64encode(b"\x00" * 4).decode()}
    return json.dumps({"inputs": [tensor | changes], "outputs": [], "rtol": 0.1, "atol": 0.1}).encode()


def test_a_probe_written_by_hand_can_be_read():
    assert Probe.from_json(told()).inputs["x"].tolist() == [0.0]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe\x00",
        b"[]",
        b"{}",
        b"[" * 100_000,
        told().replace(b"0.1", b"1" + b"0" * 400),
        told().replace(b"0.1", b"null"),
        told(data="*"),
        told(data="AAAA"),
        told(data=3),
        told(datatype="FP8"),
        told(shape=[-1]),
        told(shape=[0, 2**70], data=""),
        told(shape=None),
        told(name=["x"]),
        told(name="../x"),
    ],
)
def test_what_is_no_probe_is_refused(text):
    with pytest.raises(PackageInvalid, match="probe cannot be read"):
        Probe.from_json(text)


@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(),
        lambda some: (
            st.lists(some) | st.dictionaries(st.sampled_from(["inputs", "outputs", "rtol", "atol", "name"]), some)
        ),
        max_leaves=8,
    )
)
def test_any_json_is_a_probe_or_refused(value):
    with suppress(PackageInvalid):
        Probe.from_json(json.dumps(value).encode())
