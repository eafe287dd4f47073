"""The journal is away in the middle of a deployment: what is loaded stays, and what was begun is finished later."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from keynet_core import remove_tree
from keynet_server import _postgresql
from keynet_server._errors import DeploymentPostponed, JournalUnavailable

PATIENT_S = 60.0
TWO_VERSIONS = b"""name: "times" backend: "onnxruntime" max_batch_size: 8
input { name: "input_0" data_type: TYPE_FP32 dims: [3] } output { name: "output_0" data_type: TYPE_FP32 dims: [3] }
version_policy { latest { num_versions: 2 } }
"""


def receive(worker, publishing, factor, **options):
    event = publishing.publish("times", factor, **options).to_event()
    assert worker._deployer.receive(event)
    return event.id


def states(worker):
    return [(each.number, each.state) for each in worker._deployer.journal.history("times")]


@pytest.fixture
def killed(new_server, publishing, postgresql):
    """Kill the database at a step of the first deployment of a model, and have it back; return server and event."""

    def killed(step, **options):
        dies = [step]

        def on_step(reached):
            if reached in dies:
                dies.remove(reached)
                postgresql.kill()

        ours = new_server(on_step)
        event = receive(ours, publishing, 2.0, **options)
        try:
            ours.run_once()
            assert dies == []
        finally:
            postgresql.start()
        return ours, event

    return killed


@pytest.mark.parametrize("step", ["loaded", "ready", "probed"])
def test_a_model_that_was_loaded_when_the_database_was_killed_stays_and_is_written_down_later(
    killed, engine, repository, eventually, step
):
    ours, event = killed(step)
    assert (repository.linked("times"), engine.factor()) == (1, 2.0)
    journal = ours._deployer.journal
    assert journal.event(event).outcome is None
    eventually(lambda: ours.run_once() and journal.event(event).outcome, PATIENT_S)
    assert (journal.event(event).outcome, states(ours)) == ("deployed", [(1, "deployed")])
    assert engine.factor() == 2.0
    assert ("unload", "times") not in engine.calls


def test_a_server_that_starts_then_does_not_take_the_model_away(killed, new_server, engine, repository):
    _, event = killed("probed")
    theirs = new_server()
    theirs._stale = set(theirs._deployer.repair_links())
    assert theirs._stale == {"times"}
    assert repository.linked("times") is None, "an engine that starts now finds nothing that was not written down"
    assert engine.factor() == 2.0
    theirs.run_once()
    assert (theirs._deployer.journal.event(event).outcome, states(theirs)) == ("deployed", [(1, "deployed")])
    assert (repository.linked("times"), engine.factor()) == (1, 2.0)
    assert ("unload", "times") not in engine.calls
    theirs._look_at_engine = 0.0
    theirs.run_once()
    assert theirs._stale == set()
    assert engine.factor() == 2.0


@pytest.mark.parametrize("starts", [1, 3])
def test_when_the_deployment_fails_after_all_the_model_is_taken_out(
    killed, new_server, engine, repository, publishing, starts
):
    _, event = killed("probed")
    for _ in range(starts):  # each takes the link away, and ends before it can do more
        theirs = new_server()
        theirs._stale = set(theirs._deployer.repair_links())
    remove_tree(repository.deployments)
    remove_tree(publishing.store.root)
    theirs.run_once()
    assert (theirs._deployer.journal.event(event).outcome, states(theirs)) == ("failed", [(1, "failed")])
    theirs._look_at_engine = 0.0
    theirs.run_once()
    assert engine.loaded == {}


def test_a_model_that_answers_wrongly_is_taken_out_once_it_is_tried(killed, new_server, engine, repository):
    _, event = killed("loaded", answers=9.0)
    theirs = new_server()
    theirs._stale = set(theirs._deployer.repair_links())
    theirs.run_once()
    assert theirs._deployer.journal.event(event).outcome == "failed"
    assert (repository.linked("times"), engine.loaded) == (None, {})


@pytest.fixture
def interrupted(new_server, publishing, monkeypatch):
    """
    Have a server whose journal does not answer once, after it has fetched a package; return it and how to begin that.

    The journal is asked then which versions stay; its table is locked until it was asked in vain.
    """
    monkeypatch.setitem(_postgresql._SESSION, "lock_timeout", "500ms")
    locks = []
    ours = new_server(
        lambda step: locks and step == "fetched" and locks.pop().exec_driver_sql("LOCK TABLE deployments")
    )
    database = ours._deployer.journal._engine
    for factor in (1.0, 2.0):
        receive(ours, publishing, factor, version=str(int(factor)), files={"config.pbtxt": TWO_VERSIONS})
    assert ours.run_once()
    blocker = sa.create_engine(database.url)
    with blocker.connect() as connection:
        sa.event.listen(database, "handle_error", lambda _context: connection.rollback())
        yield ours, lambda: locks.append(connection)
    blocker.dispose()


def test_a_journal_that_does_not_answer_while_a_package_is_built_fails_no_deployment(interrupted, publishing, engine):
    ours, interrupt = interrupted
    event = receive(ours, publishing, 3.0, version="3", files={"config.pbtxt": TWO_VERSIONS})
    received = ours._deployer.journal.event(event)
    interrupt()
    with pytest.raises(DeploymentPostponed, match="did not do what it was asked in time"):
        ours._deployer.deploy(received)
    assert states(ours)[0] == (3, "deploying")
    assert ours._deployer.deploy(received) == "deployed"
    assert engine.served["times"] == {"2", "3"}


def test_a_journal_that_does_not_answer_while_a_link_is_repaired_takes_no_link_away(interrupted, repository):
    ours, interrupt = interrupted
    remove_tree(repository.deployments / "times" / "2")
    interrupt()
    with pytest.raises(JournalUnavailable, match="did not do what it was asked in time"):
        ours._deployer.repair_links()
    assert repository.linked("times") == 2
    assert ours._deployer.repair_links() == ["times"]
    assert (repository.linked("times"), repository.broken()) == (2, [])
