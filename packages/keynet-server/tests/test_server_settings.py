"""What the server reads, and what it makes of nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from keynet_core import Secret, SettingsInvalid, read_settings
from keynet_server import ServerSettings
from keynet_server._pages import Links
from keynet_server._serve import alone_on, build_services


def test_everything_has_a_default_below_the_home():
    settings = read_settings(ServerSettings, {"KEYNET_HOME": "/srv/keynet"})
    assert settings.store_url == "file:///srv/keynet/store"
    assert settings.journal_url == "sqlite:////srv/keynet/keynet.db"
    assert settings.serving_root == Path("/srv/keynet/serving")


def test_a_store_comes_before_a_bucket_and_a_bucket_before_the_home():
    assert read_settings(ServerSettings, {"AWS_BUCKET_NAME": "models"}).store_url == "s3://models"
    both = {"AWS_BUCKET_NAME": "models", "KEYNET_STORE": "/srv/store"}
    assert read_settings(ServerSettings, both).store_url == "/srv/store"


def test_another_database_is_taken_as_it_is():
    url = "postgresql+psycopg://keynet@db/keynet"
    assert read_settings(ServerSettings, {"KEYNET_DATABASE_URL": url}).journal_url == url


def test_the_password_of_the_database_is_not_shown():
    settings = read_settings(ServerSettings, {"KEYNET_DATABASE_URL": "postgresql://keynet:password@db/keynet"})
    assert "password" not in f"{settings!r} {settings}"


def test_a_second_server_on_a_home_ends_and_leaves_the_first_its_work(tmp_path):
    building = tmp_path / "serving" / "staging" / "times-1"
    building.mkdir(parents=True)
    script = "import runpy, sys; from keynet_server import _serve; _serve._ENDING_S = 0.2;"
    script += "sys.argv = ['x', '127.0.0.1', '0']; runpy.run_module('keynet_server')"
    environ = {name: text for name, text in os.environ.items() if not name.startswith(("KEYNET", "TRITON", "AWS"))}
    environ |= {"KEYNET_HOME": str(tmp_path), "KEYNET_TOKEN": "t", "TRITON_URL": "http://127.0.0.1:9"}
    with alone_on(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 5
    assert f"error: another keynet server runs on {tmp_path}" in done.stderr
    assert building.is_dir()


@pytest.mark.parametrize("url", ["grpc://triton:8001", "file:///models", "triton:8000"])
def test_only_http_can_control_a_model_server(url):
    with pytest.raises(SettingsInvalid, match=r"TRITON_URL.*HTTP control API"):
        read_settings(ServerSettings, {"TRITON_URL": url})


def test_a_server_without_a_model_server_says_how_to_name_one(tmp_path):
    settings = read_settings(ServerSettings, {"KEYNET_HOME": str(tmp_path)})
    with pytest.raises(SettingsInvalid) as raised:
        build_services(settings, Secret("t"), Links())
    assert "TRITON_URL" in raised.value.hint


def test_the_services_stand_on_one_home(tmp_path):
    environ = {"KEYNET_HOME": str(tmp_path / "home"), "TRITON_URL": "http://127.0.0.1:9"}
    services = build_services(read_settings(ServerSettings, environ), Secret("t"), Links())
    assert services.deployer.repair_links() == []
    assert not services.deployer.is_engine_live()
    assert (tmp_path / "home" / "serving" / "models").is_dir()
    assert (tmp_path / "home" / "keynet.db").stat().st_size > 0
    assert "'t'" not in repr(services)
