"""Settings: what comes before what, and refusals that name the variable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from keynet_core import CoreSettings, Secret, SettingsInvalid, describe_settings, read_settings, setting, to_http_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    port: int = setting("EXAMPLE_PORT", "Where to listen.", parse=int, default=8000)
    name: str | None = setting("EXAMPLE_NAME", "What to call it.")


def test_an_argument_comes_before_the_environment_before_the_default():
    environ = {"EXAMPLE_PORT": "1", "EXAMPLE_NAME": "env"}
    assert read_settings(Example, {}) == Example(port=8000, name=None)
    assert read_settings(Example, environ) == Example(port=1, name="env")
    assert read_settings(Example, environ, port=2, name=None) == Example(port=2, name="env")


@pytest.mark.parametrize("blank", ["", " ", "\n", "\t "])
def test_a_blank_variable_counts_as_not_set(blank):
    assert read_settings(Example, {"EXAMPLE_PORT": blank, "EXAMPLE_NAME": blank}) == Example()


def test_space_around_a_value_is_no_part_of_it():
    assert read_settings(Example, {"EXAMPLE_PORT": " 7 ", "EXAMPLE_NAME": "a b\n"}) == Example(port=7, name="a b")


def test_a_value_that_cannot_be_read_names_its_variable():
    with pytest.raises(SettingsInvalid, match=r"EXAMPLE_PORT cannot be used: .*'eighty'"):
        read_settings(Example, {"EXAMPLE_PORT": "eighty"})


def test_an_argument_wins_over_a_variable_that_cannot_be_read():
    assert read_settings(Example, {"EXAMPLE_PORT": "eighty"}, port=1).port == 1


def test_the_reference_has_variable_default_and_sentence():
    assert describe_settings(Example) == [
        ("EXAMPLE_PORT", "8000", "Where to listen."),
        ("EXAMPLE_NAME", "", "What to call it."),
    ]
    assert [name for name, _, _ in describe_settings(CoreSettings)] == [
        "KEYNET_HOME",
        "KEYNET_URL",
        "KEYNET_TOKEN",
        "RABBIT_ENDPOINT_URL",
        "RABBIT_MODEL_UPLOAD_TOPIC",
    ]


def test_core_settings_are_read_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    told = read_settings(
        CoreSettings, {"KEYNET_HOME": "~/k", "KEYNET_URL": "https://h:1/p/", "KEYNET_TOKEN": "hunter2"}
    )
    assert told == CoreSettings(home=Path("/home/somebody/k"), url="https://h:1/p", token=Secret("hunter2"))
    assert "hunter2" not in repr(told)
    assert read_settings(CoreSettings, {"KEYNET_HOME": "k"}).home == tmp_path / "k"


def test_state_lives_in_the_working_directory_unless_a_home_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert CoreSettings().state_directory == tmp_path / ".keynet"
    assert CoreSettings(home=tmp_path).state_directory == tmp_path


def test_the_home_of_nobody_is_refused():
    with pytest.raises(SettingsInvalid, match="KEYNET_HOME cannot be used"):
        read_settings(CoreSettings, {"KEYNET_HOME": "~no-such-user/k"})


@pytest.mark.parametrize("url", ["http://h", "http://h:8000", "https://h/p", "http://[::1]:80", "HTTP://h"])
def test_an_address_is_kept_without_the_slash_at_its_end(url):
    assert to_http_url(url) == to_http_url(f"{url}/") == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h",
        "h:80",
        "ftp://h",
        "http://",
        "http://h:x",
        "http://h:99999",
        "http://h:0",
        "http://[",
        "http://a b",
        "http://a\nb",
    ],
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(SettingsInvalid, match="is no http:// or https:// address"):
        to_http_url(url)


@pytest.mark.parametrize("url", ["http://u:hunter2@h", "http://hunter2@h", "ftp://u:hunter2@h", "u:hunter2@h"])
def test_an_address_with_a_password_is_refused_and_not_shown(url):
    with pytest.raises(SettingsInvalid, match="token") as caught:
        read_settings(CoreSettings, {"KEYNET_URL": url})
    assert "hunter2" not in str(caught.value)
