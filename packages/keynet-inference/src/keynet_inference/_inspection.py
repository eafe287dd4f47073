"""What a file says about its function, read from its syntax: the file is not run."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keynet_inference._errors import FunctionFileInvalid
from keynet_inference._function import FunctionInfo, to_function_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_SOURCE_BYTES = 4 * 1024 * 1024

_PARAMETERS = ("name", "description", "base_image")


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSource:
    """The function of a file: what its decorator was told, and which definition it decorates."""

    path: Path
    info: FunctionInfo
    entry: str
    line: int


def inspect_file(path: Path) -> FunctionSource:
    """
    Return the one function of a file.

    Raises:
        FunctionFileInvalid: It has none, several, or one whose decorator takes anything but plain text.
        NameRefused: Its name is not one a function may have.

    """
    found = list(_decorated(_parse(path)))
    if len(found) != 1:
        names = ", ".join(f"{definition.name} (line {definition.lineno})" for definition, _ in found) or "none"
        raise FunctionFileInvalid(
            f"{path} has to have exactly one function decorated with @keynet_function, it has: {names}",
            hint='write @keynet_function("my-function") above def main(args: dict)',
        )
    definition, call = found[0]
    told = _arguments(path, call)
    info = FunctionInfo(
        name=to_function_name(told.get("name")),
        description=told.get("description"),
        base_image=told.get("base_image"),
    )
    return FunctionSource(path=path, info=info, entry=definition.name, line=definition.lineno)


def _parse(path: Path) -> ast.Module:
    try:
        if path.stat().st_size > MAX_SOURCE_BYTES:
            raise FunctionFileInvalid(f"{path} has more than {MAX_SOURCE_BYTES} bytes: it is no source file")
        return ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise FunctionFileInvalid(f"{path}:{error.lineno or 1}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        # Zero bytes, before Python 3.12; expressions nested deeper than the parser goes.
        raise FunctionFileInvalid(f"{path} is no Python source: {error}") from error
    except OSError as error:
        raise FunctionFileInvalid(f"{path} cannot be read: {error.strerror}") from error


def _decorated(module: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, ast.expr]]:
    for each in module.body:
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in each.decorator_list:
                if _name_of(decorator) == "keynet_function":
                    yield each, decorator


def _name_of(decorator: ast.expr) -> str | None:
    """Return `f` for each of `@f`, `@f(...)`, `@module.f` and `@module.f(...)`."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if isinstance(called, ast.Attribute):
        return called.attr
    return called.id if isinstance(called, ast.Name) else None


def _arguments(path: Path, decorator: ast.expr) -> dict[str, str]:
    if not isinstance(decorator, ast.Call):
        raise FunctionFileInvalid(
            f"{path}:{decorator.lineno}: keynet_function is told a name", hint='@keynet_function("my-function")'
        )
    given: list[tuple[str | None, ast.expr]] = list(zip(_PARAMETERS, decorator.args, strict=False))
    given += [(keyword.arg, keyword.value) for keyword in decorator.keywords]
    told: dict[str, str] = {}
    for name, value in given:
        if name not in _PARAMETERS or not isinstance(value, ast.Constant) or not isinstance(value.value, str | None):
            raise FunctionFileInvalid(
                f"{path}:{value.lineno}: what keynet_function is told has to be plain text, as it is read without "
                f"running the file; {ast.unparse(value)} is not",
                hint='write the text itself: @keynet_function("my-function", description="...")',
            )
        if value.value is not None:
            told[name] = value.value
    return told
