"""Every element type, in every encoding that can carry it."""

from __future__ import annotations

import numpy as np
import pytest

from keynet_core import DataType
from keynet_serving import ModelServer, RequestRefused

VALUES = {
    DataType.BOOL: [True, False, True],
    DataType.UINT8: [0, 1, 255],
    DataType.UINT16: [0, 1, 65535],
    DataType.UINT32: [0, 1, 2**32 - 1],
    DataType.UINT64: [0, 1, 2**64 - 1],
    DataType.INT8: [-128, 0, 127],
    DataType.INT16: [-32768, 0, 32767],
    DataType.INT32: [-(2**31), 0, 2**31 - 1],
    DataType.INT64: [-(2**63), 0, 2**63 - 1],
    DataType.FP16: [-1.5, 0, 65504],
    DataType.FP32: [-1.5, 0, 3e38],
    DataType.FP64: [-1.5, 0, 1e308],
    DataType.BF16: [-1.5, 0, 3e38],
}
HALVES = {DataType.FP16, DataType.BF16}


@pytest.fixture(scope="module")
def engine(tmp_path_factory, models_in, serving):
    repository = tmp_path_factory.mktemp("models")
    for dtype in DataType:
        models_in(repository).identity(dtype.name.lower(), dtype.onnx, ("batch", 3))
    models_in(repository).identity("open", DataType.FP32.onnx, ("n", 2), config=PLAIN)
    with serving(repository, "*") as engine:
        yield engine


PLAIN = 'input { name: "x" data_type: TYPE_FP32 dims: [-1, 2] } output { name: "y" data_type: TYPE_FP32 dims: [-1, 2] }'


def sample(dtype):
    return np.array([VALUES[dtype]], np.object_).astype(dtype.to_numpy())


@pytest.mark.parametrize("dtype", list(VALUES), ids=lambda dtype: dtype.name)
def test_binary_tensors_of_every_type_come_back(asker, kind, engine, dtype):
    answer = asker(kind, engine).infer(dtype.name.lower(), {"x": sample(dtype)}).as_numpy("y")
    assert answer.tobytes() == sample(dtype).tobytes()
    assert answer.dtype == sample(dtype).dtype


@pytest.mark.parametrize("dtype", [dtype for dtype in VALUES if dtype not in HALVES], ids=lambda dtype: dtype.name)
def test_json_tensors_of_every_type_come_back(engine, dtype):
    told = {"name": "x", "shape": [1, 3], "datatype": dtype.kserve, "data": [VALUES[dtype]]}
    status, body, _ = engine.request("POST", f"/v2/models/{dtype.name.lower()}/infer", {"inputs": [told]})
    assert status == 200
    import json

    np.testing.assert_array_equal(np.array(json.loads(body)["outputs"][0]["data"], dtype.to_numpy()), sample(dtype)[0])


@pytest.mark.parametrize("dtype", sorted(HALVES, key=str), ids=lambda dtype: dtype.name)
def test_halves_have_no_json_form(engine, dtype):
    told = {"name": "x", "shape": [1, 3], "datatype": dtype.kserve, "data": [0, 0, 0]}
    model = dtype.name.lower()
    status, text = engine.error("POST", f"/v2/models/{model}/infer", {"inputs": [told]})
    assert (status, text) == (
        400,
        f"receiving {dtype.name} data via JSON is not supported. Please use the binary data format for input x",
    )


def test_a_half_cannot_be_answered_as_json(engine):
    import json

    told = {"name": "x", "shape": [1, 3], "datatype": "FP16", "parameters": {"binary_data_size": 6}}
    head = json.dumps({"inputs": [told]}).encode()
    status, text = engine.error(
        "POST", "/v2/models/fp16/infer", head + bytes(6), headers={"Inference-Header-Content-Length": str(len(head))}
    )
    assert status == 400
    assert text.startswith("sending FP16 data via JSON is not supported.")


