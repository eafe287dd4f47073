"""The worker: order, patience, and nothing that stops it; on either database."""

from __future__ import annotations

import pytest

from keynet_core import Event, LocalStore, Outbox, locked
from keynet_server import _worker
from keynet_server._database import migrate
from keynet_server._errors import JournalUnavailable
from keynet_server._journal import Journal
from keynet_server._worker import Worker


@pytest.fixture
def journal(database, tmp_path):
    migrate(database, tmp_path / "migrate.lock")
    return Journal(database)


@pytest.fixture
def outbox(home):
    return Outbox(home / "outbox")


@pytest.fixture
def worker(deployer, outbox, publishing):
    return Worker(deployer, outbox, publishing.store, tick_s=0.02)


@pytest.fixture
def receive(publishing, deployer):
    def receive(name="times", factor=2.0, **options):
        event = publishing.publish(name, factor, **options).to_event()
        deployer.receive(event)
        return event.id

    return receive


def put_into(outbox, publishing, name, factor):
    from keynet_core import ModelPublished

    package = publishing.package(name, factor)
    with outbox.stage() as staged:
        for path in package.directory.iterdir():
            path.rename(staged / path.name)
        published = ModelPublished(model=name, digest=package.digest, store="waiting", run_id="r")
        return outbox.add(published.to_event(), staged)


def test_events_are_acted_on_in_the_order_they_were_received(worker, receive, journal, engine):
    for factor in (2.0, 3.0, 4.0):
        receive(factor=factor)
    worker.run_once()
    assert [each.state for each in journal.history("times")] == ["deployed", "superseded", "superseded"]
    assert engine.factor() == 4.0


def test_a_bad_event_does_not_stop_the_next(worker, receive, journal, engine):
    receive("bad", files={"model.onnx": b"no model"})
    good = receive("good")
    worker.run_once()
    assert journal.event(good).outcome == "deployed"
    assert journal.history("bad")[0].state == "failed"


def test_an_unforeseen_error_is_journaled_and_does_not_stop_the_next(worker, receive, journal, engine, monkeypatch):
    infer = engine.infer

    def explode(name, version, inputs):
        if name == "bad":
            raise ZeroDivisionError("what nobody foresaw")
        return infer(name, version, inputs)

    monkeypatch.setattr(engine, "infer", explode)
    bad, good = receive("bad"), receive("good")
    worker.run_once()
    assert "what nobody foresaw" in journal.event(bad).reason
    assert journal.live("bad") is None
    assert "bad" not in engine.loaded
    assert journal.event(good).outcome == "deployed"


def test_what_waits_in_the_outbox_is_stored_and_deployed(worker, outbox, publishing, journal, engine):
    put_into(outbox, publishing, "times", 2.0)
    worker.run_once()
    assert journal.live("times").number == 1
    assert outbox.entries("ready") == []
    assert len(outbox.entries("done")) == 1
    assert list(publishing.store.list("packages/times/"))


def test_an_outbox_another_process_flushes_is_left_to_it(deployer, outbox, publishing, journal, monkeypatch):
    monkeypatch.setattr(_worker, "_FLUSH_TIMEOUT_S", 0.05)
    worker = Worker(deployer, outbox, publishing.store)
    put_into(outbox, publishing, "times", 2.0)
    with locked(outbox.root / "flush.lock", timeout_s=1.0):
        worker.run_once()
    assert journal.unfinished() == []
    worker.run_once()
    assert journal.live("times") is not None


@pytest.mark.parametrize("trouble", ["lock", "listing"])
def test_an_outbox_that_cannot_be_read_does_not_stop_events_and_is_told_of_once(
    worker, outbox, receive, journal, caplog, monkeypatch, trouble
):
    (outbox.root / "ready" / "1").mkdir(parents=True)
    if trouble == "lock":
        (outbox.root / "flush.lock").mkdir()
    else:
        monkeypatch.setattr(outbox, "flush", refuse_to_flush)
    good = receive()
    worker.run_once()
    worker.run_once()
    assert journal.event(good).outcome == "deployed"
    assert [record.getMessage()[:27] for record in caplog.records].count("the outbox cannot be flushed"[:27]) == 1


def refuse_to_flush(*_arguments, **_options):
    raise PermissionError(13, "Permission denied")


