"""The outbox between living processes: what enters, waits, leaves, and is refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from keynet_core import (
    Event,
    EventInvalid,
    EventRefused,
    EventUndelivered,
    KeynetError,
    LockTimeout,
    MissingDependency,
    Outbox,
    PackageCorrupt,
    PackageInvalid,
    StoreFull,
    locked,
    publish_entry,
)


@pytest.fixture
def make_event(published):
    def make(run_id="r1", **changes):
        return replace(published, run_id=run_id, **changes).to_event()

    return make


@pytest.fixture
def add_package(outbox, make_package, make_event):
    """Return a function that puts an entry with a package into the outbox."""

    def add(run_id="r1"):
        with outbox.stage() as staged:
            staged.rmdir()
            package = make_package(staged)
            event = make_event(run_id, digest=package.digest)
            return outbox.add(event, package.directory)

    return add


def names(outbox, state):
    directory = outbox.root / state
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def taken(entry):
    """Take an entry without a word."""


def refuse(error):
    def deliver(entry):
        raise error

    return deliver


def test_an_event_waits_until_it_is_taken(outbox, make_event):
    entry = outbox.add(make_event())
    assert outbox.entries() == [entry]
    report = outbox.flush(taken)
    assert (report.delivered, report.waiting, report.refused, report.unreadable) == ((entry.event,), (), (), ())
    assert outbox.entries() == []
    assert [each.event for each in outbox.entries("done")] == [entry.event]


def test_an_empty_outbox_has_nothing_to_hand_over(outbox):
    assert outbox.flush(taken).delivered == ()
    assert outbox.entries() == outbox.entries("done") == outbox.entries("refused") == []


def test_entries_are_handed_over_oldest_first(outbox, make_event):
    ids = [outbox.add(make_event(f"r{at}")).id for at in range(5)]
    seen = []
    outbox.flush(lambda entry: seen.append(entry.id))
    assert seen == ids


def test_a_package_goes_to_the_store_and_leaves_the_outbox(outbox, store, add_package):
    entry = add_package()
    digest = entry.package().digest

    class Events:
        def publish(self, event):
            assert store.stat(f"packages/mnist/{digest[7:]}/manifest.json")

    report = outbox.flush(lambda each: publish_entry(each, store, Events(), lambda url: None))
    assert report.delivered == (entry.event,)
    assert names(outbox, f"done/{entry.id}") == ["event.json"]


def test_what_was_staged_and_not_added_is_gone(outbox):
    def fail():
        with outbox.stage() as staged:
            (staged / "model.onnx").write_bytes(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(outbox, "staging") == []


def test_what_was_added_is_whole_and_leaves_no_trace_in_staging(outbox, add_package):
    entry = add_package()
    assert names(outbox, "staging") == []
    assert names(outbox, f"ready/{entry.id}") == ["event.json", "package"]
    entry.package().verify()


def test_a_directory_without_a_package_is_not_taken(outbox, make_event):
    with outbox.stage() as staged:
        (staged / "model.onnx").write_bytes(b"x")
        with pytest.raises(PackageInvalid):
            outbox.add(make_event(), staged)
    assert names(outbox, "ready") == names(outbox, "staging") == []


def test_an_event_nobody_could_read_again_is_not_taken(outbox):
    with pytest.raises(EventInvalid):
        outbox.add(Event(id="1", source="/s", type="t", data={"a": "x" * 300_000}))
    assert names(outbox, "ready") == names(outbox, "staging") == []


@pytest.mark.parametrize(
    "error",
    [EventUndelivered("away", hint="keynet up"), StoreFull("full"), MissingDependency("boto"), OSError(5, "I/O")],
)
def test_what_cannot_be_handed_over_waits_with_the_reason_and_goes_next_time(outbox, make_event, error):
    entry = outbox.add(make_event())
    report = outbox.flush(refuse(error))
    ((event, reason),) = report.waiting
    assert event == entry.event
    assert isinstance(reason, KeynetError)
    assert outbox.entries()[0].last_error() == reason.to_dict()
    assert outbox.flush(taken).delivered == (entry.event,)
    assert names(outbox, f"done/{entry.id}") == ["event.json"]


@pytest.mark.parametrize("error", [EventRefused("no"), PackageCorrupt("broken"), EventInvalid("of another type")])
def test_what_is_refused_is_kept_whole_with_the_reason(outbox, add_package, error):
    entry = add_package()
    report = outbox.flush(refuse(error))
    assert report.refused == ((entry.event, error),)
    (kept,) = outbox.entries("refused")
    kept.package().verify()
    assert kept.last_error() == {"code": error.code, "message": error.message}
    assert outbox.flush(taken).delivered == ()


def test_one_that_waits_does_not_stop_the_others(outbox, make_event):
    first, second = outbox.add(make_event("r1")), outbox.add(make_event("r2"))

    def deliver(entry):
        if entry.id == first.id:
            raise EventUndelivered("away")

    report = outbox.flush(deliver)
    assert report.delivered == (second.event,)
    assert [event for event, _ in report.waiting] == [first.event]


def spoil_text(entry):
    (entry.directory / "event.json").write_bytes(b"{half")


def spoil_missing(entry):
    (entry.directory / "event.json").unlink()


def spoil_directory(entry):
    (entry.directory / "event.json").unlink()
    (entry.directory / "event.json").mkdir()


@pytest.mark.parametrize("spoil", [spoil_text, spoil_missing, spoil_directory])
def test_an_entry_whose_event_cannot_be_read_is_set_aside_and_stops_nobody(outbox, make_event, spoil):
    bad, good = outbox.add(make_event("r1")), outbox.add(make_event("r2"))
    spoil(bad)
    assert outbox.entries() == [good]
    report = outbox.flush(taken)
    assert report.delivered == (good.event,)
    ((name, reason),) = report.unreadable
    assert (name, reason.code) == (bad.id, "event.invalid")
    assert names(outbox, "refused") == [bad.id]
    assert (
        "cannot be read" in json.loads((outbox.root / "refused" / bad.id / "last-error.json").read_bytes())["message"]
    )
    assert outbox.entries("refused") == []
    assert outbox.flush(taken).unreadable == ()


def break_manifest(package):
    (package / "manifest.json").write_bytes(b"{half")


def break_no_manifest(package):
    (package / "manifest.json").unlink()


def break_model(package):
    (package / "model.onnx").write_bytes(b"other")


def break_no_model(package):
    (package / "model.onnx").unlink()


@pytest.mark.parametrize("damage", [break_manifest, break_no_manifest, break_model, break_no_model])
def test_a_broken_package_is_never_announced_and_stops_nobody(outbox, store, add_package, make_event, damage):
    bad, good = add_package("r1"), outbox.add(make_event("r2"))
    damage(bad.directory / "package")
    announced = []

    class Events:
        def publish(self, event):
            announced.append(event)

    report = outbox.flush(lambda each: publish_entry(each, store, Events(), lambda url: None))
    assert announced == [good.event]
    ((event, reason),) = report.refused
    assert event == bad.event
    assert isinstance(reason, PackageInvalid)
    assert names(outbox, "refused") == [bad.id]


def test_files_that_are_no_entries_are_left_alone(outbox, make_event):
    entry = outbox.add(make_event())
    (outbox.root / "ready" / ".DS_Store").write_bytes(b"")
    assert outbox.flush(taken).delivered == (entry.event,)
    assert names(outbox, "ready") == [".DS_Store"]


def test_an_event_is_amended_while_it_waits_and_not_after(outbox, make_event):
    entry, better = outbox.add(make_event()), make_event(model_version="9")
    assert outbox.amend(entry, better)
    assert outbox.flush(taken).delivered == (better,)
    assert not outbox.amend(entry, make_event(model_version="10"))
    assert [each.event for each in outbox.entries("done")] == [better]


def test_an_event_that_was_refused_is_not_amended(outbox, make_event):
    entry = outbox.add(make_event())
    outbox.flush(refuse(EventRefused("no")))
    assert not outbox.amend(entry, make_event(model_version="9"))
    assert names(outbox, "ready") == []


def test_a_reason_that_cannot_be_read_is_no_trouble(outbox, make_event):
    entry = outbox.add(make_event())
    assert entry.last_error() is None
    (entry.directory / "last-error.json").write_bytes(b"{half")
    assert "cannot be read" in entry.last_error()["message"]


def test_done_keeps_the_last_200_and_no_packages(outbox, make_event):
    for at in range(205):
        done = outbox.root / "done" / f"{at:020d}-x"
        (done / "package").mkdir(parents=True)
        (done / "event.json").write_bytes(make_event(f"r{at}").to_json())
    entry = outbox.add(make_event("last"))
    outbox.flush(taken)
    kept = outbox.entries("done")
    assert len(kept) == 200
    assert kept[0].event.data["run_id"] == "r6"
    assert kept[-1].id == entry.id
    assert not list((outbox.root / "done").glob("*/package"))


def test_a_flush_without_time_left_says_so(outbox, make_event):
    first, second = outbox.add(make_event("r1")), outbox.add(make_event("r2"))

    def slow(entry):
        while (outbox.root / "clock").stat().st_mtime_ns + 50_000_000 > _now(outbox):
            os.sched_yield()

    (outbox.root / "clock").write_bytes(b"")
    report = outbox.flush(slow, timeout_s=0.01)
    assert report.delivered == (first.event,)
    assert [(event, "no time left" in error.message) for event, error in report.waiting] == [(second.event, True)]


def _now(outbox):
    (outbox.root / "now").write_bytes(b"")
    return (outbox.root / "now").stat().st_mtime_ns


FLUSHING = """
import sys
from pathlib import Path
from keynet_core import Outbox
def deliver(entry):
    print(entry.id, flush=True)
    sys.stdin.readline()
