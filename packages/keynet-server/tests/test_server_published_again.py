"""A package published again is deployed again; the same publication delivered again is not."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from consuming import PATIENT_S
from keynet_core import Outbox
from keynet_server._worker import Worker

SENTINEL = "behind-it"
"""The type of an event that says: what was sent before it was taken."""


@pytest.fixture
def worker(deployer, publishing, home):
    return Worker(deployer, Outbox(home / "outbox"), publishing.store)


@pytest.fixture
def through_outbox(worker, home):
    """Have an event wait in the outbox of the server's home, and acted on."""

    def hand_over(event):
        Outbox(home / "outbox").add(event)
        while worker.run_once():
            pass

    return hand_over


@pytest.fixture
def through_broker(worker, consume, publisher, deployer, eventually):
    """Send an event through RabbitMQ, wait until it was taken, and have it acted on."""
    taken = []

    def receive(event):
        fresh = event.type != SENTINEL and deployer.receive(event)
        taken.append(event.id)
        return fresh

    consume(receive)

    def hand_over(event):
        publisher.publish(event)
        behind = replace(event, id=str(uuid.uuid4()), type=SENTINEL)
        publisher.publish(behind)
        eventually(lambda: behind.id in taken, PATIENT_S)
        assert event.id in taken
        while worker.run_once():
            pass

    return hand_over


@pytest.mark.parametrize("way", ["outbox", "broker"])
def test_without_a_run_a_package_that_was_live_before_is_deployed_again(request, publishing, deployer, engine, way):
    hand_over = request.getfixturevalue(f"through_{way}")
    first, second = (replace(publishing.publish("times", factor), run_id=None) for factor in (2.0, 3.0))
    for published, factor in ((first, 2.0), (second, 3.0), (first, 2.0)):
        event = published.to_event()
        hand_over(event)
        hand_over(event)  # whoever handed it over was killed before that was written down
        assert deployer.journal.event(event.id).outcome == "deployed"
        assert engine.factor() == factor
    history = [(each.number, each.state) for each in deployer.journal.history("times")]
    assert history == [(3, "deployed"), (2, "superseded"), (1, "superseded")]
    assert len(deployer.journal.newest_events(limit=10)) == 3


def test_without_a_run_what_is_live_already_is_not_deployed_again(through_outbox, publishing, deployer):
    published = replace(publishing.publish("times", 2.0), run_id=None)
    for outcome in ("deployed", "already deployed"):
        event = published.to_event()
        through_outbox(event)
        assert deployer.journal.event(event.id).outcome == outcome
    assert len(deployer.journal.history("times")) == 1
