"""What is public is in the reference: errors, settings, commands, events, words."""

import dataclasses
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from collections import Counter

import click
import jsonschema_rs
import pytest

import keynet_core
from keynet_core import KeynetError, ModelPublished, describe_settings
from keynet_server._rollback import RollbackRequested
from keynet_server._unload import UnloadRequested

PACKAGES = ["keynet_core", "keynet_train", "keynet_serving", "keynet_server", "keynet_inference"]
COMMANDS = {
    "keynet": "keynet_server._cli",
    "keynet-train": "keynet_train._cli",
    "keynet-inference": "keynet_inference._cli",
    "keynet-serving": "keynet_serving._cli",
}
DIGEST = "sha256:" + "ab" * 32


def defined_in(module_name, predicate):
    module = importlib.import_module(module_name)
    found = [each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == module_name]
    return [each for each in found if predicate(each)]


def errors(package):
    return defined_in(f"{package}._errors", lambda each: issubclass(each, KeynetError))


def settings():
    for package in PACKAGES:
        if importlib.util.find_spec(f"{package}._settings"):
            yield from defined_in(f"{package}._settings", lambda each: each.__name__.endswith("Settings"))


def test_generated_pages_are_as_the_code_is(root):
    command = [sys.executable, "tools/reference.py", "--check"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun: make reference"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_error_is_documented(read_page, package):
    text = read_page("docs/reference/errors.md").text
    known = errors(package)
    assert known
    assert [each.__name__ for each in known if f"| `{each.code}` | `{each.__name__}` |" not in text] == []


def test_every_error_has_a_code_of_its_own():
    codes = Counter(each.code for package in PACKAGES for each in errors(package))
    assert [code for code, count in codes.items() if count > 1] == []


def test_every_error_says_when_it_is_raised():
    mute = [each for package in PACKAGES for each in errors(package) if not each.__dict__.get("__doc__")]
    assert mute == []


def test_every_setting_is_documented(read_page):
    text = read_page("docs/reference/settings.md").text
    described = [row for kind in settings() for row in describe_settings(kind)]
    assert len(described) > 10
    assert [variable for variable, _, doc in described if f"| `{variable}` | {doc} |" not in text] == []


def test_settings_are_declared_only_where_the_reference_looks(root):
    elsewhere = [
        path.relative_to(root).as_posix()
        for path in root.glob("packages/*/src/**/*.py")
        if path.name != "_settings.py" and re.search(r"= setting\(", path.read_text())
    ]
    assert elsewhere == []


def commands(path, command):
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            yield from commands(f"{path} {name}", command.get_command(context, name))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(read_page, name):
    module = importlib.import_module(COMMANDS[name])
    found = [each for each in vars(module).values() if isinstance(each, click.Command)]
    outermost = next((each for each in found if isinstance(each, click.Group)), found[0])
    text = read_page("docs/reference/cli.md").text
    missing = []
    for path, command in commands(name, outermost):
        section = text.partition(f"Usage: {path} ")[2].partition("```")[0]
        options = [each.opts[0] for each in command.params if isinstance(each, click.Option) and not each.hidden]
        missing += [f"{path} {option}" for option in ["", *options] if not section or option not in section]
    assert missing == []


def event_types():
    return [each for each in vars(keynet_core).values() if inspect.isclass(each) and hasattr(each, "TYPE")]


@pytest.mark.parametrize("kind", event_types())
def test_every_event_type_is_documented_and_has_a_schema(root, read_page, kind):
    assert f"## {kind.TYPE}" in read_page("docs/reference/events.md").text
    assert (root / f"docs/reference/schemas/{kind.TYPE}.json").is_file()


def test_the_members_of_a_rollback_are_documented_and_it_is_named_as_it_is_built(read_page):
    section = section_of(read_page, RollbackRequested)
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [
        each.name for each in dataclasses.fields(RollbackRequested)
    ]
    event = RollbackRequested(
        model="digits", digest=DIGEST, model_version=None, run_id=None, restores=1, who="mina", why=None
    ).to_event()
    assert event.id.startswith("rollback/digits/")
    assert f"`{event.source}`" in section


def test_the_members_of_a_request_to_unload_are_documented_and_it_is_named_as_it_is_built(read_page):
    section = section_of(read_page, UnloadRequested)
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [
        each.name for each in dataclasses.fields(UnloadRequested)
    ]
    event = UnloadRequested(model="digits", who="mina", why=None).to_event()
    assert event.id.startswith("unload/digits/")
    assert f"`{event.source}`" in section


def section_of(read_page, kind):
    return read_page("docs/reference/events.md").text.partition(f"## {kind.TYPE}\n")[2].partition("\n## ")[0]


def published(**changes):
    told = {"model": "digits", "digest": DIGEST, "store": "file:///srv/store", "model_version": "3", "run_id": "0" * 32}
    return json.loads(ModelPublished(**(told | changes)).to_event().to_json())


@pytest.fixture(scope="module")
def schema(root):
    return jsonschema_rs.validator_for(
        json.loads((root / f"docs/reference/schemas/{ModelPublished.TYPE}.json").read_text())
    )


@pytest.mark.parametrize("changes", [{}, {"model_version": None}, {"run_id": None}, {"experiment": "team_digits"}])
def test_a_real_event_fits_its_schema(schema, changes):
    schema.validate(published(**changes))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda event: event.pop("id"),
        lambda event: event.update(specversion="0.3"),
        lambda event: event.update(type="io.keynet.model.retired.v1"),
        lambda event: event["data"].update(digest="sha256:short"),
        lambda event: event["data"].update(model="../up"),
        lambda event: event["data"].pop("store"),
    ],
)
def test_a_spoiled_event_does_not_fit_the_schema(schema, spoil):
    event = published()
    spoil(event)
    assert not schema.is_valid(event)


def test_the_example_event_of_the_page_fits_the_schema_and_is_read(schema, read_page):
    examples = [body for language, body in read_page("docs/reference/events.md").blocks if language == "json"]
    assert examples
    for text in examples:
        schema.validate(json.loads(text))
        ModelPublished.from_event(keynet_core.Event.from_json(text.encode()))


def test_every_public_name_of_train_and_inference_is_documented(read_page):
    text = read_page("docs/reference/python.md").text
    for package in ("keynet_train", "keynet_inference"):
        module = importlib.import_module(package)
        public = [name for name in module.__all__ if not is_error(getattr(module, name))]
        assert public
        assert [name for name in public if f"### {name}\n" not in text] == []


def is_error(thing):
    return inspect.isclass(thing) and issubclass(thing, KeynetError)
