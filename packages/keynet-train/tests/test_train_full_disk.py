"""A disk without room, really full: of the store, and of the home."""

from __future__ import annotations

import os
from pathlib import Path

import mlflow
import pytest
import torch
from torch import nn

from keynet_core import LocalStore, Outbox, read_manifest
from keynet_train import HomeFull, PublicationWaiting, log_onnx_model, trace_pytorch


def fill(disk: Path, *, leaving_bytes: int) -> Path:
    """Fill a disk up to some bytes, and return the file that does."""
    ballast, about = disk / "ballast", os.statvfs(disk)
    ballast.write_bytes(bytes(about.f_bavail * about.f_frsize - leaving_bytes))
    return ballast


def large() -> nn.Module:
    return nn.Sequential(*(nn.Linear(400, 400) for _ in range(3)))


def test_a_full_store_leaves_the_package_waiting_and_a_later_run_delivers_it(home, small_disk, monkeypatch):
    monkeypatch.setenv("KEYNET_STORE", small_disk.as_uri())
    ballast = fill(small_disk, leaving_bytes=100_000)
    with pytest.raises(PublicationWaiting, match="no room left") as raised:
        trace_pytorch("large", torch.rand(1, 400), enable_autolog=False)(large).trace()
    result = raised.value.result
    assert result.publication.state == "waiting"
    assert not list(small_disk.rglob("manifest.json"))
    ballast.unlink()
    trace_pytorch("small", torch.rand(1, 4), enable_autolog=False)(lambda: nn.Linear(4, 2)).trace()
    read_manifest(LocalStore(small_disk), result.package.name, result.package.digest)
    assert Outbox(home / "outbox").entries()[0].last_error()["code"] == "event.undelivered"


@pytest.fixture
def small_home(small_disk, mlflow_database, clean_environment, monkeypatch):
    monkeypatch.setenv("KEYNET_HOME", str(small_disk))
    return small_disk


@pytest.mark.parametrize("leaving_bytes", [0, 200_000, 2_500_000], ids=["nothing", "a little", "a file"])
def test_a_full_home_is_one_error_that_has_the_model_and_leaves_nothing_half(small_home, leaving_bytes):
    model = large()
    ballast = []

    def train() -> nn.Module:
        ballast.append(fill(small_home, leaving_bytes=leaving_bytes))
        return model

    with pytest.raises(HomeFull, match="no room left") as raised:
        trace_pytorch("large", torch.rand(1, 400), enable_autolog=False)(train).trace()
    assert raised.value.model is model
    assert str(small_home) in raised.value.hint
    assert mlflow.active_run() is None
    ballast[0].unlink()
    outbox = Outbox(small_home / "outbox")
    assert outbox.entries() == []
    assert not list((small_home / "outbox" / "staging").glob("*"))
    result = trace_pytorch("large", torch.rand(1, 400), enable_autolog=False)(large).trace()
    assert result.publication.state == "stored"
    assert [each.event.subject for each in outbox.entries()] == ["large"]


def test_a_home_that_is_full_already_is_told_before_training(small_home):
    (small_home / "outbox").mkdir()
    fill(small_home, leaving_bytes=0)
    with pytest.raises(HomeFull):
        trace_pytorch("m", torch.rand(1, 4))(lambda: pytest.fail("training began")).trace()


def test_a_file_that_the_home_has_no_room_for_is_one_error(small_home, tmp_path):
    path = tmp_path / "large.onnx"
    torch.onnx.export(large(), (torch.rand(2, 400),), path, dynamo=False)
    trace_pytorch("m", torch.rand(1, 4), enable_autolog=False)(lambda: nn.Linear(4, 2)).trace()
    fill(small_home, leaving_bytes=1_000_000)
    with pytest.raises(HomeFull, match="no room left"):
        log_onnx_model("files", path)
    assert [each.event.subject for each in Outbox(small_home / "outbox").entries()] == ["m"]
