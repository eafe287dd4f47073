"""Which model server is asked: argument, environment, what runs on this home, the default."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING

import pytest

from keynet_core import (
    CoreSettings,
    Endpoints,
    Secret,
    SettingsInvalid,
    locked,
    up_lock,
    write_endpoints,
)
from keynet_inference import Retry, StorageSettings, TritonPlugin, TritonSettings
from keynet_inference._settings import read_s3_address

if TYPE_CHECKING:
    from pathlib import Path

RUNNING = Endpoints(
    server="http://127.0.0.1:1",
    tracking="http://127.0.0.1:2",
    serving="http://127.0.0.1:3",
    serving_grpc="grpc://127.0.0.1:4",
    pid=os.getpid(),
    started_at="2026-11-20T00:00:00Z",
)


def test_without_anything_the_usual_port_of_this_machine_is_asked() -> None:
    assert TritonPlugin().url == "http://127.0.0.1:8000"


def test_what_keynet_up_runs_on_this_home_comes_before_the_default(home: Path) -> None:
    write_endpoints(home, RUNNING, Secret("t"))

    assert TritonPlugin().url == "http://127.0.0.1:8000"
    with locked(up_lock(home), timeout_s=1):
        assert TritonPlugin().url == "http://127.0.0.1:3"


def test_the_environment_comes_before_what_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_endpoints(home, RUNNING, Secret("t"))
    monkeypatch.setenv("TRITON_URL", "grpc://triton:8001")
    monkeypatch.setenv("MODEL_NAME", "det")

    with locked(up_lock(home), timeout_s=1):
        plugin = TritonPlugin()

    assert (plugin.url, plugin.model_name) == ("grpc://triton:8001", "det")


def test_an_argument_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_URL", "grpc://triton:8001")
    monkeypatch.setenv("MODEL_NAME", "det")

    plugin = TritonPlugin("https://other", "seg", 3)

    assert (plugin.url, plugin.model_name, plugin.model_version) == ("https://other", "seg", "3")


def test_a_blank_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_URL", " ")

    assert TritonPlugin().url == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("triton", "http://triton"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
        ("http://host/base/", "http://host/base"),
        ("grpcs://host:8001", "grpcs://host:8001"),
        ("file:///srv/models", "file:///srv/models"),
    ],
)
def test_addresses_are_read(text: str, url: str) -> None:
    assert TritonPlugin(text).url == url


@pytest.mark.parametrize(
    "text",
    ["ftp://host", "http://", "http://host:port", "http://host:99999", "http://host:0", "file://host/path", "file:///"],
)
def test_addresses_that_lead_nowhere_are_refused(text: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"names no|is no address"):
        TritonPlugin(text)


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(SettingsInvalid, match="carries a password") as caught:
        TritonPlugin("http://user:hunter2@host")

    assert "hunter2" not in str(caught.value)


def test_a_variable_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_URL", "ftp://host")

    with pytest.raises(SettingsInvalid, match="TRITON_URL cannot be used"):
        TritonPlugin()


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"connect_timeout_s": -1}])
def test_a_time_out_that_is_no_time_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(SettingsInvalid, match="time-out"):
        TritonPlugin(**options)


@pytest.mark.parametrize("options", [{"attempts": 0}, {"first_delay_s": -1}, {"max_delay_s": -1}])
def test_a_retry_that_cannot_be_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(SettingsInvalid, match="at least one attempt"):
        Retry(**options)


def test_retry_waits_grow_and_stay_within_their_bounds() -> None:
    retry = Retry(attempts=6, first_delay_s=0.1, max_delay_s=0.5)

    for _ in range(50):
        delays = list(retry.delays())
        assert len(delays) == 5
        for delay, due in zip(delays, [0.1, 0.2, 0.4, 0.5, 0.5], strict=True):
            assert due / 2 <= delay <= due


def test_the_variables_that_are_read_are_these() -> None:
    read = {each.metadata["env"] for kind in (TritonSettings, StorageSettings) for each in fields(kind)}

    assert read - {each.metadata["env"] for each in fields(CoreSettings)} == {
        "TRITON_URL",
        "MODEL_NAME",
        "AWS_BUCKET_NAME",
        "KEYNET_STORAGE_READABLE",
        "AWS_CA_BUNDLE",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL",
    }


def test_where_s3_is_follows_mlflow_then_boto3() -> None:
    environ = {
        "AWS_ENDPOINT_URL": "http://c",
        "AWS_ENDPOINT_URL_S3": "http://b",
        "MLFLOW_S3_ENDPOINT_URL": "http://a",
    }
    found = []
    while environ:
        found.append(read_s3_address(environ).url)
        environ.popitem()

    assert found == ["http://a", "http://b", "http://c"]
    assert read_s3_address({}) == (None, True, None)
    assert read_s3_address({"MLFLOW_S3_IGNORE_TLS": "true", "AWS_CA_BUNDLE": "/ca.pem"}) == (None, False, "/ca.pem")