@pytest.mark.parametrize(
    ("dtype", "data", "text"),
    [
        ("FP32", ["1", "2", "3"], "attempt to access JSON non-number as double"),
        ("FP32", [True, True, True], "attempt to access JSON non-number as double"),
        ("FP32", [None, 1, 2], "attempt to access JSON non-number as double"),
        ("INT32", [1.5, 2, 3], "attempt to access JSON non-signed-integer as signed-integer"),
        ("INT32", [2**31, 2, 3], "attempt to access JSON non-signed-integer as signed-integer"),
        ("UINT8", [-1, 2, 3], "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        ("BOOL", [1, 0, 1], "attempt to access JSON non-boolean as boolean"),
        ("FP32", [[1], [2, 3]], "Shape does not match true shape of 'data' field"),
        ("BYTES", ["a", 1, "b"], "Unable to parse JSON bytes array: attempt to access JSON non-string as string"),
    ],
)
def test_json_values_of_another_type_are_refused(engine, dtype, data, text):
    model = "string" if dtype == "BYTES" else dtype.lower()
    told = {"name": "x", "shape": [1, 3], "datatype": dtype, "data": data}
    status, told = engine.error("POST", f"/v2/models/{model}/infer", {"inputs": [told]})
    assert status == 500
    assert text in told


def test_nan_and_infinity_pass_through_json(engine):
    body = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[NaN,Infinity,-Infinity]}]}'
    status, answer, _ = engine.request("POST", "/v2/models/fp32/infer", body)
    assert status == 200
    assert b'"data":[NaN,Infinity,-Infinity]' in answer


def test_typed_contents_carry_every_type(engine):
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    from keynet_serving._grpc_codec import _CARRIED_BY

    with grpc.insecure_channel(engine.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for dtype, field in _CARRIED_BY.items():
            values = [b"a", "ä".encode(), b""] if dtype is DataType.STRING else VALUES[dtype]
            message = service_pb2.ModelInferRequest(model_name=dtype.name.lower())
            given = message.inputs.add(name="x", datatype=dtype.kserve, shape=[1, 3])
            getattr(given.contents, field).extend(values)
            raw = stub.ModelInfer(message, timeout=60).raw_output_contents[0]
            assert raw == (
                b"\1\0\0\0a\2\0\0\0\xc3\xa4\0\0\0\0" if dtype is DataType.STRING else sample(dtype).tobytes()
            )


@pytest.mark.parametrize(
    ("field", "values", "dtype", "text"),
    [
        ("fp32_contents", [1.0], "INT32", "of type 'FP32', expected datatype 'INT32'"),
        ("int_contents", [300, 1, 1], "INT8", "does not fit INT8"),
        ("fp32_contents", [1.0] * 3, "FP16", "of type 'FP32', expected datatype 'FP16'"),
        (
            "fp32_contents",
            [1.0] * 2,
            "FP32",
            "input byte size mismatch for input 'x' for model 'fp32'. Expected 12, got 8",
        ),
    ],
)
def test_typed_contents_of_another_type_are_refused(engine, field, values, dtype, text):
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    message = service_pb2.ModelInferRequest(model_name=dtype.lower())
    given = message.inputs.add(name="x", datatype=dtype, shape=[1, 3])
    getattr(given.contents, field).extend(values)
    with grpc.insecure_channel(engine.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in caught.value.details()


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\1\0\0\0a" * 2, "expected 3 string elements for inference input 'x' for model 'string', got 2"),
        (
            b"\1\0\0\0a" * 4,
            ("unexpected number of string elements 4 for inference input 'x' for model 'string', expecting 3"),
        ),
        (b"\7\0\0\0a", "incomplete string data for inference input 'x', expecting string of length 7 but only 1 bytes"),
        (
            b"\1\0\0",
            (
                "incomplete string length indicator for inference input 'x' for model 'string', expecting 4 "
                "bytes but only 3"
            ),
        ),
        (b"\1\0\0\0\xff" * 3, "ONNX Runtime takes text as UTF-8"),
    ],
    ids=["few", "many", "cut", "cut length", "no utf-8"],
)
def test_broken_text_is_refused(engine, raw, text):
    import json

    told = {"name": "x", "shape": [1, 3], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [told]}).encode()
    status, answer = engine.error(
        "POST", "/v2/models/string/infer", head + raw, headers={"Inference-Header-Content-Length": str(len(head))}
    )
    assert status == 400
    assert text in answer


