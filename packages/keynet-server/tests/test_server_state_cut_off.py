"""One server in the middle of a deployment: another that starts meanwhile, and its own connection that is cut."""

from __future__ import annotations

import threading

import pytest

from keynet_server import _rollout
from keynet_server._errors import ClaimMissing
from keynet_server._requests import to_request
from keynet_server._sources import to_placement

WAIT_S = 60.0


class Paused:
    """Stops a deployment at a step until it is told to go on."""

    def __init__(self) -> None:
        self.step = None
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, step: str) -> None:
        if step == self.step:
            self.step = None
            self.reached.set()
            assert self.go_on.wait(WAIT_S)


@pytest.fixture
def pause():
    return Paused()


@pytest.fixture
def ours(new_server, pause):
    return new_server(pause)


@pytest.fixture
def theirs(new_server):
    return new_server()


@pytest.fixture
def receive(publishing, theirs):
    def receive(factor, **options):
        event = publishing.publish("times", factor, **options).to_event()
        assert theirs._deployer.receive(event)
        return event.id

    return receive


@pytest.fixture
def paused(ours, pause, receive):
    """Deploy once, then have one of the two servers stop in the middle of the second deployment."""
    receive(2.0)
    ours.run_once()

    def paused(step):
        event = receive(3.0)
        pause.step = step
        thread = threading.Thread(target=ours.run_once)
        thread.start()
        assert pause.reached.wait(WAIT_S)
        return event, thread

    yield paused
    pause.go_on.set()


def end(pause, thread):
    pause.go_on.set()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def states(worker):
    return [(each.number, each.state) for each in worker._deployer.journal.history("times")]


@pytest.mark.parametrize("step", ["begun", "fetched", "materialized", "linked", "loaded", "probed"])
def test_a_server_that_starts_leaves_alone_what_another_is_deploying(
    paused, pause, ours, theirs, engine, repository, step
):
    event, thread = paused(step)
    linked, calls = repository.linked("times"), list(engine.calls)
    assert theirs._deployer.repair_links() == []
    [(name, reason)] = theirs._deployer.reload(["times"])
    assert (name, type(reason)) == ("times", ClaimMissing)
    assert theirs.run_once() is False
    assert (repository.linked("times"), engine.calls) == (linked, calls)
    end(pause, thread)
    assert theirs._deployer.journal.event(event).outcome == "deployed"
    assert states(theirs) == [(2, "deployed"), (1, "superseded")]
    assert engine.factor() == 3.0


def test_later_events_of_the_model_wait_for_the_server_that_has_it(paused, pause, theirs, receive, engine):
    _, thread = paused("fetched")
    later = receive(4.0)
    assert theirs.run_once() is False
    assert theirs._deployer.journal.event(later).outcome is None
    end(pause, thread)
    theirs.run_once()
    assert states(theirs) == [(3, "deployed"), (2, "superseded"), (1, "superseded")]
    assert engine.factor() == 4.0


def test_other_models_do_not_wait(paused, pause, theirs, publishing):
    _, thread = paused("fetched")
    other = publishing.publish("other", 5.0).to_event()
    theirs._deployer.receive(other)
    theirs.run_once()
    assert theirs._deployer.journal.event(other.id).outcome == "deployed"
    end(pause, thread)


@pytest.fixture
def short_waits(monkeypatch):
    monkeypatch.setattr(_rollout, "READY_TIMEOUT_S", 0.5)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("step", ["begun", "fetched", "materialized", "linked", "probed"])
def test_a_server_that_was_cut_off_changes_nothing_that_another_did_meanwhile(
    paused, pause, ours, theirs, receive, engine, step
):
    event, thread = paused(step)
    cut_off(theirs)
    later = receive(4.0)
    theirs.run_once()
    expected = [(3, "deployed"), (2, "superseded"), (1, "superseded")]
    assert states(theirs) == expected
    end(pause, thread)
    journal = theirs._deployer.journal
    assert (journal.event(event).outcome, journal.event(later).outcome) == ("deployed", "deployed")
    assert states(theirs) == expected
    repository = ours._deployer._repository
    assert repository.linked("times") == 3
    assert engine.factor() == 4.0
    assert not list((repository.root / "staging").iterdir())
    last = receive(5.0)
    ours.run_once()
    assert journal.event(last).outcome == "deployed", "it acts again, on a connection that is new"


def test_a_server_that_was_cut_off_does_not_disturb_who_builds_the_same(paused, pause, ours, new_server):
    event, thread = paused("fetched")
    cut_off(ours)
    meanwhile = Paused()
    meanwhile.step = "fetched"
    third = new_server(meanwhile)
    building = threading.Thread(target=third.run_once)
    building.start()
    assert meanwhile.reached.wait(WAIT_S)
    end(pause, thread)
    journal = third._deployer.journal
    assert journal.event(event).outcome is None
    end(meanwhile, building)
    assert journal.event(event).outcome == "deployed"
    assert states(third) == [(2, "deployed"), (1, "superseded")]


def test_what_a_server_that_was_cut_off_linked_late_is_put_right_at_the_next_look(
    theirs, receive, engine, link_again, repository
):
    for factor in (2.0, 3.0):
        receive(factor)
        theirs.run_once()
    link_again(repository, theirs._deployer.journal.find("times", 1))
    engine.load("times")
    assert engine.factor() == 2.0
    assert theirs._deployer.ensure_served() == []
    assert (repository.linked("times"), engine.factor()) == (2, 3.0)


def test_what_a_server_that_was_killed_had_linked_is_not_loaded_before_it_is_tried(
    theirs, receive, engine, link_again, repository
):
    receive(2.0)
    theirs.run_once()
    journal = theirs._deployer.journal
    deployment = journal.begin(to_request(journal.event(receive(3.0))))
    repository.build(to_placement(deployment), theirs._deployer._rollout._source)
    link_again(repository, deployment)
    assert theirs._deployer.ensure_served() == []
    assert (repository.linked("times"), engine.factor()) == (1, 2.0)
    theirs.run_once()
    assert (repository.linked("times"), engine.factor()) == (2, 3.0)


def test_a_model_whose_link_was_repaired_is_loaded_as_soon_as_nobody_else_has_it(theirs, ours, receive, engine):
    receive(2.0)
    theirs.run_once()
    theirs._stale = {"times"}
    theirs._look_at_engine = 0.0
    engine.calls.clear()
    with ours._deployer.claims.hold("times"):
        theirs.run_once()
        assert engine.calls == []
    theirs._look_at_engine = 0.0
    theirs.run_once()
    assert engine.calls == [("load", "times")]


def cut_off(others):
    """End every connection but one's own, as a network does that fails for one of two."""
    with others._deployer.journal._engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
