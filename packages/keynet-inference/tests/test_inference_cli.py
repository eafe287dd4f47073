"""`keynet-inference`, as a process."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from keynet_core import NameRefused
from keynet_inference import FunctionFileInvalid
from keynet_inference._inspection import MAX_SOURCE_BYTES, inspect_file

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND = Path(sys.executable).with_name("keynet-inference")

ECHO = """
from keynet_inference import UserInput, keynet_function

@keynet_function("echo", description="Gives back.")
def main(args: dict):
    print("heard", args)
    return {"x": UserInput.get("x", "nothing"), "args": args}
"""


@pytest.fixture
def function(tmp_path: Path) -> Callable[[str], Path]:
    def write(source: str) -> Path:
        path = tmp_path / "function.py"
        path.write_text(source, encoding="utf-8")
        return path

    return write


def keynet(*arguments: object, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(COMMAND), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, input=text)


def raising(what: str) -> str:
    head = "import keynet_core\nimport keynet_inference\n"
    return f"{head}@keynet_inference.keynet_function('f')\ndef main(args):\n    {what}\n"


def test_run_prints_the_result_and_keeps_what_the_function_prints_apart(function: Any) -> None:
    done = keynet("run", function(ECHO), "-p", "x=3", "-p", "name=고양이", "-p", "list=[1, null]")

    assert done.returncode == 0
    assert json.loads(done.stdout) == {"x": 3, "args": {"x": 3, "name": "고양이", "list": [1, None]}}
    assert "heard" in done.stderr


def test_parameters_come_from_json_a_file_or_standard_input(function: Any, tmp_path: Path) -> None:
    path = function(ECHO)
    (tmp_path / "args.json").write_text('{"x": 2}')

    for option, text in (('{"x": 1}', None), (f"@{tmp_path / 'args.json'}", None), ("-", '{"x": 3}')):
        done = keynet("run", path, "--json-args", option, text=text)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["x"] == 3
    assert json.loads(keynet("run", path, "--json-args", '{"x": 1}', "-p", "x=text").stdout)["x"] == "text"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "none.py"],
        ["run"],
        ["push"],
        ["run", __file__, "-p", "novalue"],
        ["run", __file__, "-p", "=3"],
        ["run", __file__, "--json-args", "[1]"],
        ["run", __file__, "--json-args", "{"],
        ["run", __file__, "--json-args", '{"x": NaN}'],
        ["run", __file__, "--json-args", "@none.json"],
        ["run", __file__, "--json-args", "[" * 100_000],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    done = keynet(*arguments)

    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("what", "exit_code", "code"),
    [
        ("return 3", 1, "function.result_refused"),
        ("raise ValueError('bad')", 1, "function.failed"),
        ("import sys; sys.exit(0)", 1, "function.exited"),
        ("raise keynet_inference.ModelNotServed('none')", 4, "inference.model_not_served"),
        ("raise keynet_core.StoreForbidden('no')", 3, "store.forbidden"),
        ("raise keynet_core.ObjectMissing('none')", 4, "store.object_missing"),
        ("raise keynet_inference.TritonTimeout('late')", 6, "inference.timeout"),
        ("raise keynet_core.StoreUnavailable('away')", 6, "store.unavailable"),
    ],
)
def test_exit_codes_and_json_errors(function: Any, what: str, exit_code: int, code: str) -> None:
    path = function(raising(what))

    human, first, last = keynet("run", path), keynet("--json", "run", path), keynet("run", path, "--json")

    assert human.returncode == first.returncode == last.returncode == exit_code
    assert human.stdout == ""
    assert f"code  {code}" in human.stderr
    assert json.loads(first.stdout)["error"]["code"] == json.loads(last.stdout)["error"]["code"] == code


@pytest.mark.parametrize("body", ["return {'a': '\\ud800'}", "return {'\\ud800': 1}", "return {'a': 10**5000}"])
def test_a_result_that_cannot_be_written_is_refused(function: Any, body: str) -> None:
    done = keynet("run", function(raising(body)))

    assert done.returncode == 1
    assert done.stdout == ""
    assert "code  function.result_refused" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failure_whose_message_is_no_text_is_told_as_json(function: Any) -> None:
    done = keynet("--json", "run", function(raising(r"raise ValueError('\ud800')")))

    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "function.failed"


def test_a_file_that_exits_while_it_is_loaded_is_told(function: Any) -> None:
    done = keynet("run", function(f"import sys\n{ECHO}\nsys.exit(3)\n"))

    assert done.returncode == 1
    assert "called sys.exit(3) while it was loaded" in done.stderr
    assert "function.py:10" in done.stderr
    assert "code  function.exited" in done.stderr


def test_standard_output_carries_the_result_alone(function: Any) -> None:
    """Whoever writes: the descriptor, a child process, a print that comes after the result."""
    noise = "import atexit, os; atexit.register(print, 'late'); os.write(1, b'raw\\n'); os.system('echo child'); "

    done = keynet("run", function(raising(noise + "return {'n': 1}")))

    assert done.returncode == 0
    assert done.stdout == '{"n": 1}\n'
    assert all(word in done.stderr for word in ("raw\n", "child\n", "late\n"))


def test_interrupted_is_130(function: Any) -> None:
    path = function(raising("print('begun', flush=True); import time; time.sleep(60)"))
    command = [COMMAND, "run", path]

    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)

    assert process.returncode == 130
    assert (out, err) == ("", "")


def test_a_failure_of_the_function_is_shown_with_its_line(function: Any) -> None:
    done = keynet("run", function(raising("raise ValueError('bad')")))

    assert "error: function 'f' raised ValueError: bad" in done.stderr
    assert "function.py:5" in done.stderr
    assert "Traceback" in done.stderr


def test_a_server_that_is_away_is_6_with_the_next_step(function: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    source = raising(f"keynet_inference.TritonPlugin('127.0.0.1:{port}', 'm').predict({{}})")

    done = keynet("run", function(source))

    assert done.returncode == 6
    assert "next  start one with `keynet up`" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_function_imports_the_files_beside_it(function: Any, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 7")

    assert json.loads(keynet("run", function(f"import beside\n{ECHO}"), "-p", "x=1").stdout)["x"] == 1


def test_a_main_block_does_not_run(function: Any) -> None:
    done = keynet("run", function(f"{ECHO}\nif __name__ == '__main__':\n    raise SystemExit(9)"))

    assert done.returncode == 0


def test_version_and_help() -> None:
    assert keynet("--version").stdout.startswith("keynet-inference, version ")
    assert "run" in keynet("--help").stdout
    assert "Examples:\n" in keynet("run", "-h").stdout


@pytest.mark.parametrize(
    "decorator",
    [
        '@keynet_function("detect", "Finds.", "python:3.11")',
        '@keynet_function("detect", base_image="python:3.11", description="Finds.")',
        '@keynet_inference.keynet_function(name="detect", description="Finds.", base_image="python:3.11")',
        '@other\n@kn.keynet_function("detect", description="Fin" "ds.", base_image="python:3.11")',
    ],
)
def test_a_function_is_read_without_running_the_file(function: Any, decorator: str) -> None:
    source = inspect_file(function(f"raise SystemExit\n\n{decorator}\ndef main(args): ...\n"))

    assert (source.info.name, source.info.description, source.info.base_image) == ("detect", "Finds.", "python:3.11")
    assert source.entry == "main"


def test_none_is_as_if_it_was_not_told(function: Any) -> None:
    source = inspect_file(function('@keynet_function("detect", description=None)\ndef main(args): ...'))

    assert source.info.description is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "exactly one function"),
        ("x = 3", "it has: none"),
        (
            '@keynet_function("a")\ndef f(args): ...\n@keynet_function("b")\ndef g(args): ...',
            r"f \(line 2\), g \(line 4\)",
        ),
        ("def f(:\n", "function.py:1"),
        ("x = 3\x00", "source|null"),
        ("-" * 200_000 + "1", "no Python source"),
        ("@keynet_function\ndef f(args): ...", "told a name"),
        ("@keynet_function(NAME)\ndef f(args): ...", "NAME is not"),
        ('@keynet_function(f"{x}")\ndef f(args): ...', "plain text"),
        ("@keynet_function(*names)\ndef f(args): ...", "plain text"),
        ("@keynet_function(**told)\ndef f(args): ...", "plain text"),
        ('@keynet_function("a", image="b")\ndef f(args): ...', "plain text"),
        ('@keynet_function("a", 3)\ndef f(args): ...', "3 is not"),
    ],
)
def test_files_that_cannot_be_read_say_why(function: Any, text: str, told: str) -> None:
    with pytest.raises(FunctionFileInvalid, match=told):
        inspect_file(function(text))


def test_a_name_in_a_file_is_held_to_the_same_rule(function: Any) -> None:
    for decorator in ('@keynet_function("a b")', "@keynet_function()"):
        with pytest.raises(NameRefused):
            inspect_file(function(f"{decorator}\ndef f(args): ..."))


def test_files_that_are_no_source_say_why(tmp_path: Path) -> None:
    large = tmp_path / "large.py"
    large.write_bytes(b"#" * (MAX_SOURCE_BYTES + 1))
    latin = tmp_path / "latin.py"
    latin.write_bytes(b"x = '\xff'")

    for path, told in ((large, "no source file"), (latin, "latin.py"), (tmp_path / "none.py", "cannot be read")):
        with pytest.raises(FunctionFileInvalid, match=told):
            inspect_file(path)


def test_a_file_that_is_no_python_file_by_name_is_not_loaded(function: Any, tmp_path: Path) -> None:
    path = function(ECHO).rename(tmp_path / "function.txt")

    done = keynet("run", path, "--json")

    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "function.file_invalid"
