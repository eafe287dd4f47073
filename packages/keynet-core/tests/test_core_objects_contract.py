"""What every engine behind ObjectStore does, asked of each of them: on disk, through fsspec, and on two S3 servers."""

from __future__ import annotations

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keynet_core import (
    LocalStore,
    ObjectCorrupt,
    ObjectInfo,
    ObjectMissing,
    ObjectTooLarge,
    StoreError,
    StoreFull,
    StoreUnavailable,
    StoreUnsupported,
    open_store,
    to_key,
)

ABC = ObjectInfo(size_bytes=3, sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
EMPTY = ObjectInfo(size_bytes=0, sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
ENGINES = ["local", "fsspec-memory", "fsspec-file", "ceph", "swift"]


@pytest.fixture(params=ENGINES)
def store(request, open_engine):
    return open_engine(request.param)


def only(*engines):
    return pytest.mark.parametrize("store", engines, indirect=True)


def test_bytes_come_back(store, tmp_path):
    assert store.put("a/b.bin", b"abc") == ABC
    assert store.get("a/b.bin", max_bytes=3) == b"abc"
    assert store.stat("a/b.bin") == ABC
    assert store.get_file("a/b.bin", tmp_path / "deep" / "copy") == ABC
    assert (tmp_path / "deep" / "copy").read_bytes() == b"abc"


def test_files_come_back(store, tmp_path):
    (tmp_path / "source").write_bytes(b"abc")
    assert store.put_file("a", tmp_path / "source") == ABC
    assert store.get("a", max_bytes=10) == b"abc"


def test_no_bytes_are_an_object_too(store, tmp_path):
    (tmp_path / "source").write_bytes(b"")
    assert store.put("a", b"") == store.put_file("b", tmp_path / "source") == EMPTY
    for key in ("a", "b"):
        assert store.stat(key) == store.get_file(key, tmp_path / "copy") == EMPTY
        assert store.get(key, max_bytes=0) == b""
        assert (tmp_path / "copy").read_bytes() == b""


def test_a_large_object_comes_back(store, tmp_path):
    data = os.urandom(40_000_001)
    (tmp_path / "source").write_bytes(data)
    info = store.put_file("from-file", tmp_path / "source")
    assert store.stat("from-file") == store.put("from-bytes", data) == info
    for key in ("from-file", "from-bytes"):
        assert store.get_file(key, tmp_path / "copy") == info
        assert (tmp_path / "copy").read_bytes() == data
    assert store.get("from-file", max_bytes=len(data)) == data


def test_a_second_put_replaces_the_first(store):
    store.put("a", b"first and longer")
    assert store.put("a", b"abc") == store.stat("a") == ABC
    assert store.get("a", max_bytes=100) == b"abc"


def test_a_file_that_is_not_what_it_is_known_to_be_is_not_stored(store, tmp_path):
    (tmp_path / "small").write_bytes(b"abd")
    (tmp_path / "large").write_bytes(b"x" * 17_000_000)
    for name in ("small", "large"):
        with pytest.raises(ObjectCorrupt, match=f"{name} has sha256 .*, not ba7816bf8f01"):
            store.put_file("a", tmp_path / name, sha256=ABC.sha256)
    assert store.stat("a") is None
    (tmp_path / "small").write_bytes(b"abc")
    assert store.put_file("a", tmp_path / "small", sha256=ABC.sha256) == ABC


def test_a_file_to_store_that_is_not_there_is_no_missing_object(store, tmp_path):
    for absent in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(StoreError, match="there is no file") as caught:
            store.put_file("a", absent)
        assert not isinstance(caught.value, ObjectMissing)


@pytest.mark.parametrize(
    "key", ["모델/가중치.bin", "a b/%20?#+&.txt", "x" * 255, "가" * 85, ".hidden", "..a", "-", "a.part", "a*[b]", "é/é"]
)
def test_a_key_in_any_letters_is_stored_listed_and_found(store, key, tmp_path):
    store.put(key, b"abc")
    assert list(store.list("")) == [key]
    assert store.stat(key) == store.get_file(key, tmp_path / "copy") == ABC
    store.delete(key)
    assert store.stat(key) is None


def test_what_is_not_there_is_missing(store, tmp_path):
    assert store.stat("a") is None
    assert list(store.list("")) == list(store.list("a/b/")) == []
    store.delete("a")
    (tmp_path / "t").write_bytes(b"old")
    for ask in (
        lambda: store.get("a", max_bytes=1),
        lambda: store.get_file("a", tmp_path / "t"),
        lambda: store.presign("a", expires_s=1),
        lambda: store.copy_from(store, "a", "b"),
    ):
        with pytest.raises(ObjectMissing, match=r"has no object .*a"):
            ask()
    assert (tmp_path / "t").read_bytes() == b"old"
    assert store.stat("b") is None


def test_a_folder_is_no_object(store):
    store.put("a/b", b"abc")
    store.delete("a")
    assert store.stat("a") is None
    assert store.stat("a/b/c") is None
    with pytest.raises(ObjectMissing):
        store.get("a", max_bytes=1)
    assert list(store.list("")) == ["a/b"]


def test_a_deleted_object_is_gone_and_may_be_deleted_again(store):
    store.put("a", b"abc")
    store.delete("a")
    store.delete("a")
    assert store.stat("a") is None
    assert list(store.list("")) == []


def test_more_bytes_than_asked_for_are_refused(store):
    store.put("a", b"abc")
    with pytest.raises(ObjectTooLarge, match="a is larger than the 2 bytes"):
        store.get("a", max_bytes=2)


def test_what_is_refused_says_what_to_do_next(store, tmp_path):
    store.put("a", b"abc")
    (tmp_path / "source").write_bytes(b"abd")
    asked = {
        "has no object": lambda: store.get("b", max_bytes=1),
        "no object": lambda: store.get_file("b", tmp_path / "t"),
        "is larger": lambda: store.get("a", max_bytes=2),
        "there is no file": lambda: store.put_file("a", tmp_path / "nowhere"),
        "has sha256": lambda: store.put_file("a", tmp_path / "source", sha256=ABC.sha256),
        "is no key": lambda: store.put("../a", b""),
        "cannot expire": lambda: store.presign("a", expires_s=0),
    }
    hints = {}
    for message, ask in asked.items():
        with pytest.raises(StoreError, match=message) as caught:
            ask()
        hints[message] = caught.value.hint
    assert all(hints.values()), hints
    assert hints["has sha256"] == f"sha256sum {tmp_path / 'source'}"
    assert hints["there is no file"] == f"ls -l {tmp_path}"


def test_list_keeps_to_its_prefix_in_order(store):
    for key in ("b/2", "a/10", "a/1", "ab"):
        store.put(key, b"")
    assert list(store.list("")) == ["a/1", "a/10", "ab", "b/2"]
    assert list(store.list("a")) == ["a/1", "a/10", "ab"]
    assert list(store.list("a/1")) == ["a/1", "a/10"]
    assert list(store.list("a/1/")) == []


def test_list_sorts_by_code_points_as_utf_8_does(store):
    """UTF-16, or a locale, would have another order."""
    keys = ["B", "a", "a/b", "a0", "é", "가", "\uffee", "\U0001f600"]
    for key in reversed(keys):
        store.put(f"{key}/x", b"")
    assert list(store.list("")) == sorted(f"{key}/x" for key in keys)


@only("local", "fsspec-memory", "ceph", pytest.param("swift", marks=pytest.mark.slow))
def test_list_goes_on_behind_a_thousand_keys(store):
    keys = [f"many/{number:04}" for number in range(1007)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    assert list(store.list("many/")) == keys


@pytest.mark.parametrize("prefix", ["../", "../x", "/etc/", "/", "a/../../", "//"])
def test_list_does_not_look_outside(store, prefix):
    store.put("a/b", b"")
    with pytest.raises(StoreError):
        list(store.list(prefix))


@pytest.mark.parametrize("key", ["", "..", "../a", "/a", "a/", "a//b", "./a", "a\\b", "a\x00", "\ud800", "x" * 1025])
def test_what_is_no_key_is_refused(store, tmp_path, key):
    for ask in (
        lambda: store.put(key, b""),
        lambda: store.put_file(key, Path(__file__)),
        lambda: store.get(key, max_bytes=1),
        lambda: store.get_file(key, tmp_path / "t"),
        lambda: store.stat(key),
        lambda: store.delete(key),
        lambda: store.presign(key, expires_s=1),
        lambda: store.copy_from(store, "a", key),
    ):
        with pytest.raises(StoreError, match="is no key"):
            ask()


@given(
    st.text(st.characters(), max_size=40)
    | st.lists(st.sampled_from(["..", ".", "", "a", "~", "\\", "\x00", "b"])).map("/".join)
)
def test_a_key_is_a_plain_relative_path_or_refused(text):
    try:
        key = to_key(text)
    except StoreError:
        return
    assert key == text
    text.encode()
    assert os.path.normpath(f"/base/{key}") == f"/base/{key}"
    assert not any(ord(each) < 32 for each in key)


@only("local", "fsspec-memory", "ceph", "swift")
def test_a_reader_never_sees_half_an_object(store):
    """fsspec's files on disk are written in place; nobody uses them but these tests."""
    old, new = b"o" * 300_000, b"n" * 300_000
    store.put("a", old)
    stop, seen = threading.Event(), set()

    def look():
        while not stop.is_set():
            seen.add(store.get("a", max_bytes=400_000))

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(10):
        store.put("a", new)
        store.put("a", old)
    stop.set()
    reader.join()
    assert seen <= {old, new}


@pytest.mark.parametrize("size", [3, 20_000_000])
def test_a_copy_within_a_store_is_what_its_source_is(store, size):
    data = os.urandom(size)
    info = store.put("a/source", data)
    assert store.copy_from(store, "a/source", "b/copy") == store.stat("b/copy") == info
    store.delete("a/source")
    assert store.get("b/copy", max_bytes=size) == data


def test_a_copy_onto_itself_is_the_object_that_it_was(store):
    store.put("a", b"abc")
    assert store.copy_from(store, "a", "a") == store.stat("a") == ABC


def test_a_copy_replaces_what_was_there(store):
    store.put("a", b"abc")
    store.put("b", b"other")
    store.copy_from(store, "a", "b")
    assert store.get("b", max_bytes=10) == b"abc"


def test_objects_are_copied_between_stores_that_do_not_know_each_other(store, tmp_path):
    other = LocalStore(tmp_path / "other")
    other.put("there", b"abc")
    assert store.copy_from(other, "there", "here") == ABC
    assert other.copy_from(store, "here", "back") == other.stat("back") == ABC
    for target, source in ((store, other), (other, store)):
        with pytest.raises(ObjectMissing):
            target.copy_from(source, "nowhere", "x")


def test_a_url_to_an_object_is_good_for_a_second_to_a_week(store):
    store.put("a", b"abc")
    for expires_s in (0, -1, 604_801):
        with pytest.raises(StoreError, match="cannot expire after"):
            store.presign("a", expires_s=expires_s)
    try:
        assert "a" in store.presign("a", expires_s=604_800)
    except StoreUnsupported as error:
        assert "cannot sign" in error.message  # noqa: PT017 - the other half of the assertion


def test_many_threads_share_a_store(store, tmp_path):
    def go(number):
        data = os.urandom(1000 + number)
        store.put(f"t/{number}", data)
        info = store.get_file(f"t/{number}", tmp_path / str(number))
        return info == store.stat(f"t/{number}") and (tmp_path / str(number)).read_bytes() == data

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(go, range(24)))
    assert len(list(store.list("t/"))) == 24


def test_a_store_goes_to_another_process_as_text(store):
    store.put("a", b"abc")
    assert pickle.loads(pickle.dumps(store)).stat("a") == ABC


def test_the_address_opens_the_same_store(store):
    assert not store.url.endswith("/")
    if not store.url.startswith("fsspec-"):
        store.put("a", b"abc")
        assert open_store(store.url).stat("a") == open_store(f"{store.url}/").stat("a") == ABC


def test_a_full_disk_under_a_download_is_named_and_leaves_nothing(store, small_disk):
    store.put("a", b"x" * 100_000)
    with pytest.raises(StoreFull, match=f"no room left in {small_disk}") as caught:
        store.get_file("a", small_disk / "copy")
    assert caught.value.hint == f"df -h {small_disk}"
    assert isinstance(caught.value, StoreUnavailable)
    assert list(small_disk.iterdir()) == []
