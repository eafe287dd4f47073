"""The passwords of the page that leads to a cluster."""

import stat

import pytest

from deploy.files import DEPLOY, PASSWORD, read_compose, read_variables
from deploy.pages import Shell, blocks

PAGE = "from-laptop-to-cluster.md"


@pytest.mark.parametrize(
    ("number", "example", "made"),
    [
        (0, "deploy/.env.example", "deploy/.env"),
        (3, "deploy/kubernetes/secrets.env.example", "deploy/kubernetes/secrets.env"),
    ],
)
def test_passwords_are_made_for_every_empty_line_and_for_nobody_else_to_read(tmp_path, number, example, made):
    shell = Shell(tmp_path)
    shell.run(blocks(PAGE)[number])
    told, empty = read_variables(tmp_path / made), read_variables(tmp_path / example)
    assert set(told) == set(empty)
    new = {name: value for name, value in told.items() if not empty[name]}
    assert {name for name in told if PASSWORD.search(name)} <= set(new)
    assert len(set(new.values())) == len(new), "no two are the same"
    assert all(len(value) == 40 and value.isalnum() for value in new.values())
    assert {name: told[name] for name in told if name not in new} == {
        name: each for name, each in empty.items() if each
    }
    assert stat.S_IMODE((tmp_path / made).stat().st_mode) == 0o600


def test_compose_takes_the_passwords_that_the_page_makes(tmp_path):
    shell = Shell(tmp_path)
    shell.run(blocks(PAGE)[0])
    told = read_variables(tmp_path / "deploy/.env")
    server = read_compose(told)["services"]["keynet"]["environment"]
    assert told["KEYNET_DATABASE_PASSWORD"] in server["KEYNET_DATABASE_URL"]
    assert server["KEYNET_TOKEN"] == told["KEYNET_TOKEN"]


def test_git_ignores_what_holds_passwords():
    assert {".env", "secrets.env"} <= set((DEPLOY / ".gitignore").read_text().splitlines())
