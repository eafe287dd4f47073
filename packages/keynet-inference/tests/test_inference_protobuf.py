"""Tensors joined to a message of protobuf and cut out of it: the same bytes, with fewer copies."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from keynet_inference import TritonPlugin
from keynet_inference._protobuf import join, split

NUMBER = service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
VALUES = [b"", b"cat", b"x" * 127, b"y" * 128, b"z" * 70_000]


def message(*values: bytes) -> Any:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, -1, 1 << 40])
    told = service_pb2.ModelInferRequest(model_name="m", id="7", inputs=[tensor] * 3, raw_input_contents=values)
    told.parameters["weight"].double_param = 0.5
    return told


def test_a_joined_message_is_read_by_protobuf_as_one_it_wrote() -> None:
    joined = join(message().SerializeToString(), NUMBER, [memoryview(each) for each in VALUES])

    assert service_pb2.ModelInferRequest.FromString(joined) == message(*VALUES)


def test_what_protobuf_wrote_is_cut_apart() -> None:
    head, values = split(message(*VALUES).SerializeToString(), NUMBER)

    assert [bytes(each) for each in values] == VALUES
    assert service_pb2.ModelInferRequest.FromString(head) == message()


def test_a_message_may_be_empty() -> None:
    assert split(b"", NUMBER) == (b"", [])
    assert join(b"", NUMBER, []) == b""


def test_numbers_of_fixed_width_are_passed_by() -> None:
    fixed = b"\x09" + b"12345678" + b"\x15" + b"1234"

    assert split(fixed + b"\x3a\x01x", 7) == (fixed, [b"x"])


@pytest.mark.parametrize(
    "broken",
    [
        b"\x3a",
        b"\x3a\x05cat",
        b"\x08",
        b"\x80",
        b"\xff" * 11,
        b"\x09123",
        b"\x15123",
        b"\x3b",
        b"\x3c",
        b"\x3e",
        b"\x3f",
    ],
)
def test_what_is_no_message_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match=r"ends inside|has no field"):
        split(broken, 7)


def test_a_large_input_is_copied_once_on_its_way_out(server: Any) -> None:
    given = np.ones((1, 3, 640, 640), np.float32)
    with TritonPlugin(server.url("grpc"), "detector") as plugin:
        plugin.predict({"input_0": given})
        tracemalloc.start()
        plugin.predict({"input_0": given})
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert given.nbytes <= peak < 1.5 * given.nbytes


def test_a_large_output_arrives_whole_and_may_be_written_to(server: Any) -> None:
    given = np.arange(500_000, dtype=np.float32)
    with TritonPlugin(server.url("grpc"), "vectors") as plugin:
        output = plugin.predict({"input_0": given})["output_0"]

    np.testing.assert_array_equal(output, given)
    output += 1
