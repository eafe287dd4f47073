from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn

from keynet_train._bound import BoundModule, bindings_of, flatten, unwrap
from keynet_train._errors import ModelRefused
from keynet_train._sample import Sample

A, B = torch.tensor([1.0]), torch.tensor([10.0])


class Subtract(nn.Module):
    def forward(self, a, b):
        return a - b


class Default(nn.Module):
    def forward(self, a, b=None, *, c=None):
        return a if c is None else a + c


class PositionalOnly(nn.Module):
    def forward(self, a, /, b):
        return a - b


class Open(nn.Module):
    def forward(self, **tensors):
        return tensors["a"] - tensors["b"]


class Whole(nn.Module):
    def forward(self, batch, flag=False):
        return batch["a"] - batch["b"]


class Keyword(nn.Module):
    def forward(self, *, a):
        return a


def answer(module, sample_input):
    sample = Sample.of(sample_input)
    return BoundModule(module, bindings_of(module, sample)[0])(*sample.tensors.values())


@pytest.mark.parametrize("module", [Subtract(), PositionalOnly(), Open(), Whole()])
def test_inputs_reach_their_parameters_whatever_their_order(module):
    assert answer(module, {"a": A, "b": B})[0].item() == -9
    assert answer(module, {"b": B, "a": A})[0].item() == -9


def test_parameters_with_defaults_may_be_left_out():
    assert answer(Default(), {"a": A})[0].item() == 1
    assert answer(Default(), {"c": B, "a": A})[0].item() == 11
    assert answer(Default(), A)[0].item() == 1


def test_one_tensor_goes_to_the_first_parameter_whatever_it_is_called():
    assert answer(nn.Sequential(nn.Identity()), A)[0].item() == 1


def test_a_dict_of_one_tensor_may_be_meant_as_the_tensor():
    sample = Sample.of({"image": A})
    whole, alone = bindings_of(nn.Identity(), sample)
    assert whole.as_dict
    assert not alone.as_dict


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scripted_module_is_bound_by_its_schema():
    scripted = torch.jit.script(Subtract())
    assert answer(scripted, {"b": B, "a": A})[0].item() == -9


@pytest.mark.parametrize(
    ("module", "sample", "told"),
    [
        (Subtract(), {"a": A, "c": B}, "needs b; it does not know c"),
        (Subtract(), {"a": A}, "it needs b"),
        (Subtract(), {"a": A, "b": B, "c": A}, "does not know c"),
        (Subtract(), {"x": A, "y": A}, "it needs a, b; it does not know x, y"),
        (Subtract(), A, "also needs b"),
        (Keyword(), A, "takes no tensor by position"),
    ],
)
def test_names_that_do_not_fit_are_listed(module, sample, told):
    with pytest.raises(ModelRefused, match=told):
        bindings_of(module, Sample.of(sample))


def test_nested_answers_are_flat_and_in_order():
    told = flatten({"logits": A, "boxes": [B, (A, None)]})
    assert told.keys == ("logits", "boxes.0", "boxes.1.0")
    assert [each.item() for each in told.tensors] == [1, 10, 1]


def test_a_tuple_has_no_keys():
    assert flatten((A, [B])).keys is None
    assert flatten(A).keys is None


def test_named_tuples_and_dataclasses_give_their_fields_as_keys():
    @dataclass
    class Output:
        logits: torch.Tensor
        hidden: torch.Tensor | None = None

    assert flatten(Output(logits=A)).keys == ("logits",)

    class Pair(NamedTuple):
        x: torch.Tensor
        y: torch.Tensor

    assert flatten(Pair(A, B)).keys == ("x", "y")


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ({"logits": A, "count": 3}, r"a int at output\['count'\]"),
        ((A, ["text"]), r"a str at output\['1'\]\['0'\]"),
        (3.5, "a float at output,"),
        ((None, []), "no tensor"),
        (torch.zeros(2, dtype=torch.complex64), "output_0 has elements of type complex64"),
        ((A, torch.zeros(2, 2).to_sparse()), "output_1 has layout"),
    ],
)
def test_what_is_no_tensor_is_named_with_its_path(returned, told):
    with pytest.raises(ModelRefused, match=told):
        flatten(returned)


def test_wrappers_are_taken_off():
    inner = Subtract()
    assert unwrap(nn.DataParallel(torch.compile(inner, backend="eager"))) is inner
    assert unwrap(inner) is inner