print("end", len(Outbox(Path(sys.argv[1])).flush(deliver).delivered), flush=True)
"""


def test_a_flush_does_not_wait_for_another_longer_than_said(outbox, make_event, start):
    entry = outbox.add(make_event())
    other = start(FLUSHING, outbox.root)
    assert other.stdout.readline() == f"{entry.id}\n"
    with pytest.raises(LockTimeout):
        outbox.flush(taken, timeout_s=0.1)


def test_two_that_flush_at_once_hand_each_over_once(outbox, make_event, start):
    ids = [outbox.add(make_event(f"r{at}")).id for at in range(6)]
    processes = [start(FLUSHING, outbox.root) for _ in range(2)]
    for process in processes:
        process.stdin.write("\n" * 6)
        process.stdin.flush()
    lines = [line for process in processes for line in process.stdout.read().splitlines()]
    assert sorted(line for line in lines if not line.startswith("end")) == ids
    assert sorted(line for line in lines if line.startswith("end")) == ["end 0", "end 6"]
    assert names(outbox, "ready") == []


def test_an_event_is_amended_before_a_flush_or_not_at_all(outbox, make_event, start):
    """While the other hands the old event over, an amendment waits; afterwards it is told that it came too late."""
    entry = outbox.add(make_event())
    other = start(FLUSHING, outbox.root)
    assert other.stdout.readline() == f"{entry.id}\n"
    other.stdin.write("\n")
    other.stdin.flush()
    assert not outbox.amend(entry, make_event(model_version="9"))
    assert outbox.entries("done")[0].event == entry.event


def test_an_entry_added_during_a_flush_goes_with_the_next(outbox, make_event):
    first = outbox.add(make_event("r1"))
    added = []
    report = outbox.flush(lambda entry: added.append(outbox.add(make_event("r2"))))
    assert report.delivered == (first.event,)
    assert outbox.entries() == added


def test_two_stages_of_one_process_do_not_touch_each_other(outbox):
    with outbox.stage() as first:
        (first / "a").write_bytes(b"x")
        with Outbox(outbox.root).stage() as second:
            assert first != second
            assert (first / "a").exists()
    assert names(outbox, "staging") == []


def test_an_entry_whose_builder_is_still_at_it_is_not_handed_over(outbox, make_event, make_package):
    """Otherwise a flush elsewhere would send the event before it is amended."""
    delivered = []
    with outbox.stage() as staged:
        staged.rmdir()
        package = make_package(staged)
        entry = outbox.add(make_event(digest=package.digest), package.directory)
        report = Outbox(outbox.root).flush(delivered.append)
        assert (report.delivered, report.waiting, delivered) == ((), (), [])
        with locked(outbox.root / "flush.lock", timeout_s=0):  # a long flush elsewhere does not stand in the way
            assert outbox.amend(entry, make_event(digest=package.digest, model_version="9"))
    outbox.flush(delivered.append)
    assert [each.event.data["model_version"] for each in delivered] == ["9"]
