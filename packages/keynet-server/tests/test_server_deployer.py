"""Events to deployments, with real packages, a real database and directory, and an engine in memory."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest

from keynet_core import Event, EventInvalid, EventRefused, package_key, remove_tree
from keynet_server._errors import (
    DeploymentPostponed,
    EngineUnavailable,
    PackageElsewhere,
)


def states(journal, model="times"):
    return [(each.number, each.state) for each in reversed(journal.history(model))]


def test_a_published_model_is_served_and_journaled(publish, journal, engine, repository):
    assert publish(2.0, version="7", run_id="r1") == "deployed"
    live = journal.live("times")
    assert engine.factor() == 2.0
    assert (live.number, live.served_version, live.model_version, live.run_id) == (1, "7", "7", "r1")
    assert live.requested_by == "/mlflow/runs/r1"
    assert live.started_at.utcoffset().total_seconds() == 0
    assert live.started_at <= live.finished_at
    assert "probe" in live.engine_answer
    assert (repository.models / "times").readlink().as_posix() == "../deployments/times/1"
    assert (repository.models / "times" / "7" / "model.onnx").is_file()
    assert (repository.models / "times" / "config.pbtxt").is_file()


def test_without_a_registry_version_the_number_of_the_deployment_is_served(publish, journal):
    publish(2.0)
    publish(3.0, version="champion")
    assert [each.served_version for each in journal.history("times")] == ["2", "1"]


def test_labels_stand_beside_the_configuration_and_external_data_beside_the_model(publish, repository):
    publish(2.0, files={"labels.txt": b"a\nb\n", "model.onnx.data": b"\0" * 8}, version="1")
    served = repository.models / "times"
    assert (served / "labels.txt").is_file()
    assert (served / "1" / "model.onnx.data").is_file()
    assert not (served / "model.onnx").exists()


def test_the_same_event_twice_is_one_deployment(publishing, deployer, journal):
    event = publishing.publish().to_event()
    assert deployer.receive(event) is True
    assert deployer.receive(event) is False
    assert deployer.deploy(journal.event(event.id)) == "deployed"
    assert deployer.receive(event) is False
    assert journal.unfinished() == []
    assert states(journal) == [(1, "deployed")]


def test_the_same_package_from_another_run_is_already_deployed(publish, journal, engine):
    publish(2.0, run_id="a")
    assert publish(2.0, run_id="b") == "already deployed"
    assert states(journal) == [(1, "deployed")]
    assert [call for call in engine.calls if call[0] == "load"] == [("load", "times")]


def test_the_same_package_is_deployed_again_when_the_engine_lost_it(publish, journal, engine):
    publish(2.0, run_id="a")
    engine.loaded.clear()
    assert publish(2.0, run_id="b") == "deployed"
    assert states(journal) == [(1, "superseded"), (2, "deployed")]
    assert engine.factor() == 2.0


def test_a_newer_package_supersedes_the_older(publish, journal, engine):
    publish(2.0)
    publish(3.0)
    assert engine.factor() == 3.0
    assert states(journal) == [(1, "superseded"), (2, "deployed")]


def test_only_the_last_directories_are_kept_and_the_journal_keeps_all(publish, journal, repository):
    for factor in (1.0, 2.0, 3.0, 4.0, 5.0):
        publish(factor)
    kept = sorted(path.name for path in (repository.deployments / "times").iterdir())
    assert kept == ["3", "4", "5"]
    assert len(journal.history("times")) == 5


def test_a_refused_load_leaves_the_old_model_serving(publish, journal, engine, repository):
    publish(2.0)
    engine.refuse = "failed to load 'times': unexpected shape"
    assert publish(3.0) == "failed"
    assert repository.linked("times") == 1
    assert engine.factor() == 2.0
    failed = journal.history("times")[0]
    assert failed.state == "failed"
    assert "unexpected shape" in failed.reason
    assert failed.engine_answer == engine.refuse
    assert not (repository.deployments / "times" / "2").exists()
    assert journal.live("times").number == 1


def test_a_refused_first_load_leaves_no_link(publish, journal, engine, repository):
    engine.refuse = "no"
    assert publish(3.0) == "failed"
    assert repository.linked("times") is None
    assert repository.links() == []
    assert engine.loaded == {}
    assert journal.live("times") is None


def test_what_cannot_be_restored_is_told_in_the_reason(publish, journal, engine):
    publish(2.0)
    engine.refuse = "out of memory"
    publish(3.0)
    assert "could not be restored" in journal.history("times")[0].reason


def test_a_failure_is_journaled_even_when_the_old_package_is_gone_everywhere(
    publish, publishing, journal, engine, repository
):
    publish(2.0)
    infer = engine.infer

    def lose_everything(name, version, inputs):
        remove_tree(repository.deployments / "times" / "1")
        remove_tree(publishing.store.root)
        return infer(name, version, inputs)

    engine.infer = lose_everything
    assert publish(3.0, answers=4.0) == "failed"
    assert "could not be restored" in journal.history("times")[0].reason
    assert journal.unfinished() == []


def test_a_wrong_answer_to_the_probe_brings_the_old_model_back(publish, journal, engine, repository):
    publish(2.0)
    assert publish(3.0, answers=4.0) == "failed"
    assert engine.factor() == 2.0
    assert repository.linked("times") == 1
    assert "does not answer as it did" in journal.history("times")[0].reason


def test_a_model_that_does_not_get_ready_fails(publish, engine, journal, monkeypatch):
    monkeypatch.setattr("keynet_server._rollout.READY_TIMEOUT_S", 0.1)
    engine.never_ready = True
    assert publish(2.0) == "failed"
    assert "is not ready" in journal.history("times")[0].reason


def test_a_package_without_a_probe_is_deployed_and_says_so(publish, journal):
    assert publish(2.0, probed=False) == "deployed"
    assert "no probe" in journal.live("times").engine_answer


def test_a_package_that_left_the_store_fails(publishing, deployer, journal):
    event = publishing.publish().to_event()
    deployer.receive(event)
    remove_tree(publishing.store.root)
    assert deployer.deploy(journal.event(event.id)) == "failed"
    assert "no object" in journal.event(event.id).reason
    assert states(journal) == [(1, "failed")]


def test_an_event_whose_package_is_not_in_the_servers_store_is_not_taken(publishing, deployer, journal):
    event = replace(publishing.publish(), digest="sha256:" + "0" * 64, store="s3://elsewhere").to_event()
    with pytest.raises(PackageElsewhere) as raised:
        deployer.receive(event)
    assert "s3://elsewhere" in raised.value.message
    assert publishing.store.url in raised.value.message
    assert journal.unfinished() == []


def test_a_known_event_is_known_whatever_became_of_its_package(publishing, deployer):
    event = publishing.publish().to_event()
    assert deployer.receive(event) is True
    remove_tree(publishing.store.root)
    assert deployer.receive(event) is False


def test_an_event_is_taken_while_the_store_does_not_answer(publishing, deployer, home):
    event = publishing.publish().to_event()
    (home / "store").rename(home / "away")
    (home / "store").symlink_to(home / "store")
    assert deployer.receive(event) is True


def test_the_address_in_an_event_is_never_followed(publishing, deployer, home):
    published = publishing.publish()
    elsewhere = home / "elsewhere"
    (home / "store").rename(elsewhere)
    with pytest.raises(PackageElsewhere):
        deployer.receive(replace(published, store=elsewhere.as_uri()).to_event())


@pytest.mark.parametrize("damage", [b"", b"truncated"])
def test_a_truncated_model_fails_and_nothing_is_linked(publishing, deployer, journal, repository, damage):
    published = publishing.publish()
    path = publishing.store.root / package_key(published.model, published.digest) / "model.onnx"
    path.write_bytes(damage)
    event = published.to_event()
    deployer.receive(event)
    assert deployer.deploy(journal.event(event.id)) == "failed"
    assert "model.onnx" in journal.event(event.id).reason
    assert repository.links() == []
    assert list((repository.root / "staging").iterdir()) == []


@pytest.mark.parametrize("path", ["../../escaped.onnx", "/tmp/escaped.onnx", "a/../../b"])
def test_a_manifest_with_a_path_outside_fails(publishing, deployer, journal, home, path):
    published = publishing.publish()
    manifest = publishing.store.root / package_key(published.model, published.digest) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"model.onnx"', f'"{path}"'))
    event = published.to_event()
    deployer.receive(event)
    assert deployer.deploy(journal.event(event.id)) == "failed"
    assert path in journal.event(event.id).reason
    assert not list(home.rglob("escaped*"))


@pytest.mark.parametrize("name", ["model.py", "libtriton_onnxruntime.so"])
def test_a_package_that_holds_code_is_refused(publish, journal, repository, name):
    assert publish(2.0, files={name: b"print()"}) == "failed"
    assert "holds code" in journal.history("times")[0].reason
    assert repository.links() == []


def test_a_stopped_engine_postpones_and_nothing_is_swapped(publishing, deployer, journal, engine, repository):
    engine.down = True
    event = publishing.publish().to_event()
    deployer.receive(event)
    with pytest.raises(DeploymentPostponed) as raised:
        deployer.deploy(journal.event(event.id))
    assert not raised.value.after_link
    assert journal.event(event.id).outcome is None
    assert states(journal) == [(1, "deploying")]
    assert "down" in journal.history("times")[0].reason
    assert repository.links() == []
    engine.down = False
    assert deployer.deploy(journal.event(event.id)) == "deployed"
    assert states(journal) == [(1, "deployed")]
    assert journal.live("times").reason is None


def test_an_engine_that_dies_of_a_package_finds_the_old_one_linked(publish, journal, engine, repository):
    publish(2.0)
    engine.dies_on_load = True
    with pytest.raises(DeploymentPostponed) as raised:
        publish(3.0)
    assert raised.value.after_link
    assert repository.linked("times") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EMFILE])
def test_a_disk_that_refuses_postpones(publish, journal, monkeypatch, number):
    def refuse(_root):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("keynet_server._materialize.sync_tree", refuse)
    with pytest.raises(DeploymentPostponed, match="cannot be written"):
        publish(2.0)
    assert journal.history("times")[0].state == "deploying"


def test_what_no_waiting_mends_fails(publish, repository, journal):
    (repository.models / "times").mkdir()
    assert publish(2.0) == "failed"
    assert "cannot be written" in journal.history("times")[0].reason


@pytest.mark.parametrize("path", ["1/w.bin", "2/model.onnx", "3"])
def test_a_package_that_holds_what_looks_like_a_version_is_refused(publish, journal, repository, path):
    assert publish(2.0, files={path: b"x"}, version="1") == "failed"
    assert f"holds {path}" in journal.history("times")[0].reason
    assert repository.links() == []


def test_old_directories_that_cannot_be_removed_change_no_outcome(publish, journal, repository, monkeypatch, caplog):
    def refuse(_path):
        raise PermissionError(errno.EACCES, "Permission denied")

    for factor in (1.0, 2.0, 3.0):
        publish(factor)
    monkeypatch.setattr("keynet_server._materialize.remove_tree", lambda path: ".old" in path.name and refuse(path))
    assert publish(4.0) == "deployed"
    assert "old deployments of times 4 stays for now" in caplog.text
    assert publish(5.0, answers=9.0) == "failed"
    assert journal.live("times").number == 4


def test_what_an_earlier_removal_left_does_not_stop_the_next(publish, repository):
    for factor in (1.0, 2.0, 3.0):
        publish(factor)
    left = repository.root / "staging" / "times-1.old"
    left.mkdir()
    (left / "half").write_bytes(b"removed")
    publish(4.0)
    assert not (repository.deployments / "times" / "1").exists()
    assert not left.exists()


def test_a_postponement_tells_what_could_not_be_restored(publish, publishing, journal, engine, repository):
    publish(2.0)

    def lose_everything(name, _config):
        remove_tree(repository.deployments / "times" / "1")
        remove_tree(publishing.store.root)
        raise EngineUnavailable("the engine died")

    engine.load = lose_everything
    with pytest.raises(DeploymentPostponed, match=r"the engine died; and what .* could not be restored"):
        publish(3.0)
    assert "could not be restored" in journal.history("times")[0].reason


def test_a_known_package_waits_with_a_reason_while_the_engine_does_not_answer(
    publish, publishing, deployer, journal, engine
):
    publish(2.0, run_id="a")
    event = publishing.publish("times", 2.0, run_id="b").to_event()
    deployer.receive(event)
    engine.down = True
    with pytest.raises(DeploymentPostponed):
        deployer.deploy(journal.event(event.id))
    assert "down" in journal.history("times")[0].reason
    engine.down = False
    assert deployer.deploy(journal.event(event.id)) == "deployed"
    assert states(journal) == [(1, "superseded"), (2, "deployed")]


def test_a_version_that_named_another_package_is_served_under_a_new_number_and_says_so(publish, journal, repository):
    publish(2.0, version="3")
    publish(3.0, version="3")
    live = journal.live("times")
    assert (live.model_version, live.served_version) == ("3", "4")
    assert "served as version 4, because another package was served as 3 before" in live.engine_answer
    assert (repository.models / "times" / "4" / "model.onnx").is_file()
    publish(4.0)
    assert journal.live("times").served_version == "5"


def test_an_event_of_another_type_is_refused(deployer, journal):
    event = Event(id="1", source="/x", type="io.keynet.something.else.v1", data={})
    with pytest.raises(EventRefused):
        deployer.receive(event)
    assert journal.unfinished() == []


def test_an_event_that_only_a_newer_keynet_understood_fails(deployer, journal):
    event = Event(id="1", source="/x", type="io.keynet.model.published.v9", subject="times", data={})
    journal.receive(event)
    assert deployer.deploy(journal.event("1")) == "failed"
    assert "v9" in journal.event("1").reason


def test_an_event_with_a_name_that_climbs_is_refused(publishing, deployer):
    event = publishing.publish().to_event()
    with pytest.raises(EventInvalid):
        deployer.receive(replace(event, data=event.data | {"model": "../times"}))


def test_an_event_given_up_is_failed_with_the_reason(publishing, deployer, journal, engine):
    from keynet_server._errors import DeploymentFailed

    engine.down = True
    event = publishing.publish().to_event()
    deployer.receive(event)
    deployer.give_up(journal.event(event.id), DeploymentFailed("waited too long"))
    assert journal.event(event.id).outcome == "failed"
    assert journal.event(event.id).reason == "waited too long"
    assert states(journal) == [(1, "failed")]
