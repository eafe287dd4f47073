"""Objects as files: keys that stay inside, puts that are whole, and disks that are full."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keynet_core import (
    LocalStore,
    ObjectInfo,
    ObjectMissing,
    StoreError,
    StoreFull,
    StoreUnavailable,
    StoreUnsupported,
    open_store,
    to_key,
)

ABC_SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
ABC = ObjectInfo(size_bytes=3, sha256=ABC_SHA256)


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


@pytest.mark.parametrize(
    "key", ["모델/가중치.bin", "a b/%20?#.txt", "x" * 255, "가" * 85, ".hidden", "..a", "-", "a.part"]
)
def test_a_key_in_any_letters_is_stored_listed_and_found(store, key):
    store.put(key, b"abc")
    assert list(store.list("")) == [key]
    assert store.stat(key) == ABC


def test_what_is_not_there_is_missing(store, tmp_path):
    assert store.stat("a") is None
    assert list(store.list("")) == list(store.list("a/b/")) == []
    store.delete("a")
    for ask in (
        lambda: store.get("a", max_bytes=1),
        lambda: store.get_file("a", tmp_path / "t"),
        lambda: store.presign("a", expires_s=1),
    ):
        with pytest.raises(ObjectMissing, match="has no object a"):
            ask()
    assert not (tmp_path / "t").exists()


def test_a_folder_is_no_object(store):
    store.put("a/b", b"abc")
    store.delete("a")
    assert store.stat("a") is None
    assert store.stat("a/b/c") is None
    with pytest.raises(ObjectMissing):
        store.get("a", max_bytes=1)
    assert list(store.list("")) == ["a/b"]


@pytest.mark.parametrize("key", ["a", "a/b/c"])
def test_a_key_where_another_object_stands_in_the_way_is_refused(store, key):
    store.put("a/b", b"abc")
    with pytest.raises(StoreError, match="has no place for") as caught:
        store.put(key, b"x")
    assert not isinstance(caught.value, ObjectMissing | StoreUnavailable)


def test_a_key_too_long_for_the_file_system_is_refused(store):
    with pytest.raises(StoreError, match="has no place for"):
        store.put("x" * 256, b"x")


def test_a_deleted_object_is_gone(store):
    store.put("a", b"abc")
    store.delete("a")
    assert store.stat("a") is None


def test_more_bytes_than_asked_for_are_refused(store):
    store.put("a", b"abc")
    with pytest.raises(StoreError, match="larger than the 2 bytes"):
        store.get("a", max_bytes=2)


def test_list_keeps_to_its_prefix_in_order(store):
    for key in ("b/2", "a/10", "a/1", "ab"):
        store.put(key, b"")
    assert list(store.list("")) == ["a/1", "a/10", "ab", "b/2"]
    assert list(store.list("a")) == ["a/1", "a/10", "ab"]
    assert list(store.list("a/1")) == ["a/1", "a/10"]
    assert list(store.list("a/1/")) == []


@pytest.mark.parametrize("prefix", ["../", "../x", "/etc/", "/", "a/../../", "//"])
def test_list_does_not_look_outside(store, tmp_path, prefix):
    (tmp_path / "secret").write_bytes(b"")
    store.put("a/b", b"")
    with pytest.raises(StoreError):
        list(store.list(prefix))


def test_list_hides_what_is_being_written_and_what_is_linked(store):
    store.put("a/b", b"")
    (store.root / "a" / ".b.x1y2.part").write_bytes(b"half")
    (store.root / "a" / "link").symlink_to("/etc/passwd")
    (store.root / "linked").symlink_to("/etc")
    assert list(store.list("")) == ["a/b"]


def test_the_name_of_a_file_that_is_being_written_is_no_key(store):
    with pytest.raises(StoreError, match="still being written"):
        store.put("a/.b.part", b"x")


@pytest.mark.parametrize("method", ["put", "put_file", "get", "get_file", "stat", "delete", "presign"])
@pytest.mark.parametrize("key", ["link", "folder/passwd", "loop"])
def test_a_link_out_of_the_store_is_not_followed(store, tmp_path, method, key):
    store.put("a", b"abc")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_bytes(b"secret")
    (store.root / "link").symlink_to(outside / "passwd")
    (store.root / "folder").symlink_to(outside)
    (store.root / "loop").symlink_to("loop")
    arguments = {
        "put": (b"x",),
        "put_file": (outside / "passwd",),
        "get_file": (tmp_path / "t",),
    }.get(method, ())
    options = {"get": {"max_bytes": 9}, "presign": {"expires_s": 9}}.get(method, {})
    with pytest.raises(StoreError, match="symbolic link"):
        getattr(store, method)(key, *arguments, **options)
    assert (outside / "passwd").read_bytes() == b"secret"


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


@pytest.mark.parametrize(
    "key",
    ["", ".", "..", "a/..", "../a", "/a", "a/", "a//b", "./a", "a\\b", "a\x00", "a\x7f", "\ud800", "x" * 1025, None, 3],
)
def test_what_is_no_key_is_refused(key):
    with pytest.raises(StoreError, match="is no key"):
        to_key(key)


def test_a_reader_never_sees_half_an_object(store):
    old, new = b"o" * 300_000, b"n" * 300_000
    store.put("a", old)
    stop, seen = threading.Event(), set()

    def look():
        while not stop.is_set():
            seen.add(store.get("a", max_bytes=400_000))

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(20):
        store.put("a", new)
        store.put("a", old)
    stop.set()
    reader.join()
    assert seen <= {old, new}


def test_a_file_to_store_that_is_not_there_is_no_missing_object(store, tmp_path):
    with pytest.raises(StoreError, match="there is no file") as caught:
        store.put_file("a", tmp_path / "nowhere")
    assert not isinstance(caught.value, ObjectMissing)


LIMITED = """
import resource, signal, sys
from pathlib import Path
from keynet_core import LocalStore, StoreFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
store = LocalStore(Path(sys.argv[1]))
for put in (lambda: store.put("a", b"x" * 2000), lambda: store.put_file("a", Path(sys.argv[2]))):
    try:
        put()
    except StoreFull as error:
        print(error.message)
