"""What HTTP adds: addresses, sizes, encodings, and clients that lie about them."""

from __future__ import annotations

import gzip
import json
import socket
import zlib

import numpy as np
import pytest

from keynet_serving._http import HttpLimits

X = np.array([[1, 2]], np.float32)
INFER = "/v2/models/m/infer"
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def engine(tmp_path_factory, models_in, serving):
    repository = tmp_path_factory.mktemp("models")
    models_in(repository).identity("m")
    with serving(repository, "m", limits=HttpLimits(max_body_bytes=LIMIT, body_timeout_s=0.5)) as engine:
        yield engine


def tensor(**changes):
    told = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]} | changes
    return {"inputs": [{key: value for key, value in told.items() if value is not None}]}


def binary(size=8, **changes):
    return tensor(data=None, parameters={"binary_data_size": size}, **changes)


def post_binary(engine, told, raw, length=None):
    head = json.dumps(told).encode()
    headers = {"Inference-Header-Content-Length": str(len(head) if length is None else length)}
    return engine.request("POST", INFER, head + raw, headers)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_bodies_are_compressed_both_ways(engine, algorithm):
    import tritonclient.http as triton

    client = triton.InferenceServerClient(engine.http)
    given = triton.InferInput("x", [4, 2], "FP32")
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    given.set_data_from_numpy(rows)
    answer = client.infer(
        "m", [given], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
    )
    client.close()
    np.testing.assert_array_equal(answer.as_numpy("y"), rows)


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("br, gzip;q=0.5, deflate", "deflate"),
        ("*", None),
        ("identity", None),
        ("gzip;q=0", None),
        ("gzip;q=x", None),
    ],
)
def test_the_client_chooses_the_compression_of_the_answer(engine, accepted, chosen):
    status, body, headers = engine.request("POST", INFER, tensor(), {"Accept-Encoding": accepted})
    assert (status, headers.get("content-encoding")) == (200, chosen)
    plain = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[chosen](body)
    assert json.loads(plain)["outputs"][0]["data"] == [1, 2]


def test_large_answers_are_compressed_off_the_event_loop(models, serve):
    models.identity("wide", shape=["batch", 50_000])
    engine = serve("wide")
    told = {"inputs": [{"name": "x", "shape": [1, 50_000], "datatype": "FP32", "data": [0] * 50_000}]}
    body = gzip.compress(json.dumps(told).encode() + b" " * 100_000, 0)
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    status, answer, _ = engine.request("POST", "/v2/models/wide/infer", body, headers)
    assert status == 200
    assert len(json.loads(gzip.decompress(answer))["outputs"][0]["data"]) == 50_000


@pytest.mark.parametrize(
    ("body", "encoding", "status", "text"),
    [
        (b"no gzip", "gzip", 400, "failed to decompress the request body"),
        (gzip.compress(b"{}" * 100)[:-9], "gzip", 400, "it ends too early"),
        (b"{}", "br", 501, "Unsupported compression type"),
        (gzip.compress(bytes(LIMIT + 1)), "gzip", 413, f"larger than the {LIMIT} bytes"),
        (zlib.compress(bytes(50 * LIMIT)), "deflate", 413, f"larger than the {LIMIT} bytes"),
    ],
    ids=["no gzip", "cut", "brotli", "bomb", "large bomb"],
)
def test_compressed_bodies_that_cannot_be_taken_are_refused(engine, body, encoding, status, text):
    told = engine.error("POST", INFER, body, headers={"Content-Encoding": encoding})
    assert told[0] == status
    assert text in told[1]


@pytest.mark.parametrize("size", [LIMIT + 1, 8 * LIMIT])
def test_a_body_over_the_limit_is_refused(engine, size):
    status, text = engine.error("POST", INFER, bytes(size))
    assert (status, text) == (413, f"the request body is larger than the {LIMIT} bytes this server takes")


def raw(engine, *parts):
    host, port = engine.http.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        for part in parts:
            connection.sendall(part)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
            if b"\r\n\r\n" in answer and b"error" in answer:
                break
    return int(answer.split(b" ")[1]), answer


def test_a_length_over_the_limit_is_refused_before_the_body_arrives(engine):
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    status, answer = raw(engine, head.encode())
    assert status == 413
    assert b"connection: close" in answer


def test_a_chunked_body_over_the_limit_is_refused(engine):
    chunk = b"%x\r\n%b\r\n" % (LIMIT // 2, bytes(LIMIT // 2))
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    assert raw(engine, head, chunk, chunk, b"1\r\nx\r\n")[0] == 413


def test_a_chunked_body_is_read_to_its_end(engine):
    body = json.dumps(tensor(shape=[1, 1], data=[1])).encode()
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:5], body[5:40], body[40:])]
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    status, answer = raw(engine, head, *chunks, b"0\r\n\r\n")
    assert (status, b"unexpected shape" in answer) == (400, True)


