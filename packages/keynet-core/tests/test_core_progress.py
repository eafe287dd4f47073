"""A transfer that takes long tells how far it is: to the logger, or to a function; packages as a whole."""

from __future__ import annotations

import contextvars
import logging
import threading

import pytest

from keynet_core import LocalStore, Progress, download_package, upload_package, watching_progress
from keynet_core import _progress as module
from keynet_core._progress import metered


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Tell after a fiftieth of a second instead of after two."""
    monkeypatch.setattr(module, "EVERY_S", 0.02)


class Told(list):
    """What was told, and a way to wait for more of it."""

    def __init__(self):
        super().__init__()
        self._more = threading.Condition()

    def append(self, each):
        with self._more:
            super().append(each)
            self._more.notify_all()

    def wait_for_more(self, count=1):
        with self._more:
            enough = len(self) + count
            assert self._more.wait_for(lambda: len(self) >= enough, timeout=30), "it was never told"


@pytest.fixture
def told():
    return Told()


def test_two_seconds_is_what_it_says(monkeypatch):
    monkeypatch.undo()
    assert module.EVERY_S == 2.0


def test_a_transfer_that_stands_still_is_told_of(told):
    with watching_progress(told.append), metered("storing a", 100) as advance:
        told.wait_for_more()
        assert (told[0].what, told[0].done_bytes, told[0].total_bytes) == ("storing a", 0, 100)
        advance(40)
        told.wait_for_more(2)
        assert told[-1].done_bytes == 40
        advance(60)
    assert told[-1].done_bytes == 100
    assert [each.elapsed_s for each in told] == sorted(each.elapsed_s for each in told)


def test_a_quick_one_tells_nothing_and_leaves_no_thread(told, monkeypatch):
    monkeypatch.setattr(module, "EVERY_S", 60.0)
    before = threading.active_count()
    with watching_progress(told.append), metered("storing a", 1) as advance:
        advance(1)
    assert told == []
    assert threading.active_count() == before


def test_one_that_fails_tells_no_more(told):
    before = threading.active_count()

    def fail():
        with watching_progress(told.append), metered("storing a", 1):
            told.wait_for_more()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert threading.active_count() == before


def test_the_logger_is_told_when_nobody_else_is(caplog, eventually):
    caplog.set_level(logging.INFO, logger="keynet.objects")
    with metered("storing a", 4_000_000) as advance:
        advance(1_000_000)
        eventually(lambda: caplog.records)
    assert caplog.records[0].name == "keynet.objects"
    assert caplog.messages[0] == "storing a: 25 %, 1.0 of 4.0 MB after 0 s"


def test_a_transfer_inside_another_counts_for_it(told):
    with watching_progress(told.append), metered("the package", 10):
        with metered("a file", 5) as advance:
            advance(5)
        thread = threading.Thread(target=contextvars.copy_context().run, args=(_count_a_file,))
        thread.start()
        thread.join()
        told.wait_for_more()
    assert {each.what for each in told} == {"the package"}
    assert told[-1].done_bytes == 10


def _count_a_file():
    with metered("a file in a thread", 5) as advance:
        advance(5)


def test_watchers_are_put_back(told):
    inner = Told()
    with watching_progress(told.append):
        with watching_progress(inner.append), metered("inner", 1):
            inner.wait_for_more()
        assert told == []
        with metered("outer", 1):
            told.wait_for_more()
    assert {each.what for each in told} == {"outer"}


def test_no_bytes_are_all_of_them():
    assert str(Progress(what="storing a", done_bytes=0, total_bytes=0, elapsed_s=2.5)).startswith("storing a: 100 %")
    assert "100 %" in str(Progress(what="again", done_bytes=30, total_bytes=20, elapsed_s=2.5))


class SlowStore(LocalStore):
    """A store that begins no transfer before somebody was told of it."""

    def __init__(self, root, told):
        super().__init__(root)
        self.told = told

    def put_file(self, key, source, *, sha256=None):
        self.told.wait_for_more()
        return super().put_file(key, source, sha256=sha256)

    def get_file(self, key, target):
        self.told.wait_for_more()
        return super().get_file(key, target)


def test_a_package_is_told_of_as_a_whole(told, make_package, tmp_path):
    package = make_package(tmp_path / "package", model=b"x" * 100_000)
    size = sum(each.size_bytes for each in package.manifest.files)
    store = SlowStore(tmp_path / "store", told)
    with watching_progress(told.append):
        upload_package(package, store)
        assert {each.what for each in told} == {"storing package mnist"}
        assert (told[-1].done_bytes, told[-1].total_bytes) == (size, size)
        told.clear()
        download_package(store, package.manifest.name, package.digest, tmp_path / "fetched")
    assert {each.what for each in told} == {"fetching package mnist"}
    assert (told[-1].done_bytes, told[-1].total_bytes) == (size, size)


def test_what_is_there_already_counts_as_done(told, make_package, tmp_path):
    package = make_package(tmp_path / "package", model=b"x" * 100_000)
    store = SlowStore(tmp_path / "store", told)
    upload_package(package, LocalStore(store.root))
    store.delete(next(key for key in store.list("") if key.endswith("config.pbtxt")))
    with watching_progress(told.append):
        upload_package(package, store)
    assert told[-1].done_bytes == told[-1].total_bytes > 100_000


@pytest.mark.parametrize("engine", ["local", "fsspec-memory", "ceph"])
def test_each_engine_counts_every_byte(open_engine, engine, tmp_path, told):
    store = open_engine(engine)
    size = 40_000_000
    (tmp_path / "source").write_bytes(bytes(size))
    for transfer in (
        lambda: store.put_file("a", tmp_path / "source"),
        lambda: store.get_file("a", tmp_path / "target"),
    ):
        told.clear()
        with watching_progress(told.append), metered("all of it", size):
            transfer()
            told.wait_for_more(2)
        assert told[-1].done_bytes == size
