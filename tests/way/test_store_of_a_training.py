"""The store of a training: asked before it begins, chosen as documented; on a real S3 server."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import mlflow
import pytest
import torch
from torch import nn

from keynet_core import download_package, open_store
from keynet_train import trace_pytorch


@pytest.fixture
def environ(tmp_path, ceph) -> dict[str, str]:
    return {
        **ceph.environ(),
        "KEYNET_HOME": str(tmp_path / "home"),
        "KEYNET_STORE": f"s3://{ceph.bucket()}/team",
        "KEYNET_STORE_TIMEOUT_S": "1",
        "KEYNET_PUBLISH_TIMEOUT_S": "0",
    }


@pytest.mark.parametrize(
    ("wrong", "code", "told"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "store.forbidden", "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "store.forbidden", "AWS_ACCESS_KEY_ID"),
        ({"KEYNET_STORE": "s3://there-is-no-such-bucket"}, "store.error", "there-is-no-such-bucket"),
        ({"MLFLOW_S3_ENDPOINT_URL": "not a url"}, "settings.invalid", "MLFLOW_S3_ENDPOINT_URL"),
    ],
    ids=["secret", "key", "bucket", "address"],
)
def test_what_only_a_setting_can_mend_is_told_before_training(trainer, environ, wrong, code, told):
    done = trainer.train("iris", environ | wrong)
    assert (done.status, done.began, done.error) == (0, False, code)
    assert told in done.message
    assert "wrong" not in done.message


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes every connection, and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        kept = []

        def accept() -> None:
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for each in kept:
            each.close()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return closed.getsockname()[1]


@pytest.mark.parametrize("which", ["closed_port", "silent_port"])
def test_what_time_can_mend_does_not_keep_a_training_from_beginning(trainer, environ, request, which):
    port = request.getfixturevalue(which)
    done = trainer.train("iris", environ | {"MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
    assert (done.status, done.began, done.error) == (0, True, "publication.waiting")
    assert (done.state, done.run) == ("waiting", "FINISHED")


def test_a_store_that_is_silent_is_asked_once_for_all_that_waits(trainer, environ, ceph):
    """With three packages that wait, a store that never answers takes as long as with one."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        asked = []

        def refuse() -> None:
            while True:
                try:
                    connection = server.accept()[0]
                except OSError:
                    return
                asked.append(1)
                connection.close()

        threading.Thread(target=refuse, daemon=True).start()
        silent = {"MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{server.getsockname()[1]}"}
        counts = []
        for name in ("one", "two", "three"):
            asked.clear()
            assert trainer.train(name, environ | silent).error == "publication.waiting"
            counts.append(len(asked))
        server.shutdown(socket.SHUT_RDWR)
    assert len(set(counts)) == 1


def test_the_bucket_of_mlflows_artifacts_is_the_store_when_nothing_else_is_said(ceph, tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("KEYNET_", "MLFLOW_", "AWS_", "RABBIT_", "MODEL_")):
            monkeypatch.delenv(name)
    for name, value in ceph.environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KEYNET_HOME", str(tmp_path / "home"))
    bucket = ceph.bucket()
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    try:
        mlflow.create_experiment("iris", artifact_location=f"s3://{bucket}/mlflow")
        result = trace_pytorch("iris", torch.rand(1, 4))(lambda: nn.Linear(4, 2)).trace()
        assert result.publication.state == "stored"
        assert result.publication.url.startswith(f"s3://{bucket}/packages/iris/")
        digest = result.package.digest
        download_package(open_store(f"s3://{bucket}"), "iris", digest, tmp_path / "fetched").verify()
        rows = torch.rand(3, 4)
        torch.testing.assert_close(mlflow.pytorch.load_model("models:/iris/1")(rows), result.model(rows))
        assert "keynet/manifest.json" in [
            each.path for each in mlflow.MlflowClient().list_artifacts(result.run_id, "keynet")
        ]
        another = ceph.bucket()
        monkeypatch.setenv("AWS_BUCKET_NAME", another)
        again = trace_pytorch("iris", torch.rand(1, 4), enable_autolog=False)(lambda: nn.Linear(4, 2)).trace()
        assert again.publication.url.startswith(f"s3://{another}/packages/iris/")
    finally:
        mlflow.set_tracking_uri(before)
    assert not (tmp_path / "home" / "store").exists()