def test_an_empty_tensor_is_a_tensor_where_there_is_no_batch(asker, kind, engine):
    answer = asker(kind, engine).infer("open", {"x": np.zeros((0, 2), np.float32)}).as_numpy("y")
    assert answer.shape == (0, 2)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, models_in, serving):
    """Models that have BF16 and STRING at once, which ONNX Runtime's binding takes each in another way."""
    from onnx import helper

    repository = tmp_path_factory.mktemp("mixed")
    half, text = DataType.BF16.onnx, DataType.STRING.onnx
    rows = ["batch", 2]
    models_in(repository).write(
        "takes",
        [
            helper.make_node("Cast", ["half"], ["number"], to=DataType.FP32.onnx),
            helper.make_node("Identity", ["text"], ["said"]),
        ],
        [("half", half, rows), ("text", text, rows)],
        [("number", DataType.FP32.onnx, rows), ("said", text, rows)],
    )
    models_in(repository).write(
        "crossed",
        [
            helper.make_node("Cast", ["text"], ["number"], to=DataType.FP32.onnx),
            helper.make_node("Cast", ["number"], ["half"], to=half),
        ],
        [("text", text, rows)],
        [("half", half, rows)],
    )
    with serving(repository, "*") as engine:
        yield engine


def test_bf16_and_text_are_taken_together(asker, kind, mixed):
    half = np.array([[1.5, -2]], DataType.BF16.to_numpy())
    answer = asker(kind, mixed).infer("takes", {"half": half, "text": np.array([["a", "ä"]], np.object_)})
    assert answer.as_numpy("number").tolist() == [[1.5, -2]]
    assert answer.as_numpy("said").tolist() == [[b"a", "ä".encode()]]


def test_text_in_and_bf16_out_is_refused_at_load_with_the_reason(asker, mixed):
    reason = (
        "Unsupported: input 'text' is STRING and output 'half' is BF16, which ONNX Runtime cannot have in one run "
        "from Python; add a Cast to FP32 in front of the output"
    )
    told = {row["name"]: row for row in asker("http", mixed).call("get_model_repository_index")}
    assert (told["crossed"]["state"], told["crossed"]["reason"]) == ("UNAVAILABLE", reason)
    status, text = mixed.error("POST", "/v2/repository/models/crossed/load")
    assert status == 400
    assert text == f"load failed for model 'crossed': version 1 is at UNAVAILABLE state: {reason};\n"


@pytest.mark.parametrize("dtype", list(VALUES), ids=lambda dtype: dtype.name)
def test_calls_in_process_take_every_type(engine, dtype):
    with ModelServer(engine.repository) as server:
        server.load(dtype.name.lower())
        answer = server.infer(dtype.name.lower(), {"x": sample(dtype)})["y"]
        assert answer.dtype == sample(dtype).dtype
        assert answer.tobytes() == sample(dtype).tobytes()


@pytest.mark.parametrize("texts", [np.array([["a", "ä", ""]]), np.array([["a", "ä".encode(), ""]], np.object_)])
def test_calls_in_process_answer_text_as_bytes(engine, texts):
    with ModelServer(engine.repository) as server:
        server.load("string")
        assert server.infer("string", {"x": texts})["y"].tolist() == [[b"a", "ä".encode(), b""]]


def test_calls_in_process_are_refused_in_the_same_words(engine):
    with ModelServer(engine.repository) as server:
        server.load("fp32")
        with pytest.raises(RequestRefused, match=r"unexpected shape for input 'x'.*got \[1,4\]"):
            server.infer("fp32", {"x": np.zeros((1, 4), np.float32)})
        with pytest.raises(RequestRefused, match="unexpected inference output 'z'"):
            server.infer("fp32", {"x": np.zeros((1, 3), np.float32)}, outputs=["z"])
        with pytest.raises(RequestRefused, match="data-type is 'FP64'"):
            server.infer("fp32", {"x": np.zeros((1, 3))})
