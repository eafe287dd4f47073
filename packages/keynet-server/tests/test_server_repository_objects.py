"""Object stores have no rename: a server killed between any two writes leaves what an engine may load, or nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest

from keynet_core import LocalStore, PackageCorrupt, StoreFull, download_package, open_store, package_key, to_model_name
from keynet_server._errors import RepositoryFailed
from keynet_server._materialize import DirectoryRepository
from keynet_server._object_repository import ObjectRepository
from keynet_server._repository import Earlier, Placement
from keynet_serving import ModelServer

ONES = {"input_0": np.ones((1, 3), np.float32)}
TIMES = to_model_name("times")


class Killed(BaseException):
    """What happens to a process; nothing catches it, and nothing is written afterwards."""


class Mortal(LocalStore):
    """A store whose user is killed before a write."""

    def __init__(self, root, fatal):
        super().__init__(root)
        self.writes = 0
        self.fatal = fatal

    def put(self, key, data):
        return self._survive(lambda: super(Mortal, self).put(key, data))

    def put_file(self, key, source, *, sha256=None):
        return self._survive(lambda: super(Mortal, self).put_file(key, source, sha256=sha256))

    def delete(self, key):
        return self._survive(lambda: super(Mortal, self).delete(key))

    def _survive(self, write):
        self.writes += 1
        if self.writes >= self.fatal:
            raise Killed
        return write()


@dataclass
class Store:
    """Packages out of a real store."""

    store: object
    beside: Earlier = Earlier()

    def fetch(self, placement, into):
        return download_package(self.store, placement.model, placement.digest, into)

    def earlier(self, placement, package):
        return self.beside


def to_placement(published, number):
    return Placement(model=published.model, number=number, version=str(number), digest=published.digest)


def answers(root):
    """Return what an engine that loads all it finds, configured or not, answers: version to factor."""
    with ModelServer(root, control_mode="none") as server:
        server.load_at_start()
        ready = [line.version for line in server.index(only_ready=True)]
        return {each: float(server.infer("times", ONES, version=each)["output_0"][0, 0]) for each in ready}


def deploy(repository, placement, source):
    repository.link(repository.build(placement, source))
    repository.prune(placement.model)


def unload(repository, _placement, _source):
    repository.unlink(TIMES)


def fail(repository, placement, source):
    repository.build(placement, source)
    repository.discard(placement)


OLD, NEW, BOTH = {"1": 2.0}, {"2": 3.0}, {"1": 2.0, "2": 3.0}


@pytest.mark.parametrize(
    ("begin_with", "act", "beside", "allowed"),
    [
        (None, deploy, False, ({}, NEW)),
        ("old", deploy, False, (OLD, NEW)),
        ("old", deploy, True, (OLD, BOTH)),
        ("old", unload, False, (OLD, {})),
        ("old", fail, False, (OLD,)),
        (None, fail, False, ({},)),
    ],
    ids=["first", "replace", "beside", "unload", "fail", "first fails"],
)
def test_killed_at_any_write_an_engine_finds_the_old_or_the_new_and_the_next_try_finishes(
    publishing, tmp_path, begin_with, act, beside, allowed
):
    old, new = to_placement(publishing.publish("times", 2.0), 1), to_placement(publishing.publish("times", 3.0), 2)
    source = Store(publishing.store)
    begun = tmp_path / "begun"
    begun.mkdir()
    if begin_with:
        deploy(ObjectRepository(LocalStore(begun), tmp_path / "aside"), old, source)
    source.beside = Earlier(placements=(old,)) if beside else Earlier()
    fatal, seen = 0, []
    while True:
        fatal += 1
        root = tmp_path / f"killed-{fatal}"
        shutil.copytree(begun, root)
        try:
            act(ObjectRepository(Mortal(root, fatal), tmp_path / "aside"), new, source)
        except Killed:
            found = answers(root)
            assert found in allowed, f"killed at write {fatal}, an engine finds {found}"
            seen.append(found)
            act(ObjectRepository(LocalStore(root), tmp_path / "aside"), new, source)
            assert answers(root) == allowed[-1]
            continue
        break
    assert fatal > 3
    assert seen[0] == allowed[0]


def test_what_was_removed_behind_the_back_is_noticed_and_put_again(publishing, tmp_path):
    placement, source = to_placement(publishing.publish("times", 2.0), 1), Store(publishing.store)
    store = LocalStore(tmp_path / "serving")
    repository = ObjectRepository(store, tmp_path / "aside")
    deploy(repository, placement, source)
    kept = {key: store.get(key, max_bytes=1 << 20) for key in store.list("times/")}
    for key in kept:
        if key != "times/config.pbtxt":
            store.delete(key)
            assert repository.has(placement) is False
        if key not in {"times/config.pbtxt", "times/1/linked.pbtxt"}:
            assert repository.broken() == ["times"]
        repository.link(repository.build(placement, source))
        assert repository.has(placement)
        assert {key: store.get(key, max_bytes=1 << 20) for key in store.list("times/")} == kept
        assert repository.broken() == []


def test_a_switch_that_was_removed_behind_the_back_is_not_linked(publishing, tmp_path):
    placement, source = to_placement(publishing.publish("times", 2.0), 1), Store(publishing.store)
    store = LocalStore(tmp_path / "serving")
    repository = ObjectRepository(store, tmp_path / "aside")
    deploy(repository, placement, source)
    store.delete("times/config.pbtxt")
    assert repository.linked(TIMES) is None
    deploy(repository, placement, source)
    assert answers(store.root) == OLD


def test_a_disk_without_room_for_packages_on_their_way_postpones(publishing, tmp_path):
    (tmp_path / "aside").write_bytes(b"no directory can be made here")
    repository = ObjectRepository(LocalStore(tmp_path / "serving"), tmp_path / "aside")
    with pytest.raises(RepositoryFailed, match="cannot be written"):
        repository.build(to_placement(publishing.publish("times", 2.0), 1), Store(publishing.store))
    assert list(repository.store.list("")) == []


@pytest.fixture
def on_ceph(ceph, monkeypatch, publishing):
    """Return an address below one bucket of Ceph, and a package that is stored in the same bucket."""
    for name, value in ceph.environ().items():
        monkeypatch.setenv(name, value)
    bucket = ceph.bucket()
    publishing.store = open_store(f"s3://{bucket}")
    return f"s3://{bucket}/serving", to_placement(publishing.publish("times", 2.0), 1), publishing.store


def test_on_one_server_the_bytes_of_a_package_are_fetched_and_never_sent(on_ceph, tmp_path, monkeypatch):
    url, placement, packages = on_ceph
    repository = ObjectRepository(open_store(url), tmp_path / "aside")

    def never(*_args, **_options):
        raise AssertionError("the bytes were sent again")

    monkeypatch.setattr(repository.store, "put_file", never)
    deploy(repository, placement, Store(packages))
    assert repository.has(placement)


def test_what_changes_on_the_server_after_it_was_verified_is_never_linked(on_ceph, tmp_path, monkeypatch):
    url, placement, packages = on_ceph
    key = f"{package_key(TIMES, placement.digest)}/model.onnx"
    repository = ObjectRepository(open_store(url), tmp_path / "aside")

    class Swapped(Store):
        def fetch(self, placement, into):
            package = super().fetch(placement, into)
            self.store.put(key, b"another model")
            return package

    with pytest.raises(PackageCorrupt, match=r"model.onnx of package times changed"):
        repository.build(placement, Swapped(packages))
    assert repository.linked(TIMES) is None
    assert not repository.has(placement)


def test_a_repository_that_lets_nobody_in_postpones(on_ceph, tmp_path, monkeypatch):
    url, placement, packages = on_ceph
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    repository = ObjectRepository(open_store(url), tmp_path / "aside")
    with pytest.raises(RepositoryFailed) as raised:
        repository.build(placement, Store(packages))
    assert raised.value.may_pass


def test_two_placements_of_one_digest_are_told_apart(publishing, tmp_path):
    placement, source = to_placement(publishing.publish("times", 2.0), 1), Store(publishing.store)
    repository = ObjectRepository(LocalStore(tmp_path / "serving"), tmp_path / "aside")
    deploy(repository, placement, source)
    assert not repository.has(replace(placement, number=2))
    assert not repository.has(replace(placement, version="2"))
    assert not repository.has(replace(placement, digest="sha256:" + "0" * 64))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("root alone can mount a small file system")
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], check=True, timeout=10)
    yield path
    subprocess.run(["umount", str(path)], check=True, timeout=10)


@pytest.mark.parametrize("kind", ["directory", "objects", "on its way"])
def test_a_disk_without_room_leaves_what_is_linked_and_waits(small_disk, publishing, tmp_path, kind):
    roomy = tmp_path / "roomy"
    if kind == "directory":
        repository = DirectoryRepository(small_disk)
    elif kind == "objects":
        repository = ObjectRepository(LocalStore(small_disk), roomy)
    else:
        repository = ObjectRepository(LocalStore(roomy), small_disk / "aside")
    repository.prepare()
    source = Store(publishing.store)
    live = to_placement(publishing.publish("times", 2.0), 1)
    repository.link(repository.build(live, source))
    large = to_placement(publishing.publish("times", 3.0, files={"model.onnx.data": b"\0" * (2 << 20)}), 2)
    with pytest.raises((RepositoryFailed, StoreFull), match=r"(?i)no (space|room) left") as raised:
        repository.build(large, source)
    assert getattr(raised.value, "may_pass", True)
    assert repository.linked("times") == 1
    assert repository.has(live)
    assert not repository.has(large)
    repository.link(repository.build(to_placement(publishing.publish("times", 4.0), 3), source))
    assert repository.linked("times") == 3


@pytest.mark.parametrize(
    ("store", "serving", "told"),
    [
        ("s3://bucket/store", "s3://bucket/models", "in the serving repository: s3://bucket/models/README.txt"),
        ("s3://bucket", "s3://bucket", "packages are stored in s3://bucket/packages/"),
        ("s3://bucket/store", "ftp://bucket", "no engine stores objects at ftp://"),
    ],
)
def test_a_server_without_its_repository_says_so_before_it_listens(tmp_path, store, serving, told):
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("KEYNET", "AWS", "MLFLOW"))}
    own = {
        "KEYNET_HOME": str(tmp_path),
        "KEYNET_TOKEN": "t",
        "KEYNET_STORE": store,
        "KEYNET_SERVING_REPOSITORY": serving,
        "TRITON_URL": "http://127.0.0.1:9",
        "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    command = [sys.executable, "-c", "from keynet_server._cli import main; main()", "server"]
    done = subprocess.run(command, env=kept | own, capture_output=True, text=True, timeout=120)
    assert done.returncode not in {0, None}
    assert told in done.stderr
    assert "Traceback" not in done.stderr