def test_a_step_that_nobody_foresaw_to_fail_does_not_stop_the_next(worker, receive, journal, deployer, monkeypatch):
    def explode():
        raise ZeroDivisionError

    monkeypatch.setattr(deployer, "is_engine_live", explode)
    good = receive()
    worker.run_once()
    assert journal.event(good).outcome == "deployed"


def test_an_error_after_the_deployment_counts_changes_no_outcome(worker, receive, journal, repository, monkeypatch):
    def explode(name, *, keep):
        raise ZeroDivisionError

    monkeypatch.setattr(repository, "prune", explode)
    event = receive()
    worker.run_once()
    assert journal.event(event).outcome == "deployed"
    assert [(each.number, each.state) for each in journal.history("times")] == [(1, "deployed")]


def test_an_entry_that_cannot_be_stored_waits_and_events_go_on(
    deployer, outbox, publishing, tmp_path, receive, journal
):
    (tmp_path / "file").write_text("in the way")
    worker = Worker(deployer, outbox, LocalStore(tmp_path / "file" / "store"))
    put_into(outbox, publishing, "waits", 2.0)
    good = receive("good")
    worker.run_once()
    assert len(outbox.entries("ready")) == 1
    assert journal.event(good).outcome == "deployed"


def test_a_broken_entry_in_the_outbox_does_not_stop_events(worker, outbox, receive, journal):
    broken = outbox.root / "ready" / "0001-broken"
    broken.mkdir(parents=True)
    (broken / "event.json").write_text("{")
    good = receive("good")
    worker.run_once()
    assert not broken.exists()
    assert journal.event(good).outcome == "deployed"


def test_a_stopped_engine_is_waited_for_as_long_as_it_takes(worker, receive, journal, engine, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_worker.time, "monotonic", lambda: now[0])
    engine.down = True
    event = receive()
    for _ in range(20):
        worker.run_once()
        now[0] += 60.0
    assert journal.event(event).outcome is None
    engine.down = False
    worker.run_once()
    assert journal.event(event).outcome == "deployed"


def test_a_postponed_event_is_not_tried_again_at_once(worker, receive, engine, journal):
    engine.down = True
    event = receive()
    worker.run_once()
    engine.down = False
    worker.run_once()
    assert journal.event(event).outcome is None


def test_a_newer_event_takes_the_place_of_one_that_waits(worker, receive, journal, engine, monkeypatch):
    engine.down = True
    first = receive(factor=2.0)
    worker.run_once()
    engine.down = False
    second = receive(factor=3.0)
    worker.run_once()
    assert journal.event(first).outcome == "failed"
    assert "newer" in journal.event(first).reason
    assert journal.event(second).outcome == "deployed"
    assert engine.factor() == 3.0


