"""One suite for every serving repository; what stands in it is asked through the embedded model server."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from keynet_core import LocalStore, ObjectMissing, PackageCorrupt, PackageInvalid, StoreUnavailable, open_store
from keynet_server._errors import RepositoryFailed
from keynet_server._materialize import DirectoryRepository
from keynet_server._object_repository import ObjectRepository
from keynet_server._repository import Earlier, Placement, check_apart, open_repository
from keynet_serving import ModelServer

ONES = {"input_0": np.ones((1, 3), np.float32)}


@dataclass
class Shelf:
    """A source of packages that were built beforehand."""

    publishing: object
    packages: dict[str, object] = field(default_factory=dict)
    beside: Earlier = Earlier()
    gone: set[str] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)

    @property
    def store(self):
        return self.publishing.store

    def placement(self, number, version, factor, **options):
        """Return where a package that multiplies by `factor` is to stand."""
        package = self.publishing.package("times", factor, **options)
        self.packages[package.digest] = package
        return Placement(model=package.manifest.name, number=number, version=version, digest=package.digest)

    def fetch(self, placement, into):
        if placement.digest in self.gone:
            raise ObjectMissing("it is gone")
        self.fetched.append(placement.digest)
        package = self.packages[placement.digest]
        shutil.copytree(package.directory, into, dirs_exist_ok=True)
        return replace(package, directory=into)

    def earlier(self, placement, package):
        return self.beside


ON_SWIFT_TOO = pytest.mark.parametrize("repository", ["directory", "objects", "ceph", "swift"], indirect=True)
"""Swift takes ten times as long as Ceph."""


@pytest.fixture(params=["directory", "objects", "ceph"])
def repository(request, tmp_path, monkeypatch):
    if request.param == "directory":
        repository = DirectoryRepository(tmp_path / "serving")
    elif request.param == "objects":
        repository = ObjectRepository(LocalStore(tmp_path / "serving"), tmp_path / "aside")
    else:
        server = request.getfixturevalue(request.param)
        for name, value in server.environ().items():
            monkeypatch.setenv(name, value)
        repository = ObjectRepository(open_store(f"s3://{server.bucket()}/serving"), tmp_path / "aside")
    repository.prepare()
    return repository


@pytest.fixture
def shelf(publishing):
    return Shelf(publishing)


@pytest.fixture
def answers(repository, tmp_path):
    """Return what an engine that loads all it finds answers: version to factor, and "" to what it answers with."""

    def answers(name="times"):
        with ModelServer(models_of(repository, tmp_path / "copied"), control_mode="none") as server:
            server.load_at_start()
            ready = [line.version for line in server.index(only_ready=True) if line.name == name]
            ask = ["", *ready] if ready else []
            return {version: float(server.infer(name, ONES, version=version)["output_0"][0, 0]) for version in ask}

    return answers


def models_of(repository, copied):
    """Return a directory with what an engine reads; of objects it is a copy, as engines make one."""
    if isinstance(repository, DirectoryRepository):
        return repository.models
    shutil.rmtree(copied, ignore_errors=True)
    copied.mkdir()
    for key in repository.store.list(""):
        (copied / key).parent.mkdir(parents=True, exist_ok=True)
        repository.store.get_file(key, copied / key)
    return copied


def left_over(repository, tmp_path):
    staging = tmp_path / ("serving/staging" if isinstance(repository, DirectoryRepository) else "aside")
    return sorted(path.name for path in staging.iterdir())


@ON_SWIFT_TOO
def test_what_is_built_is_found_once_it_is_linked(repository, shelf, answers, tmp_path):
    placement = shelf.placement(1, "7", 2.0)
    built = repository.build(placement, shelf)
    assert (answers(), repository.linked("times"), repository.links()) == ({}, None, [])
    assert (built.placement, built.versions, built.left_out) == (placement, ("7",), ())
    assert built.probe.outputs["output_0"][0, 1] == 2.0
    repository.link(built)
    assert answers() == {"": 2.0, "7": 2.0}
    assert (repository.linked("times"), repository.links(), repository.has(placement)) == (1, ["times"], True)
    assert left_over(repository, tmp_path) == []


def test_a_package_without_a_probe_says_so(repository, shelf):
    assert repository.build(shelf.placement(1, "1", 2.0, probed=False), shelf).probe is None


def test_what_is_linked_later_takes_the_place_of_what_was(repository, shelf, answers):
    for number, factor in ((1, 2.0), (2, 3.0)):
        built = repository.build(shelf.placement(number, str(number), factor), shelf)
        if number == 2:
            assert answers() == {"": 2.0, "1": 2.0}
        repository.link(built)
    assert answers() == {"": 3.0, "2": 3.0}
    assert repository.linked("times") == 2


def test_going_back_needs_no_more_than_what_stands_there(repository, shelf, answers):
    first, second = shelf.placement(1, "1", 2.0), shelf.placement(2, "2", 3.0)
    for placement in (first, second):
        repository.link(repository.build(placement, shelf))
    fetched = list(shelf.fetched)
    repository.link(repository.build(first, shelf))
    assert answers() == {"": 2.0, "1": 2.0}
    assert shelf.fetched == fetched


def test_a_later_deployment_of_the_same_version_is_linked_as_its_own(repository, shelf, answers):
    first = shelf.placement(1, "1", 2.0)
    for placement in (first, shelf.placement(2, "2", 3.0), replace(first, number=3)):
        repository.link(repository.build(placement, shelf))
    assert repository.linked("times") == 3
    assert answers() == {"": 2.0, "1": 2.0}


def test_another_package_takes_a_version_that_failed(repository, shelf, answers):
    failed = shelf.placement(1, "1", 2.0, files={"model.onnx.data": b"\0" * 8})
    repository.build(failed, shelf)
    repository.discard(failed)
    repository.link(repository.build(shelf.placement(2, "1", 3.0), shelf))
    assert answers() == {"": 3.0, "1": 3.0}


def test_another_package_takes_a_version_that_failed_and_is_still_linked(repository, shelf, answers):
    failed = shelf.placement(1, "1", 2.0)
    repository.link(repository.build(failed, shelf))
    taken = shelf.placement(2, "1", 3.0)
    built = repository.build(taken, shelf)
    assert not repository.has(replace(taken, number=9))
    repository.link(built)
    assert answers() == {"": 3.0, "1": 3.0}
    assert repository.linked("times") == 2


@ON_SWIFT_TOO
def test_unlinking_leaves_nothing_to_find(repository, shelf, answers):
    placement = shelf.placement(1, "1", 2.0)
    repository.link(repository.build(placement, shelf))
    repository.unlink("times")
    repository.unlink("times")
    repository.unlink("never")
    assert (answers(), repository.linked("times"), repository.links()) == ({}, None, [])
    repository.link(repository.build(placement, shelf))
    assert answers() == {"": 2.0, "1": 2.0}


CONFIG_OF_TWO = """name: "times" backend: "onnxruntime" max_batch_size: 8
input { name: "input_0" data_type: TYPE_FP32 dims: [3] } output { name: "output_0" data_type: TYPE_FP32 dims: [3] }
instance_group { count: 1 } version_policy { latest { num_versions: 2 } }
"""
TWO = {"config.pbtxt": CONFIG_OF_TWO.encode()}


@ON_SWIFT_TOO
def test_an_earlier_version_is_served_beside_and_the_highest_answers(repository, shelf, answers):
    first, second, third = (shelf.placement(n, str(n), n + 1.0, files=TWO) for n in (1, 2, 3))
    repository.link(repository.build(first, shelf))
    shelf.beside = Earlier(placements=(first,))
    built = repository.build(second, shelf)
    assert answers() == {"": 2.0, "1": 2.0}
    repository.link(built)
    assert built.versions == ("1", "2")
    assert answers() == {"": 3.0, "1": 2.0, "2": 3.0}
    shelf.beside = Earlier(placements=(second,))
    repository.link(repository.build(third, shelf))
    repository.prune("times")
    assert answers() == {"": 4.0, "2": 3.0, "3": 4.0}


def test_an_earlier_version_that_is_not_there_any_more_is_fetched(repository, shelf, answers):
    first, second, third = (shelf.placement(n, str(n), n + 1.0, files=TWO) for n in (1, 2, 3))
    shelf.beside = Earlier(placements=(first, second))
    config = CONFIG_OF_TWO.replace("num_versions: 2", "num_versions: 3")
    third = shelf.placement(3, "3", 4.0, files={"config.pbtxt": config.encode()})
    repository.link(repository.build(third, shelf))
    assert answers() == {"": 4.0, "1": 2.0, "2": 3.0, "3": 4.0}


def test_an_earlier_version_that_cannot_be_had_is_left_out_and_told_of(repository, shelf, answers):
    first, second = (shelf.placement(n, str(n), n + 1.0, files=TWO) for n in (1, 2))
    shelf.gone = {first.digest}
    shelf.beside = Earlier(placements=(first,), left_out=("version 0 is not kept: it differs",))
    built = repository.build(second, shelf)
    repository.link(built)
    assert answers() == {"": 3.0, "2": 3.0}
    assert built.left_out == (
        "version 0 is not kept: it differs",
        "version 1 cannot be had any more: it is gone",
    )


def test_labels_are_those_of_the_version(repository, shelf, tmp_path):
    config = b"""name: "times" backend: "onnxruntime" max_batch_size: 8
    input { name: "input_0" data_type: TYPE_FP32 dims: [3] }
    output { name: "output_0" data_type: TYPE_FP32 dims: [3] label_filename: "labels.txt" }"""
    for number, labels in ((1, b"a\nb\nc\n"), (2, b"d\ne\nf\n")):
        files = {"config.pbtxt": config, "labels.txt": labels}
        repository.link(repository.build(shelf.placement(number, str(number), 2.0, files=files), shelf))
    with ModelServer(models_of(repository, tmp_path / "copied"), control_mode="none") as server:
        server.load_at_start()
        output = server.config("times")["output"][0]["label_filename"]
        assert server.is_model_ready("times", "2"), server.index()
    read = (models_of(repository, tmp_path / "copied") / "times" / output).read_bytes()
    assert read == b"d\ne\nf\n"


def test_pruning_leaves_what_is_linked_whole(repository, shelf, answers):
    placements = [shelf.placement(n, str(n), n + 1.0) for n in range(1, 6)]
    for placement in placements:
        repository.link(repository.build(placement, shelf))
        repository.prune("times")
    assert answers() == {"": 6.0, "5": 6.0}
    assert repository.has(placements[-1])
    assert not repository.has(placements[0])
    repository.link(repository.build(placements[0], shelf))
    assert answers() == {"": 2.0, "1": 2.0}


def test_discarding_what_failed_leaves_what_is_linked(repository, shelf, answers):
    live, failed = shelf.placement(1, "1", 2.0), shelf.placement(2, "2", 3.0)
    repository.link(repository.build(live, shelf))
    repository.build(failed, shelf)
    repository.discard(failed)
    repository.discard(live)
    assert answers() == {"": 2.0, "1": 2.0}
    assert repository.has(live)
    assert not repository.has(failed)


def test_discarding_the_first_leaves_nothing(repository, shelf, answers):
    failed = shelf.placement(1, "1", 2.0)
    repository.build(failed, shelf)
    repository.discard(failed)
    assert (answers(), repository.links()) == ({}, [])


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"model.py": b"print()"}, "holds code"),
        ({"libtriton_onnxruntime.so": b"x"}, "holds code"),
        ({"1/model.onnx": b"x"}, "looks for versions"),
        ({"config.pbtxt": b"max_batch_size: many"}, "cannot be read"),
        ({"config.pbtxt": b"\xff"}, "cannot be read"),
        ({"config.pbtxt": b"version_policy { specific { versions: [3, 4] } }"}, "names the versions 3, 4"),
    ],
)
def test_a_package_that_misleads_an_engine_is_refused(repository, shelf, answers, tmp_path, files, told):
    with pytest.raises(PackageInvalid, match=told):
        repository.build(shelf.placement(1, "1", 2.0, files=files), shelf)
    assert (answers(), repository.links(), left_over(repository, tmp_path)) == ({}, [], [])


@pytest.mark.parametrize("error", [PackageCorrupt("damaged"), StoreUnavailable("away"), KeyboardInterrupt()])
def test_a_fetch_that_fails_leaves_nothing(repository, shelf, answers, tmp_path, monkeypatch, error):
    def fail(_placement, into):
        (into / "model.onnx").write_bytes(b"half")
        raise error

    monkeypatch.setattr(shelf, "fetch", fail)
    with pytest.raises(type(error)):
        repository.build(shelf.placement(1, "1", 2.0), shelf)
    assert (answers(), repository.links(), left_over(repository, tmp_path)) == ({}, [], [])


def test_what_a_crash_left_of_a_model_is_tidied(repository, shelf, tmp_path):
    scratch = tmp_path / ("serving/staging" if isinstance(repository, DirectoryRepository) else "aside")
    for name in ("times-3", "times-a-3"):
        (scratch / name).mkdir()
    repository.tidy("times")
    assert left_over(repository, tmp_path) == ["times-a-3"]


def test_what_no_model_is_called_is_left_alone(repository, shelf):
    repository.link(repository.build(shelf.placement(1, "1", 2.0), shelf))
    if isinstance(repository, DirectoryRepository):
        (repository.models / ".hidden").symlink_to("..")
    else:
        repository.store.put(".hidden/config.pbtxt", b"")
        repository.store.put("other/config.pbtxt", b'name: "other"')
        repository.store.put("loose", b"")
    assert repository.links() == ["times"]
    assert repository.broken() == []


def test_a_place_that_somebody_else_took_is_refused_for_good(repository, shelf):
    if isinstance(repository, DirectoryRepository):
        (repository.models / "times").mkdir()
    else:
        repository.store.put("times/config.pbtxt", b'name: "times"')
    with pytest.raises(RepositoryFailed) as raised:
        repository.link(repository.build(shelf.placement(1, "1", 2.0), shelf))
    assert not raised.value.may_pass


def test_the_engine_of_a_url(tmp_path, monkeypatch, ceph):
    for name, value in ceph.environ().items():
        monkeypatch.setenv(name, value)
    assert isinstance(open_repository(str(tmp_path), tmp_path), DirectoryRepository)
    assert isinstance(open_repository(tmp_path.as_uri(), tmp_path), DirectoryRepository)
    assert isinstance(open_repository("s3://bucket/models", tmp_path), ObjectRepository)


@pytest.mark.parametrize(
    ("store", "serving", "ok"),
    [
        ("file:///srv/store", "file:///srv/serving", True),
        ("file:///srv", "file:///srv/serving", True),
        ("file:///srv", "file:///srv/packages", False),
        ("file:///srv", "file:///srv/packages/serving", False),
        ("file:///srv/store", "file:///srv", False),
        ("file:///srv", "file:///srv", False),
        ("file:///srv/a", "file:///srv/ab", True),
    ],
)
def test_packages_and_models_stand_apart(store, serving, ok):
    if ok:
        check_apart(store, serving)
    else:
        with pytest.raises(ValueError, match="KEYNET_SERVING_REPOSITORY"):
            check_apart(store, serving)
