"""Which earlier versions of a model stay loaded beside the live one, and what the journal says of those that do not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from keynet_core import package_key, to_model_name
from keynet_server._records import Deployment
from keynet_server._repository import Placement
from keynet_server._sources import PackageSource, candidates

TIMES = to_model_name("times")


def deployment(number, version, state="superseded", *, restores=None, digest=None):
    return Deployment(
        model=TIMES,
        number=number,
        digest=digest or f"sha256:{version}",
        model_version=None,
        served_version=str(version),
        run_id=None,
        event_id=f"event-{number}",
        restores=restores,
        state=state,
        reason=None,
        requested_by="ada",
        why=None,
        started_at=datetime.now(UTC),
        finished_at=None,
        engine_answer=None,
    )


def kept(*history, number, version):
    """Return the versions that may stay beside a deployment, newest first."""
    placement = Placement(model=TIMES, number=number, version=str(version), digest=f"sha256:{version}")
    return [int(each.version) for each in candidates(list(reversed(history)), placement)]


def test_what_was_live_before_stays_newest_first():
    history = [deployment(1, 1), deployment(2, 2), deployment(3, 3, "deployed")]
    assert kept(*history, number=4, version=4) == [3, 2, 1]


def test_what_failed_or_is_under_way_never_stays():
    history = [deployment(1, 1), deployment(2, 2, "failed"), deployment(3, 3, "deploying")]
    assert kept(*history, number=4, version=4) == [1]


def test_what_came_later_does_not_stay():
    history = [deployment(1, 1), deployment(2, 2, "deployed"), deployment(3, 3, "deploying")]
    assert kept(*history, number=2, version=2) == [1]


def test_a_higher_version_would_answer_in_place_of_the_live_one():
    history = [deployment(1, 7), deployment(2, 3, "deployed")]
    assert kept(*history, number=3, version=5) == [3]


def test_versions_are_compared_as_numbers():
    assert kept(deployment(1, 9, "deployed"), number=2, version=10) == [9]
    assert kept(deployment(1, 10, "deployed"), number=2, version=9) == []


def test_after_a_rollback_what_it_took_back_is_gone():
    history = [deployment(1, 1), deployment(2, 2), deployment(3, 3), deployment(4, 4, restores=2, digest="sha256:2")]
    assert kept(*history, number=4, version=4) == [1]
    again = [*history, deployment(5, 5, "deploying", restores=4, digest="sha256:2")]
    assert kept(*again, number=5, version=5) == [1]


def test_what_a_rollback_took_back_does_not_return_with_the_next_publication():
    history = [deployment(1, 1), deployment(2, 2), deployment(3, 3)]
    history.append(deployment(4, 2, "deployed", restores=2, digest="sha256:2"))
    assert kept(*history, number=5, version=5) == [2, 1]


def test_what_a_second_rollback_brought_back_stays_and_what_the_first_went_back_to():
    history = [deployment(1, 1), deployment(2, 2), deployment(3, 1, restores=1, digest="sha256:1")]
    history.append(deployment(4, 2, restores=2, digest="sha256:2"))
    history.append(deployment(5, 5))
    assert kept(*history, number=6, version=6) == [5, 2, 1]


def test_a_rollback_that_failed_took_nothing_back():
    history = [deployment(1, 1), deployment(2, 2, "deployed")]
    history.append(deployment(3, 1, "failed", restores=1, digest="sha256:1"))
    assert kept(*history, number=4, version=4) == [2, 1]


def test_a_package_stays_once():
    history = [deployment(1, 1), deployment(2, 2), deployment(3, 3, digest="sha256:1")]
    assert kept(*history, number=4, version=4) == [3, 2]


def test_what_was_unloaded_does_not_come_back_by_itself():
    history = [deployment(1, 1), deployment(2, 2, "unloaded"), deployment(3, 3, "deployed")]
    assert kept(*history, number=4, version=4) == [3]


def test_the_same_package_is_not_its_own_companion():
    history = [deployment(1, 1, "deployed")]
    placement = Placement(model=TIMES, number=2, version="2", digest="sha256:1")
    assert candidates(history, placement) == []


CONFIG = """name: "times" backend: "onnxruntime" max_batch_size: {batch}
input {{ name: "input_0" data_type: TYPE_FP32 dims: [3] }}
output {{ name: "output_0" data_type: TYPE_FP32 dims: [3] label_filename: "labels.txt" }}
version_policy {{ latest {{ num_versions: {versions} }} }}
"""


@pytest.fixture
def earlier(publishing, deployer, journal, tmp_path):
    """Publish packages one after the other, and return what stays beside the last of them."""

    def earlier(*packages, damage=None):
        for options in packages:
            config = CONFIG.format(batch=options.get("batch", 8), versions=options.get("versions", 2))
            files = {"config.pbtxt": config.encode(), "labels.txt": options.get("labels", b"a\nb\nc\n")}
            event = publishing.publish("times", options["factor"], files=files).to_event()
            deployer.receive(event)
            assert deployer.deploy(journal.event(event.id)) == "deployed"
        live = journal.live(TIMES)
        placement = Placement(model=TIMES, number=live.number, version=live.served_version, digest=live.digest)
        if damage:
            damage(journal.find(TIMES, live.number - 1))
        source = PackageSource(publishing.store, journal, lambda _step: None)
        (tmp_path / "fetched").mkdir()
        return source.earlier(placement, source.fetch(placement, tmp_path / "fetched"))

    return earlier


def test_as_many_stay_as_the_configuration_asks_for(earlier):
    found = earlier(*({"factor": float(n), "versions": 3} for n in (1, 2, 3, 4)))
    assert [each.version for each in found.placements] == ["3", "2"]
    assert found.left_out == ()


def test_one_version_asks_for_nothing_more(earlier):
    assert earlier({"factor": 1.0, "versions": 1}, {"factor": 2.0, "versions": 1}).placements == ()


def test_how_many_versions_are_served_is_no_difference(earlier):
    found = earlier({"factor": 1.0, "versions": 1}, {"factor": 2.0, "versions": 2})
    assert [each.version for each in found.placements] == ["1"]


def test_another_configuration_does_not_stay_and_an_older_one_that_is_the_same_does(earlier):
    found = earlier({"factor": 1.0}, {"factor": 2.0, "batch": 4}, {"factor": 3.0})
    assert [each.version for each in found.placements] == ["1"]
    assert found.left_out == ("version 2 is not kept: its configuration differs in max_batch_size",)


def test_other_labels_do_not_stay(earlier):
    found = earlier({"factor": 1.0}, {"factor": 2.0, "labels": b"d\ne\nf\n"})
    assert (found.placements, found.left_out) == ((), ("version 1 is not kept: its labels differ",))


def test_a_package_that_left_the_store_does_not_stay(earlier, publishing):
    def remove(deployment):
        for key in list(publishing.store.list(package_key(TIMES, deployment.digest))):
            publishing.store.delete(key)

    found = earlier({"factor": 1.0}, {"factor": 2.0}, damage=remove)
    assert found.placements == ()
    assert "version 1 is not kept" in found.left_out[0]
    assert "no object" in found.left_out[0]


def test_a_configuration_that_was_tampered_with_does_not_stay(earlier, publishing):
    def tamper(deployment):
        publishing.store.put(f"{package_key(TIMES, deployment.digest)}/config.pbtxt", b"max_batch_size: 1")

    found = earlier({"factor": 1.0}, {"factor": 2.0}, damage=tamper)
    assert found.placements == ()
    assert "is not what its manifest says" in found.left_out[0]
