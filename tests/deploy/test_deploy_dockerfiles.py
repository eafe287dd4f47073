"""The Dockerfiles, as text: what a linter says of them, and what we ask of them."""

import re
import subprocess
from fnmatch import fnmatch

import pytest

from deploy.files import DEPLOY, ROOT, instructions, tool

NAMES = ["Dockerfile.server", "Dockerfile.function", "Dockerfile.mlflow"]


def stages(name):
    """The instructions of each stage, in order."""
    found = []
    for word, rest in instructions(name):
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest))
    return found


def copied(name):
    """What comes from the checkout."""
    for word, rest in instructions(name):
        if word == "COPY" and "--from" not in rest:
            yield next(each for each in rest.split() if not each.startswith("--"))


@pytest.mark.parametrize("name", NAMES)
def test_hadolint_has_nothing_to_say(name):
    command = [tool("hadolint"), "--no-color", str(DEPLOY / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_the_base_is_one_that_stays_and_can_be_replaced(name):
    assert instructions(name)[0] == ("ARG", "BASE=python:3.11.13-slim-bookworm")
    bases = [rest.split()[0] for word, rest in instructions(name) if word == "FROM"]
    assert bases == ["${BASE}", "${BASE}"]


@pytest.mark.parametrize("name", NAMES)
def test_what_runs_is_not_root_and_holds_nothing_that_builds(name):
    _, last = stages(name)
    assert ("USER", "10001:10001") in last
    words = [word for word, _ in last]
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert "HEALTHCHECK" in words
    run = " ".join(rest for word, rest in last if word == "RUN")
    assert not re.search(r"\b(pip|apt-get|gcc|git)\b", run)
    assert next(rest for word, rest in last if word == "COPY").startswith("--from=build ")


@pytest.mark.parametrize("name", NAMES)
def test_every_install_is_pinned_and_nothing_of_this_machine_is_written_down(name):
    text = " ".join(rest for _, rest in instructions(name))
    installs = re.findall(r"(?:-m pip(?: --python \S+)? )install (?:(?!&&).)*", text)
    assert installs
    assert all("--constraint /src/constraints.txt" in each for each in installs)
    assert not re.search(r"index-url|find-links|trusted-host|PIP_|proxy", text, re.IGNORECASE)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_copied_is_there_and_let_into_the_build(name):
    lines = (DEPLOY / f"{name}.dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines
    for source in copied(name):
        assert (ROOT / source).exists(), source
        assert any(fnmatch(each, f"{source}*") for each in allowed), source
    for each in allowed:
        assert (ROOT / each).exists(), each
        assert any(each.startswith(source) for source in copied(name)), each


@pytest.mark.parametrize("name", NAMES)
def test_a_package_is_built_of_all_it_names(name):
    """What a pyproject.toml reads, such as its README, is not left out of the build."""
    ignore = (DEPLOY / f"{name}.dockerignore").read_text()
    for source in copied(name):
        if source.startswith("packages/"):
            assert {f"!{source}/{each}" for each in ("pyproject.toml", "README.md", "src")} <= set(ignore.splitlines())
