"""One pass through the outbox: what is begun, what is left alone, what is kept of a reason."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from keynet_core import Event, EventRefused, EventUndelivered, LockTimeout, Nowhere, Outbox, StoreUnavailable, locked
from keynet_train._delivering import hand_over


@pytest.fixture
def outbox(tmp_path) -> Outbox:
    return Outbox(tmp_path / "outbox")


def event(name: str, store: object = "file:///nowhere/to/be/found") -> Event:
    return Event(id=f"r/{name}", source="/here", type="t", subject=name, data={"store": store})


class Listener:
    """A receiver in memory: it keeps what it is sent."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def opened(self):
        return nullcontext(self)

    def publish(self, event: Event) -> None:
        self.told.append(str(event.subject))


def fail(error):
    def deliver(entry):
        raise error

    return deliver


def test_events_are_told_oldest_first_and_once(outbox):
    for name in ("a", "b"):
        outbox.add(event(name))
    listener, stored = Listener(), []
    report = hand_over(outbox, listener, timeout_s=60, stored=stored.append)
    assert [each.subject for each in report.delivered] == listener.told == ["a", "b"]
    assert stored == []  # no package goes with them
    assert hand_over(outbox, listener, timeout_s=60).delivered == ()


def test_an_event_that_names_no_store_is_refused(outbox):
    outbox.add(event("a", store=7))
    ((_, reason),) = hand_over(outbox, Listener(), timeout_s=60).refused
    assert isinstance(reason, EventRefused)


def test_without_anybody_to_tell_what_only_waits_for_that_is_left_alone(outbox):
    outbox.add(event("told"))
    outbox.flush(fail(EventUndelivered("nobody")))
    outbox.add(event("unstored"))
    outbox.flush(fail(StoreUnavailable("down")), only=lambda entry: entry.event.subject == "unstored")
    outbox.add(event("new"))
    report = hand_over(outbox, Nowhere(), timeout_s=60)
    assert [each.subject for each, _ in report.waiting] == ["unstored", "new"]


def test_what_is_declined_stays_as_it_is(outbox):
    entry = outbox.add(event("a"))
    report = outbox.flush(fail(AssertionError("it was begun")), only=lambda _: False)
    assert (report.delivered, report.waiting, report.refused) == ((), (), ())
    assert entry.last_error() is None


def test_an_entry_there_is_no_time_for_keeps_the_reason_it_has(outbox):
    entry = outbox.add(event("a"))
    outbox.flush(fail(StoreUnavailable("the disk of the store is being replaced")))
    ((_, told),) = outbox.flush(fail(AssertionError("it was begun")), timeout_s=-1, lock_timeout_s=5).waiting
    assert "no time left" in told.message
    assert entry.last_error()["message"] == "the disk of the store is being replaced"


def test_the_lock_is_waited_for_as_long_as_is_said_and_not_as_long_as_there_is_time(outbox):
    outbox.add(event("a"))
    with locked(outbox.root / "flush.lock", timeout_s=1), pytest.raises(LockTimeout):
        outbox.flush(fail(AssertionError("it was begun")), timeout_s=10_000, lock_timeout_s=0)


def test_a_refused_entry_waits_again_with_its_reason(outbox):
    entry = outbox.add(event("a"))
    outbox.flush(fail(EventRefused("not today")))
    (refused,) = outbox.entries("refused")
    again = outbox.readmit(refused)
    assert again.directory == entry.directory
    assert again.last_error()["message"] == "not today"
    assert outbox.readmit(refused) == refused  # another was quicker: nothing happens
    assert hand_over(outbox, Listener(), timeout_s=60).delivered == (entry.event,)


def test_what_nobody_can_read_is_told_by_its_directory(outbox):
    entry = outbox.add(event("a"))
    (entry.directory / "event.json").write_text("{")
    ((directory, reason),) = outbox.unreadable()
    assert directory == entry.directory
    assert "cannot be read" in reason.message
    assert outbox.entries() == []
