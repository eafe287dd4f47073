"""What runs on a home: believed only while its lock is held, and a token for that server alone."""

from __future__ import annotations

import json
import stat

import pytest

from keynet_core import (
    CoreSettings,
    Endpoints,
    HttpPublisher,
    Nowhere,
    Secret,
    locked,
    read_endpoints,
    to_publisher,
    up_lock,
    write_endpoints,
)

RUNNING = Endpoints(
    server="http://127.0.0.1:8100",
    tracking="http://127.0.0.1:5000",
    serving="http://127.0.0.1:8000",
    serving_grpc="grpc://127.0.0.1:8001",
    pid=1,
    started_at="2026-11-20T00:00:00Z",
)

UP = """
import sys
from pathlib import Path
from keynet_core import locked, up_lock
with locked(up_lock(Path(sys.argv[1])), timeout_s=5):
    print("up", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path):
    write_endpoints(tmp_path, RUNNING, Secret("hunter2"))
    return tmp_path


@pytest.fixture
def up(start, home):
    process = start(UP, home)
    assert process.stdout.readline() == "up\n"
    return process


def test_what_runs_is_read_by_other_processes(home, up):
    assert read_endpoints(home) == RUNNING


def test_what_nobody_runs_any_more_is_not_believed(home):
    assert read_endpoints(home) is None


def test_what_a_killed_process_left_is_not_believed(home, up, eventually):
    up.kill()
    eventually(lambda: read_endpoints(home) is None)
    assert to_publisher(CoreSettings(home=home)) == Nowhere()


def test_a_home_where_nothing_ever_ran_is_not_touched(tmp_path):
    assert read_endpoints(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{", '{"server": "http://h"}'])
def test_addresses_that_are_not_whole_are_not_believed(home, up, text):
    (home / "run" / "endpoints.json").write_text(text)
    assert read_endpoints(home) is None


def test_addresses_of_a_later_version_are_read_without_what_it_added(home, up):
    path = home / "run" / "endpoints.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"more": 1}))
    assert read_endpoints(home) == RUNNING


def test_looking_does_not_take_the_lock(home):
    assert read_endpoints(home) is None
    with locked(up_lock(home), timeout_s=0.0):
        pass
    with locked(up_lock(home), timeout_s=0.0):
        assert read_endpoints(home) == RUNNING


def test_addresses_and_token_are_the_owners_alone(home):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (home / "run").iterdir()}
    assert modes == {"endpoints.json": 0o600, "token": 0o600}
    assert stat.S_IMODE((home / "run").stat().st_mode) == 0o700


def test_events_go_to_what_runs_with_its_token(home, up):
    assert to_publisher(CoreSettings(home=home)) == HttpPublisher(url=RUNNING.server, token=Secret("hunter2"))


def test_the_same_server_named_by_hand_gets_its_token(home, up):
    assert to_publisher(CoreSettings(home=home, url=RUNNING.server)).token == Secret("hunter2")


def test_another_server_never_gets_the_token_of_this_one(home, up):
    assert to_publisher(CoreSettings(home=home, url="http://elsewhere")) == HttpPublisher(url="http://elsewhere")
    assert to_publisher(CoreSettings(home=home, url=f"{RUNNING.server}0")).token is None


def test_a_token_that_is_named_comes_first(home, up):
    assert to_publisher(CoreSettings(home=home, token=Secret("mine"))).token == Secret("mine")


@pytest.mark.parametrize("text", [None, "", "\n"])
def test_without_a_token_none_is_sent(home, up, text):
    path = home / "run" / "token"
    path.unlink() if text is None else path.write_text(text)
    assert to_publisher(CoreSettings(home=home)).token is None
