"""One suite for every way to every model server: keynet's own, in its process and in this one, and NVIDIA Triton."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest

from keynet_inference import (
    InferenceFailed,
    InputRefused,
    ModelNotServed,
    ModelUnnamed,
    PluginClosed,
    TritonPlugin,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["http", "grpc", "file", "triton http", "triton grpc"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param.startswith("triton"):
        triton = request.getfixturevalue("real_triton")
        return str(triton.url if request.param == "triton http" else triton.grpc_url)
    return str(request.getfixturevalue("server").url(request.param))


@pytest.fixture
def plugin(url: str) -> Iterator[TritonPlugin]:
    with TritonPlugin(url, timeout_s=20) as plugin:
        yield plugin


def test_predict_returns_outputs_by_name(plugin: TritonPlugin) -> None:
    outputs = plugin.predict({"input_0": np.array([[1, 2, 3, 4]], np.float32)}, "mlp")

    assert list(outputs) == ["output_0"]
    np.testing.assert_array_equal(outputs["output_0"], [[2, 4, 6, 8]])
    assert outputs["output_0"].dtype == np.float32


def test_outputs_may_be_written_to(plugin: TritonPlugin) -> None:
    output = plugin.predict({"input_0": np.ones((1, 4), np.float32)}, "mlp")["output_0"]

    output += 1

    np.testing.assert_array_equal(output, [[3, 3, 3, 3]])


def test_a_large_image_arrives_whole(plugin: TritonPlugin) -> None:
    image = np.arange(3 * 640 * 640, dtype=np.float32).reshape(1, 3, 640, 640) / 1e6

    output = plugin.predict({"input_0": image}, "detector")["output_0"]

    np.testing.assert_allclose(output, image.mean(axis=(2, 3)), rtol=1e-4)


def test_each_request_has_its_own_shape_and_version(plugin: TritonPlugin) -> None:
    """What was written for one request may serve the next, where it is the same."""
    for rows, version in [(1, None), (3, None), (1, "1"), (2, None), (3, "1"), (1, None)]:
        given = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)

        np.testing.assert_array_equal(plugin.predict({"input_0": given}, "mlp", version)["output_0"], given * 2)


def test_a_view_that_is_not_contiguous_arrives_as_it_looks(plugin: TritonPlugin) -> None:
    table = np.arange(16, dtype=np.float32).reshape(4, 4).T

    np.testing.assert_array_equal(plugin.predict({"input_0": table}, "mlp")["output_0"], table * 2)


def test_big_endian_numbers_keep_their_values(plugin: TritonPlugin) -> None:
    row = np.array([[1, 2, 3, 4]], ">f4")

    np.testing.assert_array_equal(plugin.predict({"input_0": row}, "mlp")["output_0"], [[2, 4, 6, 8]])


def test_an_empty_batch_is_an_empty_answer(plugin: TritonPlugin) -> None:
    assert plugin.predict({"input_0": np.empty((0, 4), np.float32)}, "mlp")["output_0"].shape == (0, 4)


def test_two_inputs_and_two_outputs_are_told_apart(plugin: TritonPlugin) -> None:
    outputs = plugin.predict(
        {"count": np.array([[3], [4]], np.int64), "price": np.array([0.5, 2], np.float32)}, "table"
    )

    np.testing.assert_array_equal(outputs["total"], [[1.5], [8]])
    np.testing.assert_array_equal(outputs["negative"], [[-3], [-4]])


@pytest.mark.parametrize(
    "texts",
    [
        ["고양이", "", "cat"],
        np.array(["고양이", "", "cat"]),
        np.array(["고양이".encode(), b"", b"cat"], object),
    ],
    ids=["list", "fixed width", "bytes"],
)
def test_texts_come_back_as_bytes(plugin: TritonPlugin, texts: object) -> None:
    output = plugin.predict({"input_0": texts}, "texts")["output_0"]

    assert output.tolist() == ["고양이".encode(), b"", b"cat"]


def test_text_with_anything_else_in_it_is_refused(plugin: TritonPlugin) -> None:
    with pytest.raises(InputRefused, match="got the element None"):
        plugin.predict({"input_0": np.array(["cat", None], object)}, "texts")


def test_bfloat16_goes_both_ways(plugin: TritonPlugin) -> None:
    halves = np.array([1.5, -2, 3e38], ml_dtypes.bfloat16)

    output = plugin.predict({"input_0": halves}, "halves")["output_0"]

    assert output.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(output, halves)


def test_booleans_go_both_ways(plugin: TritonPlugin) -> None:
    assert plugin.predict({"input_0": [True, False]}, "flags")["output_0"].tolist() == [True, False]


def test_lists_become_the_type_of_the_model(plugin: TritonPlugin) -> None:
    assert plugin.predict({"input_0": [[1, 2.5, 3, 0.1]]}, "mlp")["output_0"].dtype == np.float32


def test_another_element_type_is_refused_with_both_sides_and_a_remedy(plugin: TritonPlugin) -> None:
    with pytest.raises(InputRefused) as caught:
        plugin.predict({"input_0": np.zeros((1, 3, 640, 640))}, "detector")

    assert "takes input_0 FP32 [-1, 3, 640, 640], got FP64 [1, 3, 640, 640]" in caught.value.message
    assert caught.value.hint == "input_0: .astype(numpy.float32)"


def test_another_shape_is_refused_with_both_sides(plugin: TritonPlugin) -> None:
    with pytest.raises(InputRefused, match=r"takes input_0 FP32 \[-1, 4\], got FP32 \[1, 5\]"):
        plugin.predict({"input_0": np.zeros((1, 5), np.float32)}, "mlp")


def test_missing_and_unexpected_names_are_named(plugin: TritonPlugin) -> None:
    with pytest.raises(InputRefused) as caught:
        plugin.predict({"image": [1], "count": [[1]]}, "table")

    assert caught.value.message == "model 'table' is missing price FP32 [-1] and does not know 'image'"
    assert caught.value.hint == "hand over exactly: price FP32 [-1]; count INT64 [-1, 1]"


def test_a_model_that_is_not_served_is_refused_with_those_that_are(plugin: TritonPlugin) -> None:
    with pytest.raises(ModelNotServed) as caught:
        plugin.predict({"input_0": [1]}, "nobody")

    assert "'nobody'" in caught.value.message
    assert "mlp, table, texts" in str(caught.value.hint)


def test_a_version_that_is_not_served_is_refused(plugin: TritonPlugin) -> None:
    with pytest.raises(ModelNotServed, match="'mlp' version 7"):
        plugin.predict({"input_0": [[1, 2, 3, 4]]}, "mlp", 7)


def test_a_version_that_is_served_can_be_named(plugin: TritonPlugin) -> None:
    assert plugin.predict({"input_0": [[1, 2, 3, 4]]}, "mlp", "1")["output_0"].tolist() == [[2, 4, 6, 8]]


def test_without_a_model_those_that_are_ready_are_named(plugin: TritonPlugin) -> None:
    with pytest.raises(ModelUnnamed, match=r"ready there: detector, failing, .*, vectors"):
        plugin.predict({"input_0": [1]})


def test_the_model_of_the_environment_is_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_URL", url)
    monkeypatch.setenv("MODEL_NAME", "mlp")

    with TritonPlugin() as plugin:
        assert plugin.predict(df={"input_0": [[1, 2, 3, 4]]})["output_0"].tolist() == [[2, 4, 6, 8]]


def test_a_failure_inside_the_model_is_told(plugin: TritonPlugin) -> None:
    with pytest.raises(InferenceFailed, match=r"indices|out of"):
        plugin.predict({"input_0": [5]}, "failing")


def test_after_a_failure_the_same_plugin_works(plugin: TritonPlugin) -> None:
    with pytest.raises(InferenceFailed):
        plugin.predict({"input_0": [5]}, "failing")

    assert plugin.predict({"input_0": [1]}, "failing")["output_0"].tolist() == [2]


def test_threads_share_a_plugin_and_each_gets_its_own_answer(plugin: TritonPlugin) -> None:
    start = threading.Barrier(8)

    def ask(number: int) -> list[float]:
        start.wait(20)
        rows = [plugin.predict({"input_0": [[number + row] * 4]}, "mlp")["output_0"][0, 0] for row in range(20)]
        return [float(value) for value in rows]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(0, 800, 100)))

    assert answers == [[2.0 * (number + row) for row in range(20)] for number in range(0, 800, 100)]


def test_tasks_ask_side_by_side(plugin: TritonPlugin) -> None:
    async def ask() -> list[float]:
        asked = [plugin.predict_async({"input_0": [[number] * 4]}, "mlp") for number in range(5)]
        return [float(each["output_0"][0, 0]) for each in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [0, 2, 4, 6, 8]


def test_a_closed_plugin_says_so(url: str) -> None:
    plugin = TritonPlugin(url)
    plugin.predict({"input_0": [[1, 2, 3, 4]]}, "mlp")
    plugin.close()
    plugin.close()

    with pytest.raises(PluginClosed, match="was closed"):
        plugin.predict({"input_0": [[1, 2, 3, 4]]}, "mlp")
