"""`keynet-inference`: the function author's command."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keynet_core import KeynetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

MAX_ARGS_BYTES = 64 * 1024 * 1024

_INTERRUPTED = 130

_json_option = click.option("--json", "as_json", is_flag=True, help="Print errors as JSON on standard output too.")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 forbidden, 4 not found, 6 unavailable or timed out, "
    "130 interrupted.",
)
@click.version_option(package_name="keynet-inference", prog_name="keynet-inference")
@_json_option
@click.pass_context
def cli(context: click.Context, *, as_json: bool) -> None:
    """Write and try functions that answer with a served model."""
    context.obj = as_json


@cli.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-p",
    "--param",
    "params",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter; VALUE is read as JSON, else as text.",
)
@click.option(
    "--json-args",
    metavar="JSON",
    help="All parameters as one JSON object; @FILE reads them from a file, - from standard input.",
)
@_json_option
@click.pass_context
def run(context: click.Context, *, file: Path, params: tuple[str, ...], json_args: str | None, as_json: bool) -> None:
    """
    Call the function of FILE here, once, and print its result as JSON.

    What the function and its child processes print goes to standard error. It sees the environment of this shell.

    \b
    Examples:
      keynet-inference run function.py -p image_url=2026/11/20/cat.png -p threshold=0.7
      keynet-inference run function.py --json-args '{"image_url": "cat.png"}'
    """  # noqa: D301 - \b is Click's mark for a paragraph that keeps its lines
    context.obj = context.obj or as_json
    args = _read_args(json_args) | dict(map(_read_param, params))
    with _own_output() as out:
        try:
            result = _run(file, args)
        except KeynetError as error:
            _tell(error, out if context.obj else None)
            context.exit(_exit_code(error))
        except KeyboardInterrupt:
            context.exit(_INTERRUPTED)
        _write(out, result)


def main() -> None:
    """Run the command."""
    cli(prog_name="keynet-inference")


def _run(file: Path, args: dict[str, Any]) -> dict[str, Any]:
    from keynet_inference._inspection import inspect_file
    from keynet_inference._running import run_function

    return run_function(inspect_file(file), args)


@contextmanager
def _own_output() -> Iterator[BinaryIO]:
    """Yield standard output; for all others, child processes and libraries too, it is standard error from now on."""
    with os.fdopen(os.dup(1), "wb") as out, redirect_stdout(sys.stderr):
        os.dup2(2, 1)
        yield out


def _write(out: BinaryIO, told: dict[str, Any]) -> None:
    text = json.dumps(told, ensure_ascii=False, allow_nan=False)
    out.write(text.encode(errors="backslashreplace") + b"\n")


def _read_param(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="-p")
    try:
        return name, _from_json(value)
    except (ValueError, RecursionError):
        return name, value


def _read_args(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        told = _from_json(_text_of(text))
    except (ValueError, OSError, RecursionError) as error:
        raise click.BadParameter(str(error), param_hint="--json-args") from error
    if not isinstance(told, dict):
        raise click.BadParameter("the parameters are one JSON object", param_hint="--json-args")
    return told


def _text_of(text: str) -> str:
    if text == "-":
        return sys.stdin.read(MAX_ARGS_BYTES)
    if text.startswith("@"):
        with Path(text[1:]).open(encoding="utf-8") as file:
            return file.read(MAX_ARGS_BYTES)
    return text


def _from_json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def _exit_code(error: KeynetError) -> int:
    from keynet_core import LockTimeout, ObjectMissing, StoreForbidden, StoreUnavailable
    from keynet_inference._errors import ModelNotServed, TritonUnavailable

    codes: Iterable[tuple[type[KeynetError], int]] = (
        (StoreForbidden, 3),
        (ModelNotServed, 4),
        (ObjectMissing, 4),
        (TritonUnavailable, 6),
        (StoreUnavailable, 6),
        (LockTimeout, 6),
    )
    return next((code for kind, code in codes if isinstance(error, kind)), 1)


def _tell(error: KeynetError, out: BinaryIO | None) -> None:
    """Print an error for people, or as JSON to `out`."""
    from keynet_inference._errors import FunctionFailed

    if isinstance(error, FunctionFailed) and error.__cause__ is not None:
        import traceback

        traceback.print_exception(error.__cause__, file=sys.stderr)
    if out is not None:
        _write(out, {"error": error.to_dict()})
        return
    lines = [f"error: {error.message}"]
    lines += [f"  next  {error.hint}"] * bool(error.hint)
    click.echo("\n".join((*lines, f"  code  {error.code}")), err=True)
