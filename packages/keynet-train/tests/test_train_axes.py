import pytest

from keynet_train._axes import Observation, find_symbols, input_dims, output_dims


def symbols(shapes, asked=None):
    found, degradations = find_symbols(shapes, asked)
    return {each.name: each.places for each in found}, [each.code for each in degradations]


def test_axis_0_of_every_input_is_the_batch():
    shapes = {"image": (2, 3, 8, 8), "mask": (2, 1), "threshold": ()}
    assert symbols(shapes) == ({"batch": (("image", 0), ("mask", 0))}, [])


def test_asked_axes_replace_the_default_of_their_input_only():
    shapes = {"image": (1, 3, 8, 8), "text": (1, 50, 4)}
    asked = {"text": {0: "batch", 1: "len"}, "output_0": {0: "batch"}}
    assert symbols(shapes, asked)[0] == {"batch": (("image", 0), ("text", 0)), "len": (("text", 1),)}
    assert symbols(shapes, {"text": {1: "len"}})[0] == {"batch": (("image", 0),), "len": (("text", 1),)}
    assert symbols(shapes, {"image": {}, "text": {}})[0] == {}


def test_the_batch_has_the_users_name_for_it():
    found, _ = symbols({"image": (1, 3), "text": (1, 5)}, {"text": {0: "n"}})
    assert found == {"n": (("image", 0), ("text", 0))}


def test_a_first_axis_of_another_size_is_not_the_batch():
    found, codes = symbols({"x": (2, 4), "weights": (4, 4)})
    assert found == {"batch": (("x", 0),)}
    assert codes == ["axes.not_batch"]


def test_candidates_keep_multiples_and_never_repeat_the_size():
    (batch,), _ = find_symbols({"x": (1, 4)}, None)
    assert batch.candidates() == (3, 33, 2)
    (height,), _ = find_symbols({"x": (1, 64)}, {"x": {1: "h"}})
    assert height.candidates() == (65, 32, 96, 128)
    assert not height.is_batch


def test_input_dims_have_a_symbol_where_the_size_varies():
    found, _ = find_symbols({"x": (1, 7, 3)}, {"x": {0: "batch", 1: "seq"}})
    assert input_dims("x", (1, 7, 3), found) == ("batch", "seq", 3)
    assert input_dims("x", (1, 7, 3), ()) == (1, 7, 3)


def derive(runs, asked=None, taken=("batch", "seq")):
    observations = [Observation(sizes=sizes, shapes=shapes) for sizes, shapes in runs]
    dims, degradations = output_dims(observations, asked, taken)
    return dims, [each.code for each in degradations]


RUNS = [
    ({"batch": 1, "seq": 7}, ((1, 7, 5), (3, 2), ())),
    ({"batch": 3, "seq": 7}, ((3, 7, 5), (9, 2), ())),
    ({"batch": 1, "seq": 8}, ((1, 8, 5), (3, 2), ())),
]


def test_output_axes_are_named_after_what_they_grow_with():
    assert derive(RUNS) == ((("batch", "seq", 5), ("output_1_dim_0", 2), ()), [])


def test_a_name_of_the_users_own_is_kept_for_an_axis_that_may_vary():
    asked = {"output_0": {2: "classes"}, "output_1": {0: "rows"}}
    assert derive(RUNS, asked)[0] == (("batch", "seq", "classes"), ("rows", 2), ())


def test_another_name_for_the_batch_does_not_hide_the_batch():
    assert derive(RUNS, {"output_0": {0: "batch_size"}}) == derive(RUNS)


@pytest.mark.parametrize("axis", [2, 1])
def test_a_symbol_of_an_input_is_not_given_to_an_axis_that_does_not_follow_it(axis):
    dims, codes = derive(RUNS, {"output_0": {axis: "batch"}})
    assert dims == derive(RUNS)[0]
    assert codes == ["axes.contradicted"]


def test_a_symbol_that_turned_out_fixed_makes_no_output_vary():
    runs = [({"batch": 1}, ((1, 7),)), ({"batch": 3}, ((3, 7),))]
    assert derive(runs, {"output_0": {0: "batch", 1: "seq"}}) == ((("batch", 7),), [])


def test_one_name_for_two_axes_that_grow_differently_becomes_two():
    runs = [({}, ((2, 5),)), ({}, ((4, 6),))]
    assert derive(runs, {"output_0": {0: "found", 1: "found"}})[0] == (("found", "found_"),)


def test_axes_of_outputs_that_are_not_there_are_told():
    assert derive(RUNS, {"output_2": {0: "x"}, "output_7": {0: "x"}})[1] == ["axes.unknown", "axes.unknown"]
