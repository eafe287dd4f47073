import subprocess
import sys

import numpy as np
import pytest
import torch

from keynet_core import DataType
from keynet_train._errors import AxisRefused, SampleRefused
from keynet_train._sample import Sample, check_dynamic_axes

IMAGE = torch.zeros(2, 3, 8, 8)


def test_a_tensor_is_called_input_0():
    sample = Sample.of(IMAGE)
    assert sample.names == ("input_0",)
    assert sample.shapes == {"input_0": (2, 3, 8, 8)}
    assert not sample.is_dict


def test_a_dict_keeps_its_names_and_order():
    sample = Sample.of({"mask": torch.ones(2, 1, dtype=torch.bool), "image": IMAGE})
    assert sample.names == ("mask", "image")
    assert sample.dtypes == {"mask": DataType.BOOL, "image": DataType.FP32}
    assert sample.is_dict


def test_only_the_names_of_outputs_are_taken():
    assert Sample.of({"output": IMAGE, "output_01": IMAGE}).names == ("output", "output_01")


def test_a_scalar_tensor_is_a_sample():
    assert Sample.of({"x": IMAGE, "threshold": torch.tensor(0.5)}).shapes["threshold"] == ()


def test_what_training_does_to_the_tensor_does_not_change_the_sample():
    given = torch.zeros(2, 2, requires_grad=True)
    sample = Sample.of(given)
    with torch.no_grad():
        given.fill_(7)
    assert not sample.tensors["input_0"].any()
    assert not sample.tensors["input_0"].requires_grad


def test_a_tuple_is_refused_with_the_dict_form_of_as_many_entries():
    with pytest.raises(SampleRefused) as caught:
        Sample.of((IMAGE, IMAGE))
    assert '{"input_0": ..., "input_1": ...}' in str(caught.value)
    assert caught.value.code == "sample.refused"
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([IMAGE], "list of 1"),
        ((), "tuple of 0"),
        ("image", "type str"),
        (None, "type NoneType"),
        (np.zeros((1, 2)), "torch.from_numpy"),
        ({}, "empty dict"),
        ({"image": np.zeros(2)}, "torch.from_numpy"),
        ({"image": IMAGE, "label": 3}, "'label'"),
        ({3: IMAGE}, "the key 3"),
        ({"a/b": IMAGE}, "'a/b'"),
        ({"output_0": IMAGE}, "key 'output_0': the outputs of a model are called so"),
        ({"image": IMAGE, "output_12": IMAGE}, "'output_12'"),
        ({"": IMAGE}, "the key ''"),
        (torch.zeros(2, dtype=torch.complex64), "complex64"),
        ({"x": torch.zeros(2, dtype=torch.float8_e4m3fn)}, "float8_e4m3fn"),
        (torch.zeros(2, 2).to_sparse(), "sparse"),
        (torch.zeros(2, device="meta"), "no values"),
        (torch.zeros(0, 3), "no elements"),
    ],
)
def test_everything_else_is_refused_by_name(value, told):
    with pytest.raises(SampleRefused, match=told.replace("(", r"\(")):
        Sample.of(value)


def test_a_sample_is_refused_without_torch_being_imported():
    code = (
        "import sys; from keynet_train._sample import Sample, SampleRefused\n"
        "try: Sample.of('x')\nexcept SampleRefused: pass\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_axes_are_returned_as_they_were_given():
    sample = Sample.of({"image": IMAGE, "text": torch.zeros(2, 5, 4)})
    asked = {"image": {0: "batch"}, "text": {0: "batch", 1: "len"}, "output_0": {0: "batch"}}
    assert check_dynamic_axes(asked, sample) == asked
    assert check_dynamic_axes(None, sample) is None


def test_a_list_of_axes_gets_names_of_its_own():
    sample = Sample.of({"my-text": torch.zeros(2, 5)})
    assert check_dynamic_axes({"my-text": [1], "output_0": (0,)}, sample) == {
        "my-text": {1: "my_text_dim_1"},
        "output_0": {0: "output_0_dim_0"},
    }


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ([0], "not a dict"),
        ({"imge": {0: "batch"}}, "'imge'; this model has input 'input_0'"),
        ({"output": {0: "batch"}}, "output_0, output_1"),
        ({"output_01": {0: "batch"}}, "output_01"),
        ({3: {0: "batch"}}, "names 3"),
        ({"input_0": {4: "x"}}, r"axis 4, but 'input_0' has shape \[2, 3, 8, 8\]"),
        ({"input_0": {-1: "x"}}, "axis -1"),
        ({"input_0": {"0": "x"}}, "axis '0'"),
        ({"input_0": {True: "x"}}, "axis True"),
        ({"input_0": {0: "batch size"}}, "'batch size'"),
        ({"input_0": {0: None}}, "None"),
        ({"input_0": "batch"}, "is a str"),
        ({"input_0": {0: "n", 1: "n"}}, r"two sizes 'n': 2 \(axis 0 of 'input_0'\) and 3"),
    ],
)
def test_axes_that_cannot_be_are_refused(axes, told):
    with pytest.raises(AxisRefused, match=told):
        check_dynamic_axes(axes, Sample.of(IMAGE))
