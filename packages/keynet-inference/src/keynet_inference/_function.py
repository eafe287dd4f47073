"""keynet_function: refuse at decoration what could not be called later, and give each call its own UserInput."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NewType, Protocol, TypeVar, cast

from keynet_core import NameRefused
from keynet_inference._errors import ArgsRefused, FunctionExited, FunctionRefused
from keynet_inference._result import check_result
from keynet_inference._user_input import user_input

if TYPE_CHECKING:
    from collections.abc import Callable

FunctionName = NewType("FunctionName", str)

R = TypeVar("R", bound=Mapping[str, Any])
R_co = TypeVar("R_co", bound=Mapping[str, Any], covariant=True)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_POSITIONAL = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionInfo:
    """What the decorator was told."""

    name: FunctionName
    description: str | None
    base_image: str | None


class KeynetFunction(Protocol[R_co]):
    """A decorated function: called as before, and `.keynet` says what it is."""

    keynet: FunctionInfo
    __name__: str

    def __call__(self, args: dict[str, Any]) -> R_co: ...


def keynet_function(
    name: str, description: str | None = None, base_image: str | None = None
) -> Callable[[Callable[[dict[str, Any]], R]], KeynetFunction[R]]:
    """
    Make a function the entry point of an inference.

    The function takes one dict named `args` and returns a dict that JSON can carry. While it runs, `UserInput.get`
    reads `args`.

    Args:
        name: What the function is called where it is deployed.
        description: One sentence for those who find it there.
        base_image: The image its own is built on.

    Raises:
        NameRefused: A deployed function cannot have this name.
        FunctionRefused: What is decorated has other parameters, or is asynchronous.

    """
    info = FunctionInfo(name=to_function_name(name), description=description, base_image=base_image)

    def decorate(function: Callable[[dict[str, Any]], R]) -> KeynetFunction[R]:
        _refuse_signature(info.name, function)

        @functools.wraps(function)
        def call(args: dict[str, Any]) -> R:
            return _call(info.name, function, args)

        called = cast("KeynetFunction[R]", call)
        called.keynet = info
        return called

    return decorate


def to_function_name(text: object) -> FunctionName:
    """
    Return `text` as the name of a function.

    Raises:
        NameRefused: It is not text, or has a character that an image's or an action's name cannot carry.

    """
    if isinstance(text, str) and _NAME.fullmatch(text):
        return FunctionName(text)
    if callable(text):
        raise NameRefused("keynet_function needs a name", hint='write @keynet_function("my-function")')
    raise NameRefused(
        f"a function cannot be called {text!r}: a name has 1 to 128 of the letters A-Z a-z, digits, '.', '_' and '-', "
        "beginning with a letter or a digit",
        hint="choose another name, for example 'image-detection'; a title in any language fits into description",
    )


def _refuse_signature(name: FunctionName, function: Callable[..., object]) -> None:
    if not inspect.isroutine(function):
        raise FunctionRefused(f"keynet_function({name!r}) decorates a function, not {function!r}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise FunctionRefused(
            f"function {name!r} is asynchronous: OpenWhisk calls it and would find a coroutine where a result belongs",
            hint="write def main(args): return asyncio.run(answer(args))",
        )
    parameters = list(inspect.signature(function).parameters.values())
    if [each.name for each in parameters] != ["args"] or parameters[0].kind not in _POSITIONAL:
        told = ", ".join(map(str, parameters)) or "no parameter"
        raise FunctionRefused(
            f"function {name!r} takes exactly one parameter, named args; this one takes {told}",
            hint='write def main(args: dict), and read parameters with UserInput.get("name")',
        )


def _call(name: FunctionName, function: Callable[[dict[str, Any]], R], args: dict[str, Any]) -> R:
    if not isinstance(args, dict):
        raise ArgsRefused(f"function {name!r} is called with a dict, not {type(args).__qualname__}")
    with user_input(args):
        try:
            result = function(args)
        except SystemExit as error:
            raise FunctionExited(
                f"function {name!r} called sys.exit({error.code!r}), which would end the process that serves it",
                hint="return a result, or raise an error",
            ) from error
    check_result(name, result)
    return result
