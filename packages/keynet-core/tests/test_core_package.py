"""A package vouches for its files: the digest anyone can compute, and every way of breaking it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keynet_core import (
    MAX_PROBE_BYTES,
    DataType,
    Lineage,
    Manifest,
    ModelPackage,
    PackageCorrupt,
    PackageFile,
    PackageInvalid,
    Probe,
    Signature,
    TensorSpec,
    digest_of,
    to_model_name,
)

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


@pytest.fixture
def package(tmp_path, make_package):
    return make_package(tmp_path / "package")


@pytest.fixture
def told(package):
    return json.loads(package.manifest.to_json())


def read(told):
    return Manifest.from_json(json.dumps(told).encode())


def test_digest_is_the_one_the_sha256sum_command_computes(package):
    command = "LC_ALL=C sha256sum $(printf '%s\\n' \"$@\" | LC_ALL=C sort) | sha256sum"
    paths = ["model.onnx", "config.pbtxt", "data/model.onnx.data"]
    done = subprocess.run(
        ["bash", "-c", command, "sh", *paths], cwd=package.directory, capture_output=True, text=True, check=True
    )
    assert package.digest == f"sha256:{done.stdout.split()[0]}"


def test_same_files_are_the_same_package_whatever_was_recorded_beside_them(tmp_path, make_package):
    first, second = make_package(tmp_path / "a", probe=1.0), make_package(tmp_path / "b", probe=2.0)
    assert first.digest == second.digest
    assert first.manifest.evidence != second.manifest.evidence


def test_other_bytes_are_another_package(tmp_path, make_package):
    assert make_package(tmp_path / "a").digest != make_package(tmp_path / "b", model=b"Weights").digest


def test_a_package_that_was_built_can_be_opened_and_verified(package):
    opened = ModelPackage.open(package.directory)
    opened.verify()
    assert opened == package
    assert opened.probe().outputs["y"].tolist() == [[2.0]]
    assert opened.manifest.size_bytes == sum(
        (package.directory / name).stat().st_size for name in ("model.onnx", "config.pbtxt", "data/model.onnx.data")
    )


def test_everything_a_manifest_says_survives_json(package, tmp_path, signature):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "model.onnx").write_bytes(b"x")
    built = ModelPackage.build(
        tmp_path / "more",
        name=to_model_name("m"),
        signature=signature,
        output_keys=["logits"],
        parity={"max_abs": 1e-7},
        lineage=Lineage(run_id="r", experiment="실험", git_commit="c", framework="pytorch", tags={"a": "b"}),
    )
    assert Manifest.from_json(built.manifest.to_json()) == built.manifest
    assert ModelPackage.open(built.directory).probe() is None


def test_lineage_of_a_later_version_is_read_without_what_it_added(told):
    told["lineage"]["data_commit"] = "abc"
    assert read(told).lineage == Lineage()


def break_truncated(directory):
    os.truncate(directory / "model.onnx", 3)


def break_changed(directory):
    (directory / "model.onnx").write_bytes(b"WEIGHTS")


def break_missing(directory):
    (directory / "data" / "model.onnx.data").unlink()


def break_symlinked(directory):
    (directory / "model.onnx").rename(directory.parent / "elsewhere")
    (directory / "model.onnx").symlink_to(directory.parent / "elsewhere")


def break_directory(directory):
    (directory / "model.onnx").unlink()
    (directory / "model.onnx").mkdir()


def break_pipe(directory):
    (directory / "model.onnx").unlink()
    os.mkfifo(directory / "model.onnx")


def break_probe(directory):
    next(directory.glob("probe-*")).write_bytes(b"{}")


@pytest.mark.parametrize(
    "damage",
    [break_truncated, break_changed, break_missing, break_symlinked, break_directory, break_pipe, break_probe],
)
def test_a_file_that_is_not_what_was_packaged_is_found(package, damage):
    damage(package.directory)
    with pytest.raises(PackageCorrupt, match="mnist"):
        ModelPackage.open(package.directory).verify()


def stray_file(directory):
    (directory / "evil.so").write_bytes(b"")


def stray_link(directory):
    (directory / "evil.so").symlink_to("/etc/passwd")


def stray_folder_link(directory):
    (directory / "data").rename(directory.parent / "moved")
    (directory / "data").symlink_to(directory.parent / "moved")


def stray_pipe(directory):
    os.mkfifo(directory / "evil.so")


@pytest.mark.parametrize("add", [stray_file, stray_link, stray_folder_link, stray_pipe])
def test_a_file_the_manifest_does_not_name_is_found(package, add):
    add(package.directory)
    with pytest.raises(PackageInvalid, match=r"does not name: (evil\.so|data)"):
        package.verify()


@pytest.mark.parametrize(
    "path",
    ["../model.onnx", "a/../../b", "/etc/passwd", "", ".", "a//b", "./a", "a\\b", "a\nb", "manifest.json", 3, None],
)
@pytest.mark.parametrize("part", ["served", "evidence"])
def test_a_manifest_that_names_a_path_no_package_has_is_refused(told, path, part):
    told[part][0]["path"] = path
    with pytest.raises(PackageInvalid):
        read(told)


def test_a_manifest_that_names_a_file_twice_is_refused(told):
    told["served"].append(told["served"][0])
    with pytest.raises(PackageInvalid, match="twice"):
        read(told)


def test_a_manifest_that_names_a_served_file_as_evidence_is_refused(told):
    told["evidence"].append(told["served"][0])
    with pytest.raises(PackageInvalid, match="twice"):
        read(told)


def test_a_manifest_that_names_a_file_below_a_file_is_refused(told):
    told["evidence"].append(told["served"][0] | {"path": "model.onnx/more"})
    with pytest.raises(PackageInvalid, match=r"'model\.onnx' as a file and as a directory"):
        read(told)


def test_a_manifest_that_serves_nothing_is_refused(told):
    with pytest.raises(PackageInvalid, match="nothing to serve"):
        read(told | {"served": [], "digest": digest_of([])})


@pytest.mark.parametrize("change", [{"sha256": "ab"}, {"sha256": EMPTY_SHA256.upper()}, {"size_bytes": -1}])
def test_a_manifest_without_a_real_size_and_digest_of_a_file_is_refused(told, change):
    told["served"][0] |= change
    told["digest"] = digest_of([PackageFile(**each) for each in told["served"]])
    with pytest.raises(PackageInvalid, match="without a size and a SHA-256"):
        read(told)


def test_a_manifest_whose_digest_is_not_that_of_its_files_is_refused(told):
    with pytest.raises(PackageCorrupt, match="digest"):
        read(told | {"digest": "sha256:" + "0" * 64})


def test_an_unknown_schema_is_refused_and_named(told):
    with pytest.raises(PackageInvalid, match=r"io\.keynet\.package\.v9.*keynet reads"):
        read(told | {"schema": "io.keynet.package.v9"})


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../evil"},
        {"name": None},
        {"served": None},
        {"served": [1]},
        {"served": [{"path": "a", "sha256": "b"}]},
        {"served": [{"path": "a", "sha256": "b", "size_bytes": float("inf")}]},
        {"served": [{"path": "a", "sha256": "b", "size_bytes": float("nan")}]},
        {"signature": {}},
        {"signature": {"inputs": [{"name": "x", "datatype": "FP8", "shape": []}], "outputs": []}},
        {"signature": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-4]}], "outputs": []}},
        {"output_keys": 3},
        {"parity": "good"},
        {"lineage": None},
        {"lineage": {"run_id": 3}},
        {"lineage": {"tags": {"a": 1}}},
        {"lineage": {"tags": "ab"}},
    ],
    ids=str,
)
def test_a_manifest_with_a_value_of_another_form_is_refused(told, change):
    with pytest.raises(PackageInvalid):
        read(told | change)


@pytest.mark.parametrize("text", [b"", b"[]", b"3", b"{}", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000])
def test_a_text_that_is_no_manifest_is_refused(text):
    with pytest.raises(PackageInvalid):
        Manifest.from_json(text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_manifest_with_any_value_replaced_is_read_or_refused(told, data):
    changed = json.loads(json.dumps(told))
    key = data.draw(st.sampled_from(sorted(changed)))
    values = st.none() | st.booleans() | st.floats() | st.text(max_size=5)
    changed[key] = data.draw(st.recursive(values, lambda some: st.lists(some) | st.dictionaries(st.text(), some)))
    with suppress(PackageInvalid):
        read(changed)


def test_a_manifest_that_is_too_large_is_not_parsed(package):
    with (package.directory / "manifest.json").open("ab") as file:
        file.truncate(5 * 1024 * 1024)
    with pytest.raises(PackageInvalid, match="more than 4194304 bytes"):
        ModelPackage.open(package.directory)


def test_a_directory_without_a_manifest_is_no_package(tmp_path):
    with pytest.raises(PackageInvalid, match="is no package"):
        ModelPackage.open(tmp_path)


def build(directory, **more):
    signature = Signature(inputs=(TensorSpec(name="x", dtype=DataType.FP32, shape=()),), outputs=())
    return ModelPackage.build(directory, name=to_model_name("m"), signature=signature, **more)


def test_an_empty_directory_cannot_be_packaged(tmp_path):
    with pytest.raises(PackageInvalid, match="nothing to serve"):
        build(tmp_path)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("add", [stray_link, stray_folder_link, stray_pipe])
def test_what_is_no_plain_file_cannot_be_packaged(tmp_path, add):
    directory = tmp_path / "package"
    (directory / "data").mkdir(parents=True)
    (directory / "data" / "model.onnx").write_bytes(b"x")
    add(directory)
    with pytest.raises(PackageInvalid, match="plain files only"):
        build(directory)


@pytest.mark.parametrize("name", ["a\\b", "a\nb", b"a\xff"])
def test_a_file_whose_name_no_store_carries_cannot_be_packaged(tmp_path, name):
    (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    with pytest.raises(PackageInvalid, match="cannot hold"):
        build(tmp_path)


def test_a_package_cannot_be_built_over_another(package):
    with pytest.raises(PackageInvalid, match=r"manifest\.json is the package's own"):
        build(package.directory)


def test_a_probe_that_could_not_be_read_back_is_not_recorded(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    huge = Probe(inputs={"x": np.zeros(MAX_PROBE_BYTES * 3 // 4, np.uint8)}, outputs={})
    with pytest.raises(PackageInvalid, match="at most 67108864"):
        build(tmp_path, probe=huge)


def test_a_probe_that_is_missing_or_too_large_is_named(package):
    path = next(package.directory.glob("probe-*"))
    with path.open("ab") as file:
        file.truncate(MAX_PROBE_BYTES + 1)
    with pytest.raises(PackageInvalid, match="the probe of mnist has more"):
        package.probe()
    path.unlink()
    with pytest.raises(PackageCorrupt, match=f"mnist has no file {path.name}"):
        package.probe()
