"""Packages into a store and out of it, with every put failing once."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest

from keynet_core import (
    LocalStore,
    Manifest,
    ObjectMissing,
    PackageCorrupt,
    PackageInvalid,
    StoreUnavailable,
    download_package,
    package_key,
    read_manifest,
    upload_package,
)


class CountedStore(LocalStore):
    """A local store that counts its puts and fails at one of them, before or after it was done."""

    def __init__(self, root, *, fail_at=None, after=False):
        super().__init__(root)
        self.asked, self.puts = itertools.count(1), []
        self.fail_at, self.after = fail_at, after

    def put(self, key, data):
        return self._counted(key, lambda: LocalStore.put(self, key, data))

    def put_file(self, key, source, *, sha256=None):
        return self._counted(key, lambda: LocalStore.put_file(self, key, source, sha256=sha256))

    def _counted(self, key, put):
        fails = next(self.asked) == self.fail_at
        if fails and not self.after:
            raise StoreUnavailable("the store went away")
        info = put()
        self.puts.append(key.rpartition("/")[2])
        if fails:
            raise StoreUnavailable("the store went away after it had stored the bytes")
        return info


@pytest.fixture
def package(tmp_path, make_package):
    return make_package(tmp_path / "package")


def key_of(package):
    return package_key(package.manifest.name, package.digest)


def fetch(store, package, directory):
    return download_package(store, package.manifest.name, package.digest, directory)


def test_the_key_has_name_and_digits(package):
    assert key_of(package) == f"packages/mnist/{package.digest.removeprefix('sha256:')}"


def test_upload_returns_the_address_and_writes_the_manifest_last(package, tmp_path):
    store = CountedStore(tmp_path / "store")
    assert upload_package(package, store) == f"{store.url}/{key_of(package)}"
    assert len(store.puts) == 5
    assert store.puts[-1] == "manifest.json"


def test_a_second_upload_sends_nothing(package, tmp_path):
    upload_package(package, CountedStore(tmp_path / "store"))
    again = CountedStore(tmp_path / "store")
    upload_package(package, again)
    assert again.puts == []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("fail_at", [1, 2, 3, 4, 5])
def test_an_upload_that_failed_anywhere_shows_no_half_and_is_completed_by_the_next(package, tmp_path, fail_at, after):
    store = CountedStore(tmp_path / "store", fail_at=fail_at, after=after)
    with pytest.raises(StoreUnavailable):
        upload_package(package, store)
    visible = store.stat(f"{key_of(package)}/manifest.json") is not None
    assert visible == (fail_at == 5 and after)

    again = CountedStore(tmp_path / "store")
    upload_package(package, again)
    assert sorted([*store.puts, *again.puts]) == sorted(each.rpartition("/")[2] for each in again.list(""))
    fetch(again, package, tmp_path / "fetched").verify()


@pytest.mark.parametrize("name", ["model.onnx", "data/model.onnx.data"])
@pytest.mark.parametrize("wrong", [b"", b"wrong", None], ids=["empty", "wrong", "missing"])
def test_a_wrong_object_is_repaired_by_the_next_upload(package, store, tmp_path, name, wrong):
    upload_package(package, store)
    store.delete(f"{key_of(package)}/{name}")
    if wrong is not None:
        store.put(f"{key_of(package)}/{name}", wrong)
    with pytest.raises(PackageCorrupt):
        fetch(store, package, tmp_path / "broken")
    upload_package(package, store)
    fetch(store, package, tmp_path / "fetched").verify()


@pytest.mark.parametrize("text", [b"", b"{}", b"[" * 100_000])
def test_a_wrong_manifest_is_repaired_by_the_next_upload(package, store, text):
    upload_package(package, store)
    store.put(f"{key_of(package)}/manifest.json", text)
    upload_package(package, store)
    assert read_manifest(store, package.manifest.name, package.digest) == package.manifest


def test_two_runs_with_the_same_model_keep_the_first_ones_evidence(store, tmp_path, make_package):
    first, second = make_package(tmp_path / "a", probe=1.0), make_package(tmp_path / "b", probe=2.0)
    assert upload_package(first, store) == upload_package(second, store)
    fetched = fetch(store, second, tmp_path / "fetched")
    fetched.verify()
    assert fetched.manifest == first.manifest
    assert len(list(store.list(key_of(first)))) == 5


def test_evidence_that_was_lost_is_replaced_by_the_second_runs(store, tmp_path, make_package):
    first, second = make_package(tmp_path / "a", probe=1.0), make_package(tmp_path / "b", probe=2.0)
    upload_package(first, store)
    store.delete(f"{key_of(first)}/{first.manifest.evidence[0].path}")
    upload_package(second, store)
    fetched = fetch(store, first, tmp_path / "fetched")
    fetched.verify()
    assert fetched.probe().outputs["y"].tolist() == [[4.0]]


def test_a_package_that_lost_a_file_is_corrupt_not_missing_in_the_store(package, store):
    (package.directory / "model.onnx").unlink()
    with pytest.raises(PackageCorrupt, match=r"mnist has no file model\.onnx"):
        upload_package(package, store)
    assert store.stat(f"{key_of(package)}/manifest.json") is None


def test_a_package_that_changed_after_it_was_built_is_not_vouched_for(package, store):
    (package.directory / "model.onnx").write_bytes(b"other")
    with pytest.raises(PackageCorrupt, match="changed after it was packaged"):
        upload_package(package, store)
    assert store.stat(f"{key_of(package)}/manifest.json") is None


def test_a_package_that_nobody_stored_is_missing(package, store, tmp_path):
    with pytest.raises(ObjectMissing):
        fetch(store, package, tmp_path / "fetched")


def test_a_manifest_under_another_packages_key_is_not_believed(package, store, tmp_path, make_package):
    other = make_package(tmp_path / "other", name="other")
    store.put(f"{key_of(package)}/manifest.json", other.manifest.to_json())
    with pytest.raises(PackageCorrupt, match="the store has other"):
        fetch(store, package, tmp_path / "fetched")


def test_a_manifest_that_is_too_large_is_not_fetched(package, store):
    store.put(f"{key_of(package)}/manifest.json", b" " * (4 * 1024 * 1024 + 1))
    with pytest.raises(PackageInvalid, match="over 4194304"):
        read_manifest(store, package.manifest.name, package.digest)


def test_a_manifest_that_climbs_out_writes_nothing(package, store, tmp_path):
    told = json.loads(package.manifest.to_json())
    told["evidence"][0]["path"] = "../../escaped"
    store.put(f"{key_of(package)}/manifest.json", json.dumps(told).encode())
    with pytest.raises(PackageInvalid):
        fetch(store, package, tmp_path / "a" / "b")
    assert not (tmp_path / "escaped").exists()


def test_what_was_fetched_opens_like_what_was_built(package, store, tmp_path):
    upload_package(package, store)
    shutil.rmtree(package.directory)
    fetched = fetch(store, package, tmp_path / "fetched")
    fetched.verify()
    assert Manifest.from_json((tmp_path / "fetched" / "manifest.json").read_bytes()) == package.manifest
