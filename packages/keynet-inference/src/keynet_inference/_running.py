"""A file's function, loaded and called once in this process."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING, Any

from keynet_core import KeynetError
from keynet_inference._errors import FunctionExited, FunctionFailed, FunctionFileInvalid

if TYPE_CHECKING:
    from types import ModuleType

    from keynet_inference._inspection import FunctionSource


def run_function(source: FunctionSource, args: dict[str, Any]) -> dict[str, Any]:
    """
    Load a function's file, call the function and return its result.

    Raises:
        FunctionExited: The file or the function called `sys.exit`.
        FunctionFailed: The file or the function raised something of its own.
        KeynetError: The function, or what it called here, was refused.

    """
    try:
        function = getattr(_load(source), source.entry)
        result: dict[str, Any] = function(args)
    except KeynetError:
        raise
    except SystemExit as error:
        raise FunctionExited(
            f"{source.path} called sys.exit({error.code!r}) while it was loaded, before its function was called",
            hint=f"see {_place(error, source)}; put what is for a script below if __name__ == '__main__'",
        ) from error
    except Exception as error:  # the boundary to code that is not ours: it may raise anything
        raise FunctionFailed(
            f"function {source.info.name!r} raised {type(error).__name__}: {error}", hint=f"see {_place(error, source)}"
        ) from error
    return result


def _load(source: FunctionSource) -> ModuleType:
    """Import the file as a module of its own name space, with its directory on the path as Python itself has it."""
    path = source.path.resolve()
    name = f"keynet_function_{path.stem}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FunctionFileInvalid(f"{source.path} cannot be imported", hint="its name has to end in .py")
    module = module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module


def _place(error: BaseException, source: FunctionSource) -> str:
    """Return the last line of the file that the error passed through."""
    line, trace = source.line, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(source.path.resolve()):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{source.path}:{line}"
