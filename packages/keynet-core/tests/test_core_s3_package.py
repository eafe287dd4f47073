"""A package into S3 and out of it: many files at once, the manifest last, and nothing twice after a kill."""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import contextmanager

import pytest

from keynet_core import (
    ModelPackage,
    ObjectMissing,
    PackageCorrupt,
    PackageInvalid,
    StoreUnavailable,
    download_package,
    open_store,
    package_key,
    read_manifest,
    to_model_name,
    upload_package,
)

LARGE = 24_000_000
SMALL_FILES = 60


@pytest.fixture
def package(tmp_path, signature, make_probe):
    """A package with a file of two parts and many small ones."""
    directory = tmp_path / "package"
    directory.mkdir()
    (directory / "model.onnx").write_bytes(os.urandom(LARGE))
    for number in range(SMALL_FILES):
        (directory / f"labels-{number}.txt").write_bytes(os.urandom(1000))
    return ModelPackage.build(directory, name=to_model_name("mnist"), signature=signature, probe=make_probe())


def fetch(store, package, directory):
    return download_package(store, package.manifest.name, package.digest, directory)


def key_of(package):
    return package_key(package.manifest.name, package.digest)


@contextmanager
def sent_by(store):
    """Yield the keys that the store's client puts, whole or as a part."""
    keys, events = [], store._bucket.client.meta.events

    def note(params, **_told):
        keys.append(params["url_path"].rpartition("/")[2])

    kinds = [f"before-call.s3.{each}" for each in ("PutObject", "UploadPart")]
    for each in kinds:
        events.register(each, note)
    try:
        yield keys
    finally:
        for each in kinds:
            events.unregister(each, note)


@pytest.mark.parametrize("engine", ["ceph", "swift"])
def test_a_package_goes_there_and_comes_back(open_engine, engine, package, tmp_path):
    store = open_engine(engine)
    with sent_by(store) as sent:
        assert upload_package(package, store) == f"{store.url}/{key_of(package)}"
    assert sent[-1] == "manifest.json"
    assert len(sent) == SMALL_FILES + 4
    fetch(store, package, tmp_path / "fetched").verify()
    with sent_by(store) as sent:
        upload_package(package, store)
    assert sent == []


@contextmanager
def requests_of(store):
    """Yield the names of the requests that the store's client makes."""
    asked, events = [], store._bucket.client.meta.events

    def note(model, **_told):
        asked.append(model.name)

    events.register("before-call.s3", note)
    try:
        yield asked
    finally:
        events.unregister("before-call.s3", note)


@pytest.mark.parametrize("engine", ["ceph", "swift"])
def test_a_manifest_is_read_with_one_request_and_too_large_a_one_not_at_all(open_engine, engine, package):
    store = open_engine(engine)
    upload_package(package, store)
    with requests_of(store) as asked:
        assert read_manifest(store, package.manifest.name, package.digest) == package.manifest
    assert asked == ["GetObject"]
    store.put(f"{key_of(package)}/manifest.json", b" " * (4 * 1024 * 1024 + 1))
    with pytest.raises(PackageInvalid, match="has over 4194304 bytes"):
        read_manifest(store, package.manifest.name, package.digest)


def test_a_damaged_manifest_is_a_corrupt_package_and_repaired_by_the_next_upload(ceph, open_engine, package, tmp_path):
    store = open_engine("ceph")
    upload_package(package, store)
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    place = {"Bucket": bucket, "Key": f"{prefix}/{key_of(package)}/manifest.json"}
    ceph.client().put_object(**place, Body=package.manifest.to_json() + b" ", Metadata={"keynet-sha256": "0" * 64})
    with pytest.raises(PackageCorrupt, match="the manifest of package mnist is damaged"):
        fetch(store, package, tmp_path / "damaged")
    upload_package(package, store)
    fetch(store, package, tmp_path / "fetched").verify()