def test_what_waits_and_is_due_is_not_deployed_over_a_newer_one_of_the_same_turn(
    worker, receive, journal, engine, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr(_worker.time, "monotonic", lambda: now[0])
    engine.down = True
    first = receive(factor=2.0)
    worker.run_once()
    assert journal.event(first).outcome is None
    engine.down = False
    now[0] += 3600
    newer = receive(factor=3.0)
    worker.run_once()
    assert (journal.event(first).outcome, journal.event(newer).outcome) == ("failed", "deployed")
    assert "a newer event" in journal.event(first).reason
    assert engine.factor() == 3.0


def test_what_waits_is_tried_again_when_the_newer_one_fails(worker, receive, journal, engine, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_worker.time, "monotonic", lambda: now[0])
    engine.down = True
    first = receive(factor=2.0)
    worker.run_once()
    engine.down = False
    second = receive(factor=3.0, answers=9.0)
    for _ in range(2):
        now[0] += 60.0
        worker.run_once()
    assert (journal.event(second).outcome, journal.event(first).outcome) == ("failed", "deployed")
    assert engine.factor() == 2.0


def test_what_waits_is_not_deployed_over_a_newer_one_after_a_restart(
    worker, deployer, outbox, publishing, receive, journal, engine
):
    engine.dies_on_load = True
    first = receive(factor=2.0)
    worker.run_once()
    engine.down = engine.dies_on_load = False
    second = receive(factor=3.0)
    assert deployer.deploy(journal.event(second)) == "deployed"  # and killed before it gave up the first
    Worker(deployer, outbox, publishing.store).run_once()
    assert journal.event(first).outcome == "failed"
    assert engine.factor() == 3.0
    assert journal.live("times").event_id == second


def test_a_rollback_overtakes_a_publication_that_waits(worker, deployer, receive, journal, engine, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_worker.time, "monotonic", lambda: now[0])
    for factor in (2.0, 3.0):
        receive(factor=factor)
    worker.run_once()
    engine.down = True
    published = receive(factor=4.0)
    worker.run_once()
    rollback = deployer.request_rollback("times", to=1, who="ada", why="it was better").id
    for down in (True, False, False):
        engine.down = down
        now[0] += 60.0
        worker.run_once()
    assert (journal.event(published).outcome, journal.event(rollback).outcome) == ("failed", "deployed")
    assert engine.factor() == 2.0
    assert journal.live("times").restores == 1


def test_a_rollback_after_a_publication_that_is_not_acted_on_yet_comes_after_it(
    worker, deployer, receive, journal, engine
):
    for factor in (2.0, 3.0):
        receive(factor=factor)
    worker.run_once()
    published = receive(factor=4.0)
    rollback = deployer.request_rollback("times", to=1, who="ada", why=None).id
    worker.run_once()
    assert (journal.event(published).outcome, journal.event(rollback).outcome) == ("deployed", "deployed")
    assert engine.factor() == 2.0


def test_an_event_nobody_understands_is_given_up_when_it_is_overtaken(worker, receive, journal):
    journal.receive(Event(id="1", source="/x", type="io.keynet.model.published.v9", subject="times", data={}))
    later = receive()
    worker._deployer.deploy(journal.event(later))
    worker.run_once()
    assert journal.event("1").outcome == "failed"


def test_a_package_that_stops_the_engine_is_given_up(worker, receive, journal, engine, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_worker.time, "monotonic", lambda: now[0])
    receive(factor=2.0)
    worker.run_once()
    engine.dies_on_load = True
    event = receive(factor=3.0)
    for _ in range(_worker.MAX_BLAMED):
        engine.down = False
        worker.run_once()
        now[0] += 60.0
    assert journal.event(event).outcome == "failed"
    assert "tried 5 times" in journal.event(event).reason
    assert journal.live("times").number == 1


def test_models_are_loaded_when_the_engine_comes_back(worker, receive, engine):
    receive()
    worker.run_once()
    engine.down = True
    worker.run_once()
    engine.loaded.clear()
    engine.down = False
    worker.run_once()
    assert engine.factor() == 2.0


def test_an_engine_that_lost_its_models_unnoticed_gets_them_back(worker, receive, engine, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_worker.time, "monotonic", lambda: now[0])
    receive()
    worker.run_once()
    engine.loaded.clear()
    worker.run_once()
    assert engine.loaded == {}
    now[0] += 31.0
    worker.run_once()
    assert engine.factor() == 2.0


def test_a_model_the_engine_will_not_load_is_told_of_once(worker, receive, engine, monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(_worker.time, "monotonic", lambda: now[0])
    receive()
    worker.run_once()
    engine.loaded.clear()
    engine.refuse = "no memory"
    for _ in range(3):
        now[0] += 31.0
        worker.run_once()
    assert [record.getMessage() for record in caplog.records].count("times is not served: no memory") == 1


def test_a_running_engine_is_told_of_links_that_were_repaired(
    worker, receive, engine, repository, deployer, link_again, eventually
):
    receive(factor=2.0)
    worker.run_once()
    receive(factor=3.0)
    worker.run_once()
    link_again(repository, deployer.journal.find("times", 1))
    engine.load("times")
    worker.start(deployer.repair_links())
    eventually(lambda: engine.factor() == 3.0)
    worker.stop()


def test_it_starts_wakes_and_stops(worker, receive, journal, eventually):
    worker.start()
    event = receive()
    worker.wake()
    eventually(lambda: journal.event(event).outcome)
    assert worker.is_alive()
    assert worker.stop()
    assert not worker.is_alive()


def test_a_database_that_fails_does_not_end_the_thread(worker, deployer, eventually, monkeypatch, receive, journal):
    calls = []

    def unavailable(**_options):
        calls.append(1)
        raise JournalUnavailable("no database") if len(calls) < 3 else RuntimeError("worse")

    with monkeypatch.context() as patched:
        patched.setattr(journal, "backlogs", unavailable)
        worker.start()
        eventually(lambda: len(calls) > 4)
    event = receive()
    eventually(lambda: journal.event(event).outcome)
    assert worker.stop()
