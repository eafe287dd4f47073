"""
Write the reference pages that follow from the code: errors, settings, commands, the Python interface.

    python tools/reference.py            write docs/reference/*.md
    python tools/reference.py --check    write nothing; name the pages that are stale, and exit with 1
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keynet_core import KeynetError, describe_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
PACKAGES = ("keynet_core", "keynet_train", "keynet_serving", "keynet_server", "keynet_inference")
COMMANDS = {
    "keynet": ("keynet_server._cli", "The operator's command, from keynet-server."),
    "keynet-train": ("keynet_train._cli", "The command of those who train, from keynet-train."),
    "keynet-inference": ("keynet_inference._cli", "The function author's command, from keynet-inference."),
    "keynet-serving": ("keynet_serving._cli", "The model server alone, from keynet-serving."),
}
PUBLIC = ("keynet_train", "keynet_inference")
WIDTH = 100
NOTICE = "<!-- Written by tools/reference.py from the code; `make reference` writes it again. -->"


def errors_page() -> str:
    """Return the page of every error: its code, its class, when it is raised."""
    parts = [
        "# Errors",
        NOTICE,
        (
            "Every error of keynet is a `keynet_core.KeynetError` with a `code` that stays, a message that names the "
            "object, and often a `hint`: the next thing to do. Commands print all three; over HTTP they are "
            "the members `code`, `detail` and `hint` of a problem document (RFC 9457)."
        ),
    ]
    for package in PACKAGES:
        rows = [f"| `{each.code}` | `{each.__name__}` | {_first_paragraph(each)} |" for each in errors_of(package)]
        if rows:
            parts += [f"## {package}", "\n".join(["| code | class | meaning |", "|---|---|---|", *rows])]
    return _page(parts)


def settings_page() -> str:
    """Return the page of every environment variable, by the part that reads it."""
    parts = [
        "# Settings",
        NOTICE,
        (
            "An argument comes before the environment, the environment before the default. Nothing is read at import. "
            "A variable that is set but blank counts as not set."
        ),
    ]
    for package in PACKAGES:
        for kind in settings_of(package):
            notes = _default_notes(kind)
            rows = [
                f"| `{variable}` | {doc} | {notes.get(variable) or _code(default) or 'none'} |"
                for variable, default, doc in describe_settings(kind)
            ]
            table = "\n".join(["| variable | is | default |", "|---|---|---|", *rows])
            parts += [f"## {kind.__name__}", f"`{package}`. {_first_paragraph(kind)}", table]
    return _page(parts)


def commands_page() -> str:
    """Return the page of every command: what `--help` prints."""
    parts = [
        "# Commands",
        NOTICE,
        (
            "Data goes to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, "
            "2 wrong usage, 3 forbidden, 4 not found, 5 conflict, 6 unavailable or too slow, 130 interrupted."
        ),
    ]
    for name, (module, about) in COMMANDS.items():
        parts += [f"## {name}", about]
        for context in walk(name, command_of(module)):
            if context.command_path != name:
                parts.append(f"### {context.command_path}")
            parts.append(f"```text\n{context.get_help()}\n```")
    return _page(parts)


def python_page() -> str:
    """Return the page of every public name that a user imports, but errors, which have a page of their own."""
    parts = ["# Python interface", NOTICE, "Errors are on [their own page](errors.md)."]
    for package in PUBLIC:
        module = importlib.import_module(package)
        parts += [f"## {package}", inspect.getdoc(module) or ""]
        for name in sorted(module.__all__, key=str.casefold):
            if not is_error(thing := getattr(module, name)):
                parts += [f"### {name}", *_described(name, thing)]
    return _page(parts)


def is_error(thing: object) -> bool:
    """Whether a public name is an error."""
    return inspect.isclass(thing) and issubclass(thing, KeynetError)


def errors_of(package: str) -> list[type[KeynetError]]:
    """Return the error classes a package defines, in the order of its file."""
    module = _optional(f"{package}._errors")
    found = [each for each in vars(module).values() if inspect.isclass(each)] if module else []
    return [each for each in found if issubclass(each, KeynetError) and each.__module__ == f"{package}._errors"]


def settings_of(package: str) -> list[type[Any]]:
    """Return the settings classes a package defines, in the order of its file."""
    module = _optional(f"{package}._settings")
    found = [each for each in vars(module).values() if inspect.isclass(each)] if module else []
    return [each for each in found if each.__name__.endswith("Settings") and each.__module__ == f"{package}._settings"]


def command_of(module: str) -> click.Command:
    """Return the outermost command of a module."""
    commands = [each for each in vars(importlib.import_module(module)).values() if isinstance(each, click.Command)]
    groups = [each for each in commands if isinstance(each, click.Group)]
    return (groups or commands)[0]


def walk(name: str, command: click.Command, parent: click.Context | None = None) -> Iterator[click.Context]:
    """Yield the context of a command and of all below it, as a call would make it."""
    width: dict[str, Any] = {"terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, parent, info_name=name, **{**command.context_settings, **width})
    yield context
    for each in command.list_commands(context) if isinstance(command, click.Group) else ():
        found = command.get_command(context, each)  # type: ignore[attr-defined]  # a group, see above
        if found is not None and not found.hidden:
            yield from walk(each, found, context)


def _described(name: str, thing: Any) -> Iterator[str]:
    """Yield the parts of a public name: how it is called, what it says of itself, its methods."""
    if callable(thing) and not (inspect.isclass(thing) and issubclass(thing, Warning)):
        yield f"```python\n{_stub(name, thing)}\n```"
    yield _as_markdown(inspect.getdoc(thing) or "")
    if inspect.isclass(thing) and hasattr(thing, "__dataclass_fields__"):
        yield "\n".join(f"- `{field}`: {text}" for field, text in _field_notes(thing).items())
    for method, function in vars(thing).items() if inspect.isclass(thing) else ():
        if inspect.isfunction(plain := inspect.unwrap(getattr(function, "__func__", function))) and method[0] != "_":
            yield f"#### {name}.{method}"
            yield f"```python\n{_stub(method, plain)}\n```"
            yield _as_markdown(inspect.getdoc(plain) or "")


def _stub(name: str, thing: Any) -> str:
    """Return a stub of a function, or of a class and how it is constructed."""
    signature = inspect.signature(thing)
    if not inspect.isclass(thing):
        word = "async def" if inspect.iscoroutinefunction(thing) else "def"
        return _definition(f"{word} {name}", list(_parameters(signature)), signature.return_annotation)
    construct = _definition("def __init__", ["self", *_parameters(signature)], "None")
    return f"class {name}:\n{textwrap.indent(construct, '    ')}"


def _definition(head: str, words: list[str], returns: object) -> str:
    """Return a definition in one line, or with one parameter to a line when that is too long."""
    end = "" if returns is inspect.Signature.empty else f" -> {_annotation(returns)}"
    line = f"{head}({', '.join(words)}){end}: ..."
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{head}(", *(f"    {each}," for each in words), f"){end}: ..."])


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    kind = None
    for each in signature.parameters.values():
        if each.kind is each.KEYWORD_ONLY and kind not in {each.KEYWORD_ONLY, each.VAR_POSITIONAL}:
            yield "*"
        stars = "*" if each.kind is each.VAR_POSITIONAL else "**" if each.kind is each.VAR_KEYWORD else ""
        annotation = "" if each.annotation is each.empty else f": {_annotation(each.annotation)}"
        equals = " = " if annotation else "="
        yield f"{stars}{each.name}{annotation}" + ("" if each.default is each.empty else f"{equals}{each.default!r}")
        kind = each.kind


def _annotation(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _as_markdown(doc: str) -> str:
    """Return a docstring with its Args and Raises as lists."""
    lines: list[str] = []
    within = False
    for line in doc.splitlines():
        if line in {"Args:", "Raises:", "Returns:", "Yields:"}:
            lines += [f"**{line.removesuffix(':')}**", ""]
            within = True
        elif within and line.startswith("    ") and not line.startswith("     "):
            head, colon, rest = line.strip().partition(": ")
            lines.append(f"- `{head}`: {rest}" if colon else f"- {line.strip()}")
        elif within and line.strip():
            lines.append(f"  {line.strip()}")
        else:
            within = within and not line
            lines.append(line)
    return "\n".join(lines).strip()


def _first_paragraph(thing: object) -> str:
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def _default_notes(kind: type[Any]) -> dict[str, str]:
    """Return, per variable, what the string under its field says after "Default:"."""
    fields = kind.__dataclass_fields__
    notes = {name: text.removeprefix("Default: ").rstrip(".") for name, text in _field_notes(kind).items()}
    return {fields[name].metadata["env"]: text for name, text in notes.items()}


def _field_notes(kind: type[Any]) -> dict[str, str]:
    """Return the string under each field of a dataclass, and of those it extends."""
    base = kind.__base__
    notes = _field_notes(base) if base is not None and hasattr(base, "__dataclass_fields__") else {}
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, note in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(note, ast.Expr) and isinstance(note.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            notes[field.target.id] = " ".join(str(note.value.value).split())
    return notes


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _optional(name: str) -> ModuleType | None:
    """Return a module, or None when the package has none of that name; an import that fails inside it is told."""
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _page(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors_page,
    "settings.md": settings_page,
    "cli.md": commands_page,
    "python.md": python_page,
}


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check compare them; return the exit code."""
    stale = []
    for name, write in PAGES.items():
        path, text = REFERENCE / name, write()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            path.write_text(text)
    if stale:
        print(("stale: " if "--check" in arguments else "written: ") + ", ".join(stale))
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