@pytest.mark.parametrize("sent", [b"", bytes(100)], ids=["nothing", "a part"])
def test_a_body_that_stops_arriving_is_refused(engine, sent):
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n".encode()
    status, answer = raw(engine, head, sent)
    assert status == 408
    assert b"did not arrive within 0.5 s" in answer
    assert b"connection: close" in answer


def test_a_client_that_hangs_up_leaves_the_server_as_it_was(engine):
    host, port = engine.http.split(":")
    for head in (b"Content-Length: 100000\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n".encode() + head)
    assert engine.request("POST", INFER, tensor())[0] == 200


@pytest.mark.parametrize(
    ("told", "raw", "length", "status", "text"),
    [
        (binary(), X.tobytes(), 100_000, 400, "inference header size should be in range (0, "),
        (binary(), X.tobytes(), "-1", 400, "got: -1"),
        (binary(), X.tobytes(), "abc", 400, "got: abc"),
        (binary(), X.tobytes(), "9" * 30, 400, "inference header size should be in range"),
        (binary(), X.tobytes(), 10, 500, "failed to parse the request JSON buffer"),
        (
            binary(4),
            X.tobytes()[:4],
            None,
            400,
            ("input byte size mismatch for input 'x' for model 'm'. Expected 8, got 4"),
        ),
        (
            binary(8),
            X.tobytes()[:4],
            None,
            400,
            ("unexpected size for input 'x', expecting 4 additional bytes for model 'm'"),
        ),
        (binary(8), X.tobytes() + b"more", None, 400, "unexpected additional input data for model 'm'"),
        (binary(-8), X.tobytes(), None, 500, "Unable to parse 'binary_data_size'"),
        (binary("8"), X.tobytes(), None, 500, "Unable to parse 'binary_data_size'"),
        (binary(2**62), X.tobytes(), None, 400, "additional bytes for model 'm'"),
        (tensor(parameters={"binary_data_size": 8}), X.tobytes(), None, 400, "But set 'data' 'binary_data_size'"),
        (binary(0, shape=[0, 2]), b"", None, 400, "Expected 8, got 0"),
        (binary(8, shape=[2**62, 2**62]), X.tobytes(), None, 400, "inference request batch-size must be <= 4 for 'm'"),
        (binary(8, shape=[1, 2**63]), X.tobytes(), None, 400, "unexpected shape for input 'x'"),
    ],
)
def test_sizes_that_do_not_add_up_are_refused(engine, told, raw, length, status, text):
    got, answer, _ = post_binary(engine, told, raw, length)
    assert got == status
    assert text in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{bad", 500, "failed to parse the request JSON buffer: "),
        (b"", 500, "failed to parse the request JSON buffer: "),
        (b"[" * 100_000, 500, "failed to parse the request JSON buffer: "),
        (b"\xff\xfe", 500, "failed to parse the request JSON buffer: "),
        (b"{}", 500, "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"),
        (b"[]", 500, "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"),
        (b'{"inputs": "x"}', 500, "Unable to parse 'inputs': attempt to access JSON non-array as array"),
        (b'{"inputs": [3]}', 400, "But no field is set"),
        (tensor(name=None), 500, "Unable to parse 'name': attempt to access non-existing object member 'name'"),
        (tensor(datatype=None), 500, "Unable to parse 'datatype': attempt to access non-existing object member"),
        (tensor(datatype="XX"), 400, "invalid datatype for input x"),
        (tensor(shape=None), 500, "Unable to parse 'shape': attempt to access non-existing object member 'shape'"),
        (tensor(shape="x"), 500, "Unable to parse 'shape': attempt to access JSON non-array as array"),
        (tensor(shape=[-1, 2]), 500, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        (tensor(shape=[1.5, 2]), 500, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        (tensor(shape=[True, 2]), 500, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        (tensor(shape=[]), 400, "input 'x' has no shape but model requires batch dimension for 'm'"),
        (tensor(data="x"), 500, "Unable to parse 'data': attempt to access JSON non-array as array"),
        (tensor(data=[1]), 500, "Unable to parse 'data': Shape does not match true shape of 'data' field"),
        (tensor() | {"id": 7}, 500, "Unable to parse 'id': attempt to access JSON non-string as string"),
        (tensor() | {"outputs": "x"}, 500, "Unable to parse 'outputs': attempt to access JSON non-array as array"),
        (tensor() | {"outputs": [{}]}, 500, "Unable to parse 'name'"),
        (tensor() | {"parameters": 3}, 500, "Unable to parse 'parameters'"),
        ({"inputs": tensor()["inputs"] * 2}, 400, "input 'x' already exists in request"),
        (tensor(data=None, parameters={"shared_memory_region": "r"}), 400, "Unable to find shared memory region: 'r'"),
        (tensor() | {"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]}, 400, "'r'"),
    ],
)
def test_json_that_is_no_request_is_refused(engine, body, status, text):
    told = engine.error("POST", INFER, body)
    assert told[0] == status
    assert text in told[1]


def test_outputs_come_as_json_or_binary_as_asked(engine):
    asked = [{"name": "y", "parameters": {"binary_data": True}}]
    status, body, headers = engine.request("POST", INFER, tensor() | {"outputs": asked})
    length = int(headers["inference-header-content-length"])
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    assert json.loads(body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert body[length:] == X.tobytes()
    everything = tensor() | {"parameters": {"binary_data_output": True}}
    assert engine.request("POST", INFER, everything)[1] == body
    plain = everything | {"outputs": [{"name": "y", "parameters": {"binary_data": False}}]}
    assert json.loads(engine.request("POST", INFER, plain)[1])["outputs"][0]["data"] == [1, 2]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", INFER, 405),
        ("PUT", INFER, 405),
        ("GET", "/v2/repository/index", 405),
        ("DELETE", "/v2/models/m", 405),
        ("HEAD", "/v2/health/live", 405),
        ("GET", "/", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/m/nonsense", 404),
        ("GET", "/v2/models/m/versions/abc", 404),
        ("GET", "/v2/models/m/versions/7", 404),
        ("POST", "/v2/models/m/versions/abc/infer", 404),
        ("POST", "/v2/repository/nonsense", 404),
        ("POST", "/v2/repository/other/models/m/load", 501),
        ("GET", "/v2/trace/setting", 501),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/health/ready", 200),
        ("GET", "/v2/models/m/ready", 200),
        ("GET", "/v2/models/m/versions/1/ready", 200),
        ("GET", "/v2/models/m/versions/2/ready", 400),
        ("GET", "/v2/models/m/versions/1/config", 200),
        ("GET", "/v2/models/m/versions/1/stats", 200),
        ("GET", "/v2/models/m/versions/2/stats", 400),
        ("GET", "/v2/models/nope/stats", 400),
        ("GET", "/v2/models/stats", 200),
    ],
)
def test_addresses_answer_as_tritons_do(engine, method, path, status):
    assert engine.request(method, path)[0] == status


@pytest.mark.parametrize("name", ["..", "%2e%2e", "%2e%2e%2f%2e%2e%2fetc", "a%2fb", ".", "%00", "a\\b", "x" * 300])
@pytest.mark.parametrize("action", ["load", "unload"])
def test_a_name_that_is_no_name_never_reaches_the_disk(engine, name, action):
    (engine.repository.parent / "1").mkdir(exist_ok=True)
    status, _, _ = engine.request("POST", f"/v2/repository/models/{name}/{action}")
    assert status in ({200, 404} if action == "unload" else {404, 500})
    assert [line["name"] for line in json.loads(engine.request("POST", "/v2/repository/index")[1])] == ["m"]


def test_metrics_are_tritons(engine):
    engine.request("POST", INFER, tensor())
    status, body, headers = engine.request("GET", "/metrics")
    text = body.decode()
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    for name in (
        "request_success", "count", "exec_count", "request_duration_us", "queue_duration_us",
        "compute_input_duration_us", "compute_infer_duration_us", "compute_output_duration_us",
    ):  # fmt: skip
        assert f'nv_inference_{name}{{model="m",version="1"}} ' in text
    assert 'nv_inference_request_failure{model="m",reason="BACKEND",version="1"} 0' in text
    assert int(text.split('nv_inference_request_success{model="m",version="1"} ')[1].split("\n")[0]) > 0


def test_the_index_can_be_asked_for_what_is_ready(models, serve):
    models.identity("good")
    models.identity("bad", config="max_batch_size: eight")
    engine = serve("good", "bad")
    everything = json.loads(engine.request("POST", "/v2/repository/index")[1])
    assert [(line["name"], line["state"]) for line in everything] == [("bad", "UNAVAILABLE"), ("good", "READY")]
    ready = json.loads(engine.request("POST", "/v2/repository/index", {"ready": True})[1])
    assert [line["name"] for line in ready] == ["good"]


def test_large_tensors_arrive_whole_whatever_their_offset(models, serve):
    models.identity("big", shape=["batch", 300_000])
    engine = serve("big")
    rows = np.random.default_rng(0).random((1, 300_000)).astype(np.float32)
    for spaces in range(5):
        told = tensor(shape=[1, 300_000], data=None, parameters={"binary_data_size": rows.nbytes})
        head = json.dumps(told | {"parameters": {"binary_data_output": True}}).encode() + b" " * spaces
        headers = {"Inference-Header-Content-Length": str(len(head))}
        status, body, told = engine.request("POST", "/v2/models/big/infer", head + rows.tobytes(), headers)
        assert status == 200
        assert body[int(told["inference-header-content-length"]) :] == rows.tobytes()
