"""Which files belong to a model: external data, links, and what leads out of its folder."""

from __future__ import annotations

import os

import numpy as np
import pytest
from onnx import TensorProto, helper

from keynet_serving import LoadFailed, ModelServer, ModelUnloadable

X = np.array([[1, 2]], np.float32)
IO = 'input { name: "x" data_type: TYPE_FP32 dims: [2] } output { name: "y" data_type: TYPE_FP32 dims: [2] }'
FULL = f"max_batch_size: 8 {IO}"


@pytest.fixture
def server(repository):
    with ModelServer(repository) as server:
        yield server


def reason(server, model):
    return next(line for line in server.index() if line.name == model).reason


def with_external_data(models, name, location):
    """A model whose one weight lies in another file."""
    folder = models.identity(name)
    weight = TensorProto(name="w", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        weight.external_data.add(key=key, value=value)
    node = helper.make_node("Mul", ["x", "w"], ["y"])
    return models.write(name, [node], [("x", 1, ["b", 2])], [("y", 1, ["b", 2])], weights=[weight]), folder


def weights(path):
    path.write_bytes(np.array([5, 7], np.float32).tobytes())
    return path


def test_external_data_beside_the_model_is_read(models, server):
    folder, _ = with_external_data(models, "m", "model.onnx.data")
    weights(folder / "1" / "model.onnx.data")
    server.load("m")
    assert server.infer("m", {"x": X})["y"].tolist() == [[5, 14]]


@pytest.mark.parametrize("location", ["../up.data", "../../out.data", "ABSOLUTE", "link.data", "missing.data"])
def test_external_data_elsewhere_is_refused(models, server, location, tmp_path):
    outside = weights(tmp_path / "out.data")
    weights(models.repository / "out.data")
    folder, _ = with_external_data(models, "m", str(outside) if location == "ABSOLUTE" else location)
    weights(folder / "up.data")
    (folder / "1" / "link.data").symlink_to(outside)
    with pytest.raises(LoadFailed, match="External data path"):
        server.load("m")
    assert "External data path" in reason(server, "m")


def test_a_model_folder_may_be_a_link_and_its_external_data_is_found(models, server, tmp_path):
    folder, _ = with_external_data(models, "m", "model.onnx.data")
    weights(folder / "1" / "model.onnx.data")
    elsewhere = tmp_path / "deployments" / "m" / "1"
    elsewhere.parent.mkdir(parents=True)
    folder.rename(elsewhere)
    folder.symlink_to(os.path.relpath(elsewhere, folder.parent))
    server.load("m")
    assert server.infer("m", {"x": X})["y"].tolist() == [[5, 14]]


def test_files_that_lead_out_of_the_models_folder_are_refused(models, server, tmp_path):
    outside = models.identity("donor")
    folder = models.identity("file")
    (folder / "1" / "model.onnx").unlink()
    (folder / "1" / "model.onnx").symlink_to(outside / "1" / "model.onnx")
    version = models.repository / "version"
    version.mkdir()
    (version / "1").symlink_to(outside / "1")
    for name in ("file", "version"):
        with pytest.raises(LoadFailed, match="leads out of the model's folder"):
            server.load(name)
    named = models.identity("named", config='default_model_filename: "../../donor/1/model.onnx"')
    with pytest.raises(LoadFailed, match="leads out of the model's folder"):
        server.load(named.name)
    labelled = models.identity("labels", config=FULL.replace('"y"', '"y" label_filename: "../../secret"'))
    (tmp_path / "secret").write_text("a\n")
    with pytest.raises(LoadFailed, match="leads out of the model's folder"):
        server.load(labelled.name)
    (tmp_path / "config").write_text(FULL)
    (models.identity("config") / "config.pbtxt").symlink_to(tmp_path / "config")
    with pytest.raises(ModelUnloadable, match="leads out of the model's folder"):
        server.load("config")


def test_a_link_that_leads_in_a_circle_is_no_model(models, server):
    (models.repository / "m").symlink_to("m")
    with pytest.raises(ModelUnloadable, match="failed to load 'm'"):
        server.load("m")
