"""What importing costs: every cold start of a function pays it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import keynet_inference

if TYPE_CHECKING:
    from collections.abc import Callable

HEAVY = {
    "mlflow",
    "torch",
    "pandas",
    "pydantic",
    "tritonclient",
    "grpc",
    "onnxruntime",
    "keynet_serving",
    "ssl",
    "numpy",
}


SPEC = "from keynet_inference import keynet_function, UserInput, TritonPlugin, Storage"
"""What every function begins with."""

HELP = """
import sys
sys.argv = ["keynet-inference", "--help"]
try:
    from keynet_inference._cli import main
    main()
except SystemExit:
    pass
"""


def loaded_by(code: str) -> set[str]:
    report = "import sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


# Modules are counted, not milliseconds: they follow from the code, whatever else the machine does. What they cost is
# measured by benchmarks/bench_predict.py.


def test_importing_adds_few_modules_to_those_of_numpy() -> None:
    added = loaded_by(SPEC) - loaded_by("import numpy")

    assert len(added) <= 29, sorted(added)


def test_constructing_adds_few_more() -> None:
    added = loaded_by(f"{SPEC}\nTritonPlugin(), Storage()") - loaded_by("import numpy")

    added.discard("_colorize")  # a part of `traceback` since Python 3.13
    assert len(added) <= 44, sorted(added)


def test_help_adds_few_modules_to_those_of_python() -> None:
    added = loaded_by(HELP) - loaded_by("pass")

    assert len(added) <= 75, sorted(added)
    assert {each for each in added if each.startswith("keynet_")} <= {
        "keynet_core",
        "keynet_core._errors",
        "keynet_inference",
        "keynet_inference._cli",
    }


def test_importing_the_package_alone_loads_none_of_its_modules() -> None:
    assert {each for each in loaded_by("import keynet_inference") if each.startswith("keynet_")} == {"keynet_inference"}


@pytest.mark.parametrize(
    "code",
    [SPEC, HELP, f"{SPEC}\nTritonPlugin(), Storage()", "from keynet_inference import *"],
    ids=["import", "help", "constructed", "everything"],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert HEAVY & {each.partition(".")[0] for each in loaded_by(code)} == set()


def test_asking_over_http_imports_neither_grpc_nor_triton_s_client() -> None:
    code = (
        "import keynet_inference as k\n"
        "try: k.TritonPlugin('http://127.0.0.1:1', 'm', retry=k.Retry(attempts=1)).predict({'x': [1]})\n"
        "except k.TritonUnavailable: pass\n"
        "import sys; assert not {'grpc', 'tritonclient', 'gevent'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_is_exported_is_sorted_and_there() -> None:
    assert keynet_inference.__all__ == sorted(keynet_inference.__all__)
    assert dir(keynet_inference) == keynet_inference.__all__
    assert all(getattr(keynet_inference, name) is not None for name in keynet_inference.__all__)


def test_what_is_loaded_late_is_what_type_checkers_are_told() -> None:
    """The names are written twice, for the interpreter and for type checkers; both must be the same."""
    tree = ast.parse(Path(keynet_inference.__file__).read_text())
    (told,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = {
        node.module.removeprefix("keynet_inference."): tuple(each.name for each in node.names) for node in told.body
    }

    assert imports == keynet_inference._HOMES
    assert sorted(sum(imports.values(), ())) == keynet_inference.__all__


def test_a_name_that_is_not_public_is_none() -> None:
    with pytest.raises(AttributeError, match=r"keynet_inference.* has no attribute 'no_such_name'"):
        keynet_inference.no_such_name  # noqa: B018 - asking is the test


def calls_of(action: Callable[[], object]) -> int:
    """How many functions, of Python and of C, an action calls."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(before)
    return calls


def test_checking_inputs_is_nearly_free() -> None:
    """However large an array is, it is looked at with a few calls, and neither copied nor read."""
    import numpy as np

    from keynet_inference._inputs import bind
    from keynet_inference._model import Asked, read_model

    rows = [{"name": "input_0", "datatype": "FP32", "shape": [-1, 3, 640, 640]}]
    model = read_model(Asked("m", ""), {"inputs": rows, "outputs": []})
    given = {"input_0": np.zeros((1, 3, 640, 640), np.float32)}
    bind(given, model)

    tracemalloc.start()
    bound = bind(given, model)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert bound["input_0"] is given["input_0"]
    assert peak < 16 * 1024 < given["input_0"].nbytes / 100
    assert calls_of(lambda: bind(given, model)) <= 40


def test_only_one_module_knows_the_model_server_that_runs_in_process() -> None:
    package = Path(keynet_inference.__file__).parent
    knowing = {path.name for path in package.glob("*.py") if "from keynet_serving" in path.read_text()}

    assert knowing == {"_local.py"}


def test_without_the_extra_a_file_address_names_the_install_line() -> None:
    code = (
        "import sys; sys.modules['keynet_serving'] = None\n"
        "import keynet_inference as k, keynet_core\n"
        "try: k.TritonPlugin('file:///models', 'm').predict({'x': [1]})\n"
        "except keynet_core.MissingDependency as error: print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout == "pip install 'keynet-inference[local]'\n"
