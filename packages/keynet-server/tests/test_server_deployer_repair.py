"""What is live brought back: rollbacks, links that a crash left wrong, engines that lost a model."""

from __future__ import annotations

import pytest

from keynet_core import remove_tree
from keynet_server._errors import DeploymentConflict, DeploymentPostponed, DeploymentUnknown


def states(journal, model="times"):
    return [(each.number, each.state) for each in reversed(journal.history(model))]


def roll_back(deployer, *, to=None, why=None):
    event = deployer.request_rollback("times", to=to, who="ada", why=why)
    return deployer.deploy(deployer.journal.event(event.id))


def test_a_rollback_deploys_the_package_that_was_live_before(publish, deployer, journal, engine):
    publish(2.0, version="4", run_id="r4")
    publish(3.0, version="5")
    assert roll_back(deployer, why="accuracy fell") == "deployed"
    live = journal.live("times")
    assert engine.factor() == 2.0
    assert (live.number, live.served_version, live.restores) == (3, "4", 1)
    assert (live.requested_by, live.why, live.run_id) == ("ada", "accuracy fell", "r4")
    assert states(journal) == [(1, "superseded"), (2, "superseded"), (3, "deployed")]


def test_a_second_rollback_takes_the_first_one_back(publish, deployer, engine):
    publish(2.0)
    publish(3.0)
    roll_back(deployer)
    roll_back(deployer)
    assert engine.factor() == 3.0


def test_a_rollback_to_a_number_reaches_packages_whose_directory_is_gone(publish, deployer, engine, repository):
    for factor in (1.0, 2.0, 3.0, 4.0, 5.0):
        publish(factor)
    assert not (repository.deployments / "times" / "1").exists()
    roll_back(deployer, to=1)
    assert engine.factor() == 1.0


def test_a_rollback_to_a_failed_deployment_tries_its_package_again(publish, deployer, engine):
    publish(2.0)
    engine.refuse = "busy"
    publish(3.0)
    engine.refuse = None
    assert roll_back(deployer, to=2) == "deployed"
    assert engine.factor() == 3.0


def test_a_rollback_to_what_is_live_is_a_conflict(publish, deployer):
    publish(2.0)
    with pytest.raises(DeploymentConflict, match="is live"):
        deployer.request_rollback("times", to=1, who="ada", why=None)
    with pytest.raises(DeploymentConflict, match="no earlier"):
        deployer.request_rollback("times", to=None, who="ada", why=None)


def test_a_rollback_of_what_is_not_known_says_so(publish, deployer):
    publish(2.0)
    with pytest.raises(DeploymentUnknown):
        deployer.request_rollback("times", to=9, who="ada", why=None)
    with pytest.raises(DeploymentUnknown):
        deployer.request_rollback("other", to=None, who="ada", why=None)


def test_a_link_that_was_never_journaled_is_put_back_before_an_engine_starts(
    publish, deployer, journal, repository, link_again
):
    publish(2.0)
    publish(3.0)
    link_again(repository, journal.find("times", 1))
    (repository.models / "ghost").symlink_to("../deployments/ghost/1")
    assert deployer.repair_links() == ["ghost", "times"]
    assert repository.linked("times") == 2
    assert repository.links() == ["times"]
    assert deployer.repair_links() == []


def test_a_live_directory_that_is_gone_is_fetched_again(publish, deployer, repository, engine):
    publish(2.0)
    remove_tree(repository.deployments)
    assert deployer.repair_links() == ["times"]
    engine.loaded.clear()
    deployer.reload(["times"])
    assert engine.factor() == 2.0


def test_a_live_package_that_is_nowhere_leaves_no_dangling_link(publish, deployer, repository, publishing, engine):
    publish(2.0)
    remove_tree(repository.deployments)
    remove_tree(publishing.store.root)
    assert deployer.repair_links() == ["times"]
    assert repository.links() == []
    assert deployer.reload(["times"]) == []
    assert engine.loaded == {}


def test_a_model_that_cannot_be_loaded_again_does_not_stop_the_next(publish, deployer, engine):
    publish(2.0)
    engine.refuse = "no memory"
    [(name, error)] = deployer.reload(["times", "absent"])
    assert name == "times"
    assert "no memory" in error.message


def test_a_name_no_model_can_have_is_left_alone(publish, deployer, repository):
    publish(2.0)
    (repository.models / ".hidden").symlink_to("..")
    assert deployer.repair_links() == []
    assert repository.links() == ["times"]


def test_what_is_live_and_not_ready_is_loaded_again(publish, deployer, engine):
    publish(2.0)
    engine.loaded.clear()
    assert deployer.ensure_served() == []
    assert engine.factor() == 2.0
    engine.loaded.clear()
    engine.refuse = "no memory"
    [(deployment, error)] = deployer.ensure_served()
    assert deployment.number == 1
    assert "no memory" in error.message


def newest_time(repository, number):
    return max(path.stat().st_mtime_ns for path in (repository.deployments / "times" / str(number)).rglob("*"))


def test_what_is_linked_is_newer_than_all_that_was_also_after_waiting_and_with_a_clock_that_stands(
    publish, publishing, deployer, journal, engine, repository, monkeypatch
):
    monkeypatch.setattr("keynet_server._materialize.time.time_ns", lambda: 10**18)
    publish(2.0)
    first = newest_time(repository, 1)
    event = publishing.publish("times", 3.0).to_event()
    deployer.receive(event)
    engine.dies_on_load = True
    with pytest.raises(DeploymentPostponed):
        deployer.deploy(journal.event(event.id))
    restored = newest_time(repository, 1)
    engine.dies_on_load = engine.down = False
    assert deployer.deploy(journal.event(event.id)) == "deployed"
    assert newest_time(repository, 2) >= restored + 10**9 > first + 10**9


def test_an_engine_that_answers_and_takes_no_requests_has_the_event_wait(publishing, deployer, engine, monkeypatch):
    event = publishing.publish("times", 2.0).to_event()
    deployer.receive(event)
    monkeypatch.setattr(engine, "is_live", lambda: False)
    with pytest.raises(DeploymentPostponed, match="takes no requests"):
        deployer.deploy(deployer.journal.event(event.id))
    monkeypatch.undo()
    assert deployer.deploy(deployer.journal.event(event.id)) == "deployed"
