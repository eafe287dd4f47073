"""Warm-up: a model runs before it serves, or is refused."""

from __future__ import annotations

import pytest

from keynet_serving import LoadFailed, ModelServer

IO = 'input { name: "x" data_type: TYPE_FP32 dims: [2] } output { name: "y" data_type: TYPE_FP32 dims: [2] }'
FULL = f"max_batch_size: 8 {IO}"


@pytest.fixture
def server(repository):
    with ModelServer(repository) as server:
        yield server


def warmup(data, dtype="TYPE_FP32", dims="2"):
    given = f'inputs {{ key: "x" value {{ data_type: {dtype} dims: [{dims}] {data} }} }}'
    return f'{FULL} model_warmup {{ name: "s" batch_size: 2 {given} }}'


@pytest.mark.parametrize("data", ["zero_data: true", "random_data: true", 'input_data_file: "x.bin"'])
def test_warmup_runs_before_the_model_serves(models, server, data):
    folder = models.identity("m", config=warmup(data))
    (folder / "warmup").mkdir()
    (folder / "warmup" / "x.bin").write_bytes(bytes(16))
    server.load("m")
    (told,) = server.statistics("m")
    assert told["inference_count"] == 2


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ('input_data_file: "none.bin"', "unable to read warmup file 'none.bin'"),
        ('input_data_file: "../config.pbtxt"', "lies outside the model's 'warmup' folder"),
        ('input_data_file: "../../other"', "leads out of the model's folder"),
        ('input_data_file: "short.bin"', "failed to run warmup sample 's'"),
    ],
)
def test_a_warmup_that_fails_refuses_the_version(models, server, data, text):
    folder = models.identity("m", config=warmup(data))
    (folder / "warmup").mkdir()
    (folder / "warmup" / "short.bin").write_bytes(bytes(3))
    with pytest.raises(LoadFailed) as caught:
        server.load("m")
    assert text in caught.value.message


def test_a_warmup_of_a_size_without_end_is_refused(models, server):
    models.identity("m", config=warmup("zero_data: true", dims="-1"))
    with pytest.raises(LoadFailed, match="which is no size to warm up with"):
        server.load("m")


@pytest.mark.parametrize("data", ["zero_data: true", "random_data: true"])
def test_warmup_knows_text_and_integers(models, server, data):
    for name, number, dtype in (("text", 8, "TYPE_STRING"), ("int", 7, "TYPE_INT64")):
        config = warmup(data, dtype).replace("data_type: TYPE_FP32 dims: [2] }", f"data_type: {dtype} dims: [2] }}")
        models.identity(name, onnx_type=number, config=config)
        server.load(name)
        assert server.is_model_ready(name)
