"""tritonserver as the tests start it: its repository on S3, its end and its way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

CONFIG = (
    'backend: "onnxruntime" max_batch_size: 4 instance_group { count: 1 } '
    'input { name: "x" data_type: TYPE_FP32 dims: [2] } output { name: "y" data_type: TYPE_FP32 dims: [2] }'
)


@pytest.fixture
def model():
    """The bytes of a model that answers with its input."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", tensors[:1], tensors[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def ask(server):
    import tritonclient.http

    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        given = tritonclient.http.InferInput("x", [1, 2], "FP32")
        given.set_data_from_numpy(np.array([[1, 2]], np.float32))
        return client.infer("m", [given]).as_numpy("y").tolist()


def test_it_serves_a_repository_on_s3_and_comes_back_after_sigkill(triton, ceph, model):
    bucket = ceph.bucket()
    for key, body in (("models/m/config.pbtxt", CONFIG.encode()), ("models/m/1/model.onnx", model)):
        ceph.client().put_object(Bucket=bucket, Key=key, Body=body)
    arguments = ("--load-model=m", "--disable-auto-complete-config")
    with triton.serve(f"s3://{ceph.url}/{bucket}/models", *arguments, environ=ceph.environ()) as server:
        assert ask(server) == [[1, 2]]
        server.kill()
        assert not server.is_running
        server.start()
        assert ask(server) == [[1, 2]]
        assert "successfully loaded 'm'" in server.log()
        directory, shared = server.directory, list(Path("/dev/shm").glob(f"keynet-triton-{server.port}-*"))
        assert shared
    assert not directory.exists()
    assert not any(path.exists() for path in shared)


def test_a_model_it_was_told_to_load_and_cannot_ends_it_with_the_reason(triton, tmp_path, model):
    from engines._errors import EngineFailed

    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(model)
    (tmp_path / "m" / "config.pbtxt").write_text(CONFIG.replace("TYPE_FP32", "TYPE_FP16"))
    with (
        pytest.raises(EngineFailed, match="configuration expects datatype TYPE_FP16 for input 'x'"),
        triton.serve(tmp_path, "--load-model=m"),
    ):
        pass