"""


def test_a_file_that_grows_over_the_limit_leaves_the_old_object_and_no_rubbish(store, tmp_path, python):
    store.put("a", b"abc")
    (tmp_path / "large").write_bytes(b"x" * 5000)
    done = python(LIMITED, store.root, tmp_path / "large")
    assert done.stdout.splitlines() == [f"no room left in {store.root} for a"] * 2, done.stderr
    assert [path.name for path in store.root.iterdir()] == ["a"]
    assert store.stat("a") == ABC


@pytest.fixture
def tiny(tmp_path):
    """A file system of 64 KiB."""
    where = tmp_path / "tiny"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(where)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot be run here: {' '.join(command)}: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk_leaves_the_old_object_and_no_rubbish(tiny, tmp_path):
    store = LocalStore(tiny)
    store.put("a", b"abc")
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    for put in (lambda: store.put("a", b"x" * 100_000), lambda: store.put_file("a", tmp_path / "large")):
        with pytest.raises(StoreFull) as caught:
            put()
        assert caught.value.hint == f"df -h {tiny}"
    assert [path.name for path in tiny.iterdir()] == ["a"]
    assert store.stat("a") == ABC


def test_a_full_disk_under_a_download_is_named_and_not_the_store(tiny, store):
    store.put("a", b"x" * 100_000)
    with pytest.raises(StoreFull, match=f"no room left in {tiny}"):
        store.get_file("a", tiny / "copy")
    assert list(tiny.iterdir()) == []


DENIED = """
import hashlib, os, sys
from pathlib import Path
from keynet_core import LocalStore, StoreUnavailable
store = LocalStore(Path(sys.argv[1]))
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for ask in (
    lambda: store.put("new", b"x"), lambda: store.put("closed/b", b"x"), lambda: store.get("private", max_bytes=9),
    lambda: store.stat("private"), lambda: store.stat("closed/a"), lambda: store.delete("private"),
    lambda: list(store.list("")),
):
    try:
        print("got", ask())
    except StoreUnavailable as error:
        print(error.message)
"""


def test_what_the_permissions_forbid_is_unavailable_and_never_empty(python):
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else: sudo pytest")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        store = LocalStore(Path(directory, "store"))
        store.put("private", b"abc")
        store.put("closed/a", b"abc")
        (store.root / "private").chmod(0o600)
        (store.root / "closed").chmod(0o700)
        done = python(DENIED, store.root)
    lines = done.stdout.splitlines()
    assert len(lines) == 7, done.stderr
    assert all("cannot be used" in line and "Permission denied" in line for line in lines), lines


def test_a_directory_as_store_is_a_url_or_a_path(tmp_path, monkeypatch):
    root = tmp_path / "my store 가"
    monkeypatch.chdir(tmp_path)
    for url in (root.as_uri(), str(root), f"file://localhost{root.as_uri().removeprefix('file://')}", "my store 가"):
        assert open_store(url).root == root
    assert open_store(LocalStore(root).url).url == root.as_uri()


@pytest.mark.parametrize("url", ["file://elsewhere/srv", "file://", "", " ", "file://[", "~no-such-user/x"])
def test_an_address_that_names_no_local_directory_is_refused(url):
    with pytest.raises(StoreError):
        open_store(url)


@pytest.mark.parametrize(
    "url", ["s3://key:hunter2@bucket/x", "s3://bucket?secret=hunter2", "S3://bucket", "s3:bucket", "s3://bucket["]
)
def test_a_scheme_without_an_engine_is_refused_without_its_password(url):
    with pytest.raises(StoreUnsupported, match=r"at s3:// \([sS]3:.*bucket.*\); known: file://") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)
    assert "KEYNET_STORE" in str(caught.value.hint)


def test_a_url_to_an_object_opens_it_and_needs_a_future(store):
    store.put("a b", b"abc")
    url = store.presign("a b", expires_s=60)
    assert open_store(url.rpartition("/")[0]).stat("a b") == ABC
    with pytest.raises(StoreError, match="cannot expire"):
        store.presign("a b", expires_s=0)


def test_a_store_that_was_removed_is_empty_again(store):
    store.put("a", b"abc")
    shutil.rmtree(store.root)
    assert store.stat("a") is None
    assert store.put("a", b"abc") == ABC
