"""What a function returns must be a dict that JSON can carry; the sentence that says where it is not."""

from __future__ import annotations

import math
from typing import Any

from keynet_inference._errors import ResultRefused

_MAX_DEPTH = 100
"""Deeper is a value that holds itself, or one that the parsers on the way refuse."""

_MAX_INTEGER_BITS = 13_952
"""4200 digits; Python by itself reads and writes 4300."""


def check_result(function: str, result: object) -> dict[str, Any]:
    """
    Return the result as it is.

    Raises:
        ResultRefused: It is no dict, or holds something JSON has no form for; the place is named.

    """
    if not isinstance(result, dict):
        raise ResultRefused(
            f"function {function!r} returned {_named(result)}: a result is a dict", hint='return {"result": ...}'
        )
    _check(function, "result", result, _MAX_DEPTH)
    return result


def _check(function: str, path: str, value: object, depth: int) -> None:
    if value is None or isinstance(value, str | int | float):
        _check_plain(function, path, value)
        return
    if depth == 0:
        raise ResultRefused(f"function {function!r} returned values nested deeper than {_MAX_DEPTH}, or in themselves")
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise ResultRefused(f"function {function!r} returned the key {key!r} at {path}: JSON's keys are text")
            _check_text(function, f"a key of {path}", key)
            _check(function, f"{path}[{key!r}]", each, depth - 1)
    elif isinstance(value, list | tuple):
        for at, each in enumerate(value):
            _check(function, f"{path}[{at}]", each, depth - 1)
    else:
        raise _refusal(function, path, value)


def _check_plain(function: str, path: str, value: object) -> None:
    if isinstance(value, str):
        _check_text(function, path, value)
    elif isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
        raise ResultRefused(f"function {function!r} returned an integer of more than 4200 digits at {path}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ResultRefused(f"function {function!r} returned {value} at {path}: JSON has no such number")


def _check_text(function: str, path: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ResultRefused(
            f"function {function!r} returned half a character, {text[error.start]!r}, at {path}: UTF-8 cannot carry it",
            hint="decode bytes with errors='replace'",
        ) from error


def _refusal(function: str, path: str, value: object) -> ResultRefused:
    told = f"function {function!r} returned {_named(value)} at {path}: JSON cannot carry it"
    if hasattr(value, "tolist"):
        return ResultRefused(told, hint=f"return {path.removeprefix('result')} as a plain value: .tolist()")
    if isinstance(value, bytes | bytearray | memoryview):
        return ResultRefused(told, hint="put bytes into Storage and return the URL")
    return ResultRefused(told)


def _named(value: object) -> str:
    kind = type(value)
    if value is None:
        return "None"
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
