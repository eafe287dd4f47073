"""What a model and a tensor may be called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keynet_core import NameRefused, to_key, to_model_name, to_tensor_name


@pytest.mark.parametrize("name", ["a", "MNIST-v1.2_final", "0", "a" * 128, "a.."])
def test_a_model_name_is_kept_as_it_is(name):
    assert to_model_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "_a", "a/b", "a b", "a\n", "한글", "a" * 129, "٣", None, 3, b"a", ["a"]]
)
def test_another_model_name_is_refused_with_the_rule(name):
    with pytest.raises(NameRefused, match="1 to 128 of the letters") as caught:
        to_model_name(name)
    assert caught.value.hint


@given(st.text(st.characters()))
def test_any_model_name_is_one_part_of_a_key(text):
    try:
        name = to_model_name(text)
    except NameRefused:
        return
    assert to_key(f"packages/{name}/x").count("/") == 2


@pytest.mark.parametrize("name", ["a", "input_0", "x:0", "입력 가", "serving_default.x", "a" * 256])
def test_a_tensor_name_may_be_nearly_anything(name):
    assert to_tensor_name(name) == name


@pytest.mark.parametrize("name", ["", "a" * 257, "a/b", "a\\b", 'a"b', "a\tb", "\ud800", None, 0])
def test_a_tensor_name_that_no_file_or_text_carries_is_refused(name):
    with pytest.raises(NameRefused, match="1 to 256 printable"):
        to_tensor_name(name)


@pytest.mark.parametrize("refuse", [to_model_name, to_tensor_name])
def test_a_refusal_is_short_however_long_the_name_was(refuse):
    with pytest.raises(NameRefused) as caught:
        refuse("/" * 100_000)
    assert len(caught.value.message) < 500
