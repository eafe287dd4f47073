"""Trained with S3 and RabbitMQ: whatever is down at the end, nothing is lost, and one command finishes it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from keynet_core import ModelPackage, Outbox, download_package, open_store

TOPIC = "models"


@dataclass
class Site:
    """A home, a bucket of Ceph and a virtual host of RabbitMQ with one queue that nobody reads."""

    home: Path
    bucket: str
    amqp: str
    environ: dict[str, str]

    def flush(self, *words: str, **environ: str) -> tuple[int, dict[str, Any]]:
        """Run `keynet-train outbox flush`, and return its exit code and what it tells a program."""
        done = subprocess.run(
            [sys.executable, "-m", "keynet_train", "outbox", "flush", "--json", *words],
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    @property
    def waiting(self) -> list[str]:
        """The models that wait."""
        return [str(each.event.subject) for each in Outbox(self.home / "outbox").entries()]

    def taken(self) -> list[dict[str, Any]]:
        """Take every event out of the queue."""
        with _channel(self.amqp) as channel:
            bodies = []
            while (got := channel.basic_get("all", auto_ack=True))[0] is not None:
                bodies.append(json.loads(got[2]))
        return bodies

    def fetch(self, name: str, digest: str, directory: Path) -> ModelPackage:
        """Fetch a package out of the bucket, and check every byte."""
        return download_package(open_store(f"s3://{self.bucket}"), name, digest, directory)


@contextmanager
def _channel(amqp: str) -> Iterator[Any]:
    import pika

    with pika.BlockingConnection(pika.URLParameters(amqp)) as connection:
        yield connection.channel()


def declare_queue(amqp: str) -> None:
    """Declare what a consumer would."""
    with _channel(amqp) as channel:
        channel.exchange_declare(TOPIC, "topic", durable=True)
        channel.queue_declare("all", durable=True)
        channel.queue_bind("all", TOPIC, TOPIC)


@pytest.fixture
def site(tmp_path, ceph, rabbitmq, monkeypatch) -> Site:
    for name, value in ceph.environ().items():
        monkeypatch.setenv(name, value)
    bucket, amqp = ceph.bucket(), rabbitmq.vhost()
    declare_queue(amqp)
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        **ceph.environ(),
        "KEYNET_HOME": str(tmp_path / "home"),
        "AWS_BUCKET_NAME": bucket,
        "RABBIT_ENDPOINT_URL": amqp,
        "RABBIT_MODEL_UPLOAD_TOPIC": TOPIC,
        "KEYNET_STORE_TIMEOUT_S": "2",
        "KEYNET_PUBLISH_TIMEOUT_S": "0",
    }
    return Site(home=tmp_path / "home", bucket=bucket, amqp=amqp, environ=environ)


@pytest.fixture
def nobody() -> dict[str, str]:
    """Addresses where nobody answers, which is sooner done than killing who does."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    return {"MLFLOW_S3_ENDPOINT_URL": f"http://{address}", "RABBIT_ENDPOINT_URL": f"amqp://{address}"}


def test_everything_up_is_stored_and_announced_once(site, trainer, tmp_path):
    done = trainer.train("iris", site.environ)
    assert (done.status, done.error, done.state, done.run) == (0, None, "announced", "FINISHED")
    assert done.url.startswith(f"s3://{site.bucket}/packages/iris/")
    site.fetch("iris", done.digest, tmp_path / "fetched").verify()
    (event,) = site.taken()
    assert (event["id"], event["data"]["model_version"]) == (done.event, "1")
    code, told = site.flush()
    assert (code, told["announced"]) == (0, [])
    assert site.taken() == []


def finish(site: Site, done: Any, directory: Path, *, sent: int = 1) -> None:
    """One command announces what waits; another finds nothing to do. `sent` is how often the event may have arrived."""
    code, told = site.flush()
    assert (code, [each["event_id"] for each in told["announced"]]) == (0, [done.event])
    assert site.flush()[1]["announced"] == []
    events = [each["id"] for each in site.taken()]
    assert set(events) == {done.event}
    assert len(events) <= sent
    site.fetch("iris", done.digest, directory / "fetched").verify()
    assert site.waiting == []


def assert_it_waits(site: Site, done: Any, state: str) -> None:
    assert (done.status, done.error, done.state) == (0, "publication.waiting", state)
    assert done.run == "FINISHED"
    assert site.waiting == ["iris"]
    assert f"keynet-train outbox flush --home {site.home}" in done.message
    assert str(Outbox(site.home / "outbox").entries()[0].directory) in done.message


@pytest.mark.parametrize(("which", "state"), [("ceph", "waiting"), ("rabbitmq", "stored")])
@pytest.mark.parametrize("moment", ["before the call", "while training"])
def test_an_engine_that_is_killed_loses_nothing(site, trainer, tmp_path, request, which, state, moment):
    engine = request.getfixturevalue(which)
    if moment == "before the call":
        engine.kill()
        done = trainer.train("iris", site.environ)
    else:
        done = killed_meanwhile(engine, trainer, site, tmp_path)
    assert_it_waits(site, done, state)
    assert site.flush()[0] == 6
    engine.start()
    finish(site, done, tmp_path)


