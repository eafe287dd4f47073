"""A page of another site cannot use a visitor's browser to reach a model server on loopback."""

from __future__ import annotations

import pytest

from keynet_serving._http_head import read_head
from keynet_serving._http_origin import OriginGuard

UNLOAD = "/v2/repository/models/m/unload"


@pytest.fixture(scope="module")
def engine(tmp_path_factory, models_in, serving):
    repository = tmp_path_factory.mktemp("models")
    models_in(repository).identity("m")
    with serving(repository, "m") as engine:
        yield engine


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8000"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "[bad"},
    ],
    ids=str,
)
def test_a_foreign_page_is_refused_and_the_model_stays(engine, headers):
    status, *_ = engine.request("POST", UNLOAD, b"", {"Content-Type": "text/plain"} | headers)
    assert status == 403
    status, *_ = engine.request("GET", "/v2/models/m/ready")
    assert status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "localhost:8000"},
        {"Host": "[::1]:8000"},
        {"Host": "127.0.0.2"},
        {"Origin": "http://localhost:3000"},
    ],
    ids=str,
)
def test_this_machines_own_programs_are_answered(engine, headers):
    status, *_ = engine.request("GET", "/v2/models/m/ready", b"", headers)
    assert status == 200


def test_a_server_that_others_may_reach_leaves_names_to_what_is_before_it():
    head = read_head(b"GET / HTTP/1.1\r\nHost: models.example\r\nOrigin: https://app.example\r\n\r\n")
    assert OriginGuard(is_local=False).refuse(head) is None
    assert OriginGuard(is_local=True).refuse(head) is not None
