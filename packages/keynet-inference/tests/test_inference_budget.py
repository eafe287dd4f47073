"""What importing costs: every cold start of a function pays it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import keynet_inference

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


def cpu_ms(code: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport time\nprint(time.process_time())"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return float(done.stdout.splitlines()[-1]) * 1e3


def extra_ms(code: str, base: str, rounds: int = 9) -> float:
    """The difference of the least of each: what else the machine does only adds to processor time."""
    pairs = [(cpu_ms(code), cpu_ms(base)) for _ in range(rounds)]
    return min(mine for mine, _ in pairs) - min(theirs for _, theirs in pairs)


HELP = """
import sys
sys.argv = ["keynet-inference", "--help"]
try:
    from keynet_inference._cli import main
    main()
except SystemExit:
    pass
"""


def test_importing_costs_at_most_60_ms_above_numpy() -> None:
    assert extra_ms("import numpy, keynet_inference", "import numpy") <= 60


def test_help_costs_at_most_150_ms_above_python() -> None:
    assert extra_ms(HELP, "pass", rounds=4) <= 150


@pytest.mark.parametrize(
    "code",
    ["import keynet_inference", HELP, "import keynet_inference as k; k.TritonPlugin(); k.Storage()"],
    ids=["import", "help", "constructed"],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    report = "import sys, json; print(json.dumps(sorted({each.partition('.')[0] for each in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)

    assert HEAVY & set(json.loads(done.stdout.splitlines()[-1])) == set()


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
    source = ast.parse(Path(keynet_inference.__file__).read_text())
    imported = {alias.name for node in source.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(keynet_inference.__all__)


def test_checking_inputs_is_nearly_free() -> None:
    import numpy as np

    from keynet_inference._inputs import bind
    from keynet_inference._model import Asked, read_model

    rows = [{"name": "input_0", "datatype": "FP32", "shape": [-1, 3, 640, 640]}]
    model = read_model(Asked("m", ""), {"inputs": rows, "outputs": []})
    given = {"input_0": np.zeros((1, 3, 640, 640), np.float32)}

    def once_us() -> float:
        started = time.process_time()
        for _ in range(1000):
            bind(given, model)
        return (time.process_time() - started) * 1e3

    assert min(once_us() for _ in range(5)) < 30


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