def killed_meanwhile(engine: Any, trainer: Any, site: Site, gate: Path) -> Any:
    def kill() -> None:
        while not (gate / "training").exists():
            threading.Event().wait(0.02)
        engine.kill()
        (gate / "go").touch()

    killing = threading.Thread(target=kill)
    killing.start()
    done = trainer.train("iris", site.environ, gate=gate)
    killing.join(60)
    return done


def test_an_engine_that_comes_back_within_the_patience_is_waited_for(site, trainer, ceph, tmp_path):
    def back() -> None:
        while not (tmp_path / "training").exists():
            threading.Event().wait(0.02)
        ceph.kill()
        (tmp_path / "go").touch()
        ceph.start()

    coming = threading.Thread(target=back)
    coming.start()
    done = trainer.train("iris", site.environ | {"KEYNET_PUBLISH_TIMEOUT_S": "120"}, gate=tmp_path)
    coming.join(120)
    assert (done.error, done.state) == (None, "announced")
    assert [each["id"] for each in site.taken()] == [done.event]


def test_a_broker_that_takes_nothing_for_want_of_disk_is_not_waited_for_for_ever(site, trainer, rabbitmq, tmp_path):
    with rabbitmq.disk_alarm():
        done = trainer.train("iris", site.environ)
        assert_it_waits(site, done, "stored")
        assert "its disk or its memory" in done.message
    # A blocked broker may still read what was sent to it before the publisher gave up.
    finish(site, done, tmp_path, sent=2)


def test_a_wrong_password_waits_at_once_and_the_right_one_finishes(site, trainer, tmp_path):
    wrong = site.amqp.replace("keynet-tests", "wrong")
    done = trainer.train("iris", site.environ | {"RABBIT_ENDPOINT_URL": wrong, "KEYNET_PUBLISH_TIMEOUT_S": "600"})
    assert_it_waits(site, done, "stored")
    assert "RABBIT_ENDPOINT_URL" in done.message
    assert "keynet-tests" not in done.message
    assert site.flush(RABBIT_ENDPOINT_URL=wrong)[0] == 6
    finish(site, done, tmp_path)


def test_a_broker_without_a_consumer_keeps_the_event_here(site, trainer, rabbitmq, tmp_path):
    site.amqp = site.environ["RABBIT_ENDPOINT_URL"] = rabbitmq.vhost()
    done = trainer.train("iris", site.environ)
    assert_it_waits(site, done, "stored")
    declare_queue(site.amqp)
    finish(site, done, tmp_path)


def test_the_user_may_go_on_without(site, trainer, nobody):
    done = trainer.train("iris", site.environ | nobody | {"KEYNET_ON_UNPUBLISHED": "continue"})
    assert (done.status, done.error, done.state) == (0, None, "waiting")
    assert site.waiting == ["iris"]


def test_the_next_run_hands_over_before_its_own_training_begins(site, trainer, nobody):
    first = trainer.train("iris", site.environ | nobody)
    assert first.state == "waiting"
    second = trainer.train("wine", site.environ)
    assert second.waiting_at_start == 0
    assert (second.error, second.state) == (None, "announced")
    assert [each["id"] for each in site.taken()] == [first.event, second.event]


KILLED = """
import importlib, os, signal, sys
where, when = sys.argv[1:]
module, kind, attribute = where.rsplit(".", 2)
owner = getattr(importlib.import_module(module), kind)
real = getattr(owner, attribute)
def killed(*args, **kwargs):
    if when == "after":
        real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, attribute, killed)
from keynet_train._cli import keynet_train
keynet_train(["outbox", "flush"])
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "step",
    [
        "keynet_core._s3_store.S3Store.put_file",
        "keynet_core._s3_store.S3Store.put",
        "keynet_core._rabbit_publisher._Link.publish",
        "keynet_core._outbox.Outbox._finish",
    ],
)
def test_killed_while_flushing_and_run_again(site, trainer, nobody, tmp_path, step, when):
    done = trainer.train("iris", site.environ | nobody)
    killed = subprocess.run([sys.executable, "-c", KILLED, step, when], env=site.environ, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert site.flush()[0] == 0
    # Killed between its confirmation and the note of it, an event is sent again: with the same id, so acted on once.
    events = site.taken()
    assert {each["id"] for each in events} == {done.event}
    assert len(events) <= 2
    site.fetch("iris", done.digest, tmp_path / "fetched").verify()
    assert site.waiting == []


def test_two_flushes_at_once_announce_each_model_once(site, trainer, nobody):
    events = [trainer.train(f"m{at}", site.environ | nobody).event for at in range(3)]
    codes: list[int] = []
    flushing = [threading.Thread(target=lambda: codes.append(site.flush()[0])) for _ in range(2)]
    for each in flushing:
        each.start()
    for each in flushing:
        each.join(120)
    assert set(codes) <= {0, 5}
    assert [each["id"] for each in site.taken()] == events
