"""The public names, and what importing them costs."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import keynet_core


def test_all_is_sorted_and_is_what_can_be_imported():
    assert keynet_core.__all__ == sorted(keynet_core.__all__, key=_order)
    assert all(getattr(keynet_core, name) is not None for name in keynet_core.__all__)
    assert dir(keynet_core) == sorted(keynet_core.__all__)


def test_what_is_loaded_late_is_what_type_checkers_are_told():
    """The names are written twice, for the interpreter and for type checkers; both must be the same."""
    tree = ast.parse(Path(keynet_core.__file__).read_text())
    (told,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = {node.module.removeprefix("keynet_core."): tuple(each.name for each in node.names) for node in told.body}
    assert imports == keynet_core._HOMES
    assert sorted(sum(imports.values(), ())) == sorted(keynet_core.__all__)


def test_a_name_that_is_not_public_is_none():
    with pytest.raises(AttributeError, match=r"keynet_core.* has no attribute 'no_such_name'"):
        keynet_core.no_such_name  # noqa: B018  # asking is the test


def _order(name):
    # Constants, then classes, then functions, as the linter sorts them.
    return (not name.isupper(), not name[0].isupper(), name)


def test_every_module_is_private():
    assert all(each.name.startswith("_") for each in pkgutil.iter_modules(keynet_core.__path__))


def test_every_public_function_and_class_has_a_docstring():
    for name in keynet_core.__all__:
        thing = getattr(keynet_core, name)
        assert not callable(thing) or thing.__doc__, name


def test_every_module_says_what_it_is():
    for each in pkgutil.iter_modules(keynet_core.__path__):
        assert importlib.import_module(f"keynet_core.{each.name}").__doc__, each.name


HEAVY = ("numpy", "http.client", "ssl", "email", "sqlite3", "asyncio", "urllib.request")


def test_importing_everything_loads_nothing_heavy(python):
    done = python("import sys, keynet_core; from keynet_core import *; print(*sys.modules)")
    loaded = set(done.stdout.split())
    assert "keynet_core" in loaded, done.stderr
    assert not loaded & set(HEAVY)


CLIENT = (
    "from keynet_core import CoreSettings, DataType, KeynetError, from_wire, read_endpoints, read_settings, to_wire"
)

MODULES = "import sys; bare = set(sys.modules); exec(sys.argv[1]); print(len(set(sys.modules) - bare))"


# Modules are counted, not milliseconds: they follow from the code, whatever else the machine does.
@pytest.mark.parametrize(
    ("code", "budget"), [("import keynet_core", 32), (CLIENT, 82)], ids=["package", "what a client of models needs"]
)
def test_importing_adds_few_modules(python, code, budget):
    assert int(python(MODULES, code).stdout) <= budget
