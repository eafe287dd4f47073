"""Objects as files: keys that stay inside, puts that are whole, and disks that are full."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from keynet_core import (
    LocalStore,
    ObjectInfo,
    ObjectMissing,
    StoreError,
    StoreFull,
    StoreUnavailable,
    StoreUnsupported,
    open_store,
)

ABC_SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
ABC = ObjectInfo(size_bytes=3, sha256=ABC_SHA256)


@pytest.mark.parametrize("key", ["a", "a/b/c"])
def test_a_key_where_another_object_stands_in_the_way_is_refused(store, key):
    store.put("a/b", b"abc")
    with pytest.raises(StoreError, match="has no place for") as caught:
        store.put(key, b"x")
    assert not isinstance(caught.value, ObjectMissing | StoreUnavailable)


def test_a_key_too_long_for_the_file_system_is_refused(store):
    with pytest.raises(StoreError, match="has no place for"):
        store.put("x" * 256, b"x")


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
@pytest.mark.parametrize("key", ["link", "folder/passwd", "loop", "loop/below"])
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


def test_a_full_disk_leaves_the_old_object_and_no_rubbish(small_disk, tmp_path):
    store = LocalStore(small_disk)
    store.put("a", b"abc")
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    for put in (lambda: store.put("a", b"x" * 100_000), lambda: store.put_file("a", tmp_path / "large")):
        with pytest.raises(StoreFull) as caught:
            put()
        assert caught.value.hint == f"df -h {small_disk}"
    assert [path.name for path in small_disk.iterdir()] == ["a"]
    assert store.stat("a") == ABC


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


@pytest.mark.parametrize("url", ["ftp://key:hunter2@host/x", "ftp://host?secret=hunter2", "FTP://host", "ftp:host["])
def test_a_scheme_without_an_engine_is_refused_without_its_password(url):
    with pytest.raises(StoreUnsupported, match=r"at ftp:// \([fF][tT][pP]:.*host.*\); known: file://, s3://") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)
    assert "KEYNET_STORE" in str(caught.value.hint)


def test_a_url_to_an_object_opens_it(store):
    store.put("a b", b"abc")
    url = store.presign("a b", expires_s=60)
    assert open_store(url.rpartition("/")[0]).stat("a b") == ABC


def test_a_copy_is_no_link(store):
    store.put("a", b"abc")
    store.copy_from(store, "a", "b")
    (store.root / "a").write_bytes(b"spoilt")
    assert store.stat("b") == ABC


KILLED = """
import os, signal, sys
from pathlib import Path
from keynet_core import LocalStore, replacing
store = LocalStore(Path(sys.argv[1]))
with replacing(store.root / "a" / "b") as staged:
    staged.write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_put_left_is_swept_and_what_a_living_one_writes_stays(store, start):
    writer = start(KILLED, store.root)
    assert writer.stdout.readline() == "writing\n"
    LocalStore(store.root).put("a/c", b"abc")
    assert len(list((store.root / "a").glob(".b.*.part"))) == 1
    writer.communicate("die\n", timeout=30)
    LocalStore(store.root).put("a/c", b"abc")
    assert [path.name for path in (store.root / "a").iterdir()] == ["c"]


def test_only_files_that_this_store_names_so_are_swept(store):
    store.put("a/b", b"abc")
    others = {".b.part", ".b.0123456789AB.part", "b.0123456789ab.part", "..part"}
    for name in others:
        (store.root / "a" / name).write_bytes(b"")
    (store.root / "a" / ".b.0123456789ab.part").write_bytes(b"")
    LocalStore(store.root).put("a/b", b"abc")
    assert {path.name for path in (store.root / "a").iterdir()} == {"b", *others}


def test_an_object_has_the_permissions_that_the_umask_leaves(store):
    for umask, mode in ((0o077, 0o600), (0o022, 0o644), (0o002, 0o664)):
        before = os.umask(umask)
        try:
            store.put("a", b"abc")
        finally:
            os.umask(before)
        assert stat.S_IMODE((store.root / "a").stat().st_mode) == mode


def test_a_store_that_was_removed_is_empty_again(store):
    store.put("a", b"abc")
    shutil.rmtree(store.root)
    assert store.stat("a") is None
    assert store.put("a", b"abc") == ABC