def settled(store, key):
    """Return how many objects there are when no more appear: a server finishes what a killed client had sent."""
    seen, deadline = -1, time.monotonic() + 60
    while (there := len(list(store.list(key)))) != seen:
        assert time.monotonic() < deadline
        seen = there
        time.sleep(0.5)
    return there


KILLED = """
import os, signal, sys, threading
from pathlib import Path
from keynet_core import ModelPackage, open_store, upload_package
store = open_store(sys.argv[1])
left = threading.Semaphore(int(sys.argv[3]))
def note(**told):
    if not left.acquire(blocking=False):
        os.kill(os.getpid(), signal.SIGKILL)
for each in ("PutObject", "UploadPart"):
    store._bucket.client.meta.events.register(f"after-call.s3.{each}", note)
upload_package(ModelPackage.open(Path(sys.argv[2])), store)
"""


def test_a_killed_upload_shows_no_half_and_is_completed_without_sending_anything_twice(
    open_engine, package, tmp_path, python
):
    store = open_engine("ceph")
    key, there, total = key_of(package), 0, SMALL_FILES + 2
    for allowed in (1, 5, random.Random(7).randint(6, 12), None):
        # What was on its way when a kill came may be there too: the last one comes half-way through what is missing.
        done = python(KILLED, store.url, package.directory, allowed or (total - there) // 2)
        assert done.returncode == -9, done.stderr
        assert store.stat(f"{key}/manifest.json") is None
        with pytest.raises(ObjectMissing):
            fetch(store, package, tmp_path / "early")
        before, there = there, settled(store, key)
        assert there >= before
    assert there > 10
    is_model_there = store.stat(f"{key}/model.onnx") is not None
    with sent_by(store) as sent:
        upload_package(package, store)
    # The model goes in two parts: none, one or both of them were there when the last kill came.
    assert sent.count("model.onnx") <= (0 if is_model_there else 2)
    small = [each for each in sent if each != "model.onnx"]
    assert len(set(small)) == len(small) == total + is_model_there - there
    fetch(store, package, tmp_path / "fetched").verify()


def test_a_server_that_dies_in_the_middle_shows_no_half_and_the_next_upload_completes(
    ceph, open_engine, package, tmp_path
):
    store = open_engine("ceph")
    left = threading.Semaphore(20)

    def kill(**_told):
        if not left.acquire(blocking=False):
            ceph.kill()

    events = store._bucket.client.meta.events
    events.register("after-call.s3.PutObject", kill)
    try:
        with pytest.raises(StoreUnavailable):
            upload_package(package, store)
    finally:
        events.unregister("after-call.s3.PutObject", kill)
    ceph.start()
    assert store.stat(f"{key_of(package)}/manifest.json") is None
    with sent_by(store) as sent:
        upload_package(package, store)
    assert len(sent) <= SMALL_FILES + 4 - 20
    fetch(store, package, tmp_path / "fetched").verify()


def test_a_reader_that_looks_all_the_time_sees_no_package_or_a_whole_one(open_engine, package, tmp_path):
    store = open_engine("ceph")
    name, digest = package.manifest.name, package.digest
    ended, seen = threading.Event(), []

    def look():
        reader = open_store(store.url)
        while not ended.is_set():
            try:
                manifest = read_manifest(reader, name, digest)
            except ObjectMissing:
                continue
            seen.append([each.path for each in manifest.files if reader.stat(f"{key_of(package)}/{each.path}") is None])
            break

    looking = threading.Thread(target=look)
    looking.start()
    upload_package(package, store)
    ended.wait(0.5)
    ended.set()
    looking.join()
    assert seen in ([], [[]])


def test_a_full_disk_under_a_download_leaves_no_package(open_engine, package, small_disk):
    store = open_engine("ceph")
    upload_package(package, store)
    with pytest.raises(StoreUnavailable, match=f"no room left in {small_disk}"):
        fetch(store, package, small_disk / "fetched")
    assert not (small_disk / "fetched" / "manifest.json").exists()
    assert not list(small_disk.rglob(".*.part"))
