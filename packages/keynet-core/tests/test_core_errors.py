"""The error tree: codes that are unique, drawn in one place, carried through text, JSON and pickle."""

from __future__ import annotations

import pickle
import re

import pytest

import keynet_core
from keynet_core import KeynetError, LockTimeout, MissingDependency, StoreFull
from keynet_core import _errors as module


def family(kind):
    return [kind, *(each for child in kind.__subclasses__() for each in family(child))]


OURS = sorted({each for each in family(KeynetError) if each.__module__.startswith("keynet_core")}, key=str)
ALL = pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)


def drawn():
    """Return the tree of the module's docstring as child to parent."""
    above, tree = ["KeynetError"], {}
    for line in module.__doc__.splitlines():
        if found := re.match(r"^([│ ]*)[├└]── (\w+)", line):
            depth = len(found[1]) // 4 + 1
            above = [*above[:depth], found[2]]
            tree[found[2]] = above[depth - 1]
    return tree


def test_the_tree_in_the_docstring_is_the_tree():
    assert drawn() == {each.__name__: each.__bases__[0].__name__ for each in OURS if each is not KeynetError}


def test_second_parents_are_drawn_too():
    told = dict(re.findall(r"(\w+) +\(also (\w+)\)", module.__doc__))
    assert told == {each.__name__: each.__bases__[1].__name__ for each in OURS if len(each.__bases__) == 2}


def test_every_code_is_unique_and_well_formed():
    codes = [each.code for each in OURS]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z_]+\.[a-z_]+", code) for code in codes)


@ALL
def test_every_error_is_public_says_when_and_has_its_own_code(kind):
    assert getattr(keynet_core, kind.__name__) is kind
    assert "code" in vars(kind)
    assert kind is KeynetError or kind.__doc__.startswith("Raised when ")


@ALL
def test_text_shows_the_hint_and_json_has_it(kind):
    error = kind("the disk is full", hint="df -h")
    assert str(error) == "the disk is full\n  next  df -h"
    assert error.to_dict() == {"code": kind.code, "message": "the disk is full", "hint": "df -h"}
    assert str(kind("the disk is full")) == "the disk is full"
    assert kind("x").to_dict() == {"code": kind.code, "message": "x"}


@ALL
def test_an_error_survives_the_way_to_another_process(kind):
    back = pickle.loads(pickle.dumps(kind("what", hint="next")))
    assert (type(back), back.message, back.hint, str(back)) == (kind, "what", "next", "what\n  next  next")


def test_errors_are_caught_as_what_they_also_are():
    assert issubclass(MissingDependency, ImportError)
    assert issubclass(LockTimeout, TimeoutError)
    assert issubclass(StoreFull, keynet_core.StoreUnavailable)
