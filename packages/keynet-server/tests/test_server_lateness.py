"""A version that is delivered late, behind a newer one of the same registered model, does not replace it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keynet_server._replay import replay_failed


@pytest.fixture
def publish(publishing, deployer):
    def publish(factor, version, series="times@1"):
        published = publishing.publish("times", factor, version=version)
        event = replace(published, version_series=series).to_event()
        deployer.receive(event)
        return event.id, deployer.deploy(deployer.journal.event(event.id))

    return publish


def live(deployer):
    return deployer.journal.live("times").model_version


def test_an_older_version_of_the_same_series_is_refused_with_the_way_round(publish, deployer):
    assert publish(2.0, "9")[1] == "deployed"
    event_id, outcome = publish(3.0, "7")
    assert outcome == "failed"
    assert live(deployer) == "9"
    received = deployer.journal.event(event_id)
    assert "version 7 arrived after version 9" in received.reason
    assert f"keynet events replay {event_id}" in received.reason
    assert deployer.journal.history("times")[0].state == "failed"


def test_numbers_are_compared_as_numbers(publish, deployer):
    publish(2.0, "9")
    assert publish(3.0, "10")[1] == "deployed"


def test_versions_of_another_registry_are_no_older(publish, deployer):
    publish(2.0, "9", "times@1")
    assert publish(3.0, "1", "times@2")[1] == "deployed"
    assert publish(4.0, "8", "times@1")[1] == "failed"


@pytest.mark.parametrize(("version", "series"), [(None, "times@1"), ("7", None), ("v7", "times@1")])
def test_without_a_number_and_its_series_nothing_is_too_late(publish, deployer, version, series):
    publish(2.0, "9")
    assert publish(3.0, version, series)[1] == "deployed"


def test_a_version_older_than_one_that_was_rolled_back_is_late_too(publish, deployer):
    publish(2.0, "8")
    publish(3.0, "9")
    rollback = deployer.request_rollback("times", to=None, who="someone", why=None)
    assert deployer.deploy(deployer.journal.event(rollback.id)) == "deployed"
    assert publish(4.0, "7")[1] == "failed"
    assert live(deployer) == "8"


def test_a_replay_of_a_late_version_is_deployed(publish, deployer):
    publish(2.0, "9")
    event_id, _ = publish(3.0, "7")
    replayed = replay_failed(deployer, event_id)
    assert deployer.deploy(deployer.journal.event(replayed.id)) == "deployed"
    assert live(deployer) == "7"
