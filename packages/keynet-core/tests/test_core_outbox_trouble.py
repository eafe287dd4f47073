"""An outbox whose disk makes trouble after an event was handed over: what was done is not called undone."""

from __future__ import annotations

import errno

import pytest

from keynet_core import _outbox


@pytest.fixture
def event(published):
    return published.to_event()


def fail(path):
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_what_was_handed_over_is_not_refused_when_the_disk_fails_behind_it(outbox, event, monkeypatch):
    outbox.add(event)
    monkeypatch.setattr(_outbox, "sync_directory", fail)

    report = outbox.flush(lambda _entry: None)

    assert (report.delivered, report.waiting, report.refused) == ((event,), (), ())


def test_what_cannot_be_removed_from_done_does_not_end_the_flush(outbox, event, monkeypatch):
    """As when another user's training left it there."""
    outbox.add(event)
    for at in range(201):
        (outbox.root / "done" / f"0-{at:03d}" / "package").mkdir(parents=True)
    monkeypatch.setattr(_outbox, "remove_tree", fail)

    assert outbox.flush(lambda _entry: None).delivered == (event,)
