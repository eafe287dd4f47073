"""What any engine behind the KServe v2 seam must do, through each of tritonclient's clients."""

from __future__ import annotations

import numpy as np
import pytest

from keynet_core import DataType

BATCHED = (
    'backend: "onnxruntime" max_batch_size: 8 instance_group {{ count: 1 }} {policy} '
    'input {{ name: "x" data_type: TYPE_FP32 dims: [2] }} output {{ name: "y" data_type: TYPE_FP32 dims: [2] }}'
)
X = np.array([[1, 2]], np.float32)
NUMBERS = [dtype for dtype in DataType if dtype is not DataType.STRING]


TEXT = (
    'instance_group { count: 1 } input { name: "x" data_type: TYPE_STRING dims: [-1] } '
    'output { name: "y" data_type: TYPE_STRING dims: [-1] }'
)
SORTS = (
    'max_batch_size: 4 instance_group { count: 1 } input { name: "x" data_type: TYPE_FP32 dims: [3] } '
    'output { name: "y" data_type: TYPE_FP32 dims: [3] label_filename: "labels.txt" }'
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory, models_in, each_serving):
    repository = tmp_path_factory.mktemp("models")
    models = models_in(repository)
    models.scaled("twice", 2, config=BATCHED.format(policy=""))
    models.scaled("goes", 5, config=BATCHED.format(policy=""))
    models.scaled("many", 3, config=BATCHED.format(policy="version_policy { all {} }"), versions=(1, 2, 10))
    models.scaled("latest", 1, config=BATCHED.format(policy=""), versions=(1, 2, 10))
    models.scaled(
        "two", 1, config=BATCHED.format(policy="version_policy { latest { num_versions: 2 } }"), versions=(1, 2, 3)
    )
    models.scaled(
        "chosen",
        1,
        config=BATCHED.format(policy="version_policy { specific { versions: [1, 3] } }"),
        versions=(1, 2, 3),
    )
    models.scaled("bare", 4)
    models.identity("text", onnx_type=8, shape=["n"], config=TEXT)
    (models.identity("sorts", shape=["batch", 3], config=SORTS) / "labels.txt").write_text("cat\ndog\n")
    every_type(models)
    text_beside_bf16(models)
    with each_serving(repository, *(path.name for path in sorted(repository.iterdir()))) as engine:
        yield engine


def every_type(models):
    """Write a model that gives back an input of each type but text, which ONNX Runtime carries in another way."""
    from onnx import helper

    names = [dtype.name.lower() for dtype in NUMBERS]
    tensors = [[(f"{side}_{dtype.name.lower()}", dtype.onnx, ["batch", 3]) for dtype in NUMBERS] for side in "xy"]
    rows = [
        f'{kind} {{ name: "{name}" data_type: {dtype.triton} dims: [3] }}'
        for kind, side in zip(("input", "output"), tensors, strict=True)
        for (name, _, _), dtype in zip(side, NUMBERS, strict=True)
    ]
    nodes = [helper.make_node("Identity", [f"x_{name}"], [f"y_{name}"]) for name in names]
    config = f'backend: "onnxruntime" max_batch_size: 8 instance_group {{ count: 1 }} {" ".join(rows)}'
    models.write("types", nodes, *tensors, config=config)


def text_beside_bf16(models):
    """Write a model that answers the two types that ONNX Runtime carries each in a way of its own."""
    from onnx import helper

    answers = {"said": DataType.STRING, "half": DataType.BF16}
    rows = [f'output {{ name: "{name}" data_type: {dtype.triton} dims: [2] }}' for name, dtype in answers.items()]
    config = (
        'backend: "onnxruntime" max_batch_size: 8 instance_group { count: 1 } '
        f'input {{ name: "x" data_type: TYPE_FP32 dims: [2] }} {" ".join(rows)}'
    )
    nodes = [helper.make_node("Cast", ["x"], [name], to=dtype.onnx) for name, dtype in answers.items()]
    outputs = [(name, dtype.onnx, ["batch", 2]) for name, dtype in answers.items()]
    models.write("mixed", nodes, [("x", 1, ["batch", 2])], outputs, config=config)


@pytest.fixture
def ask(asker, kind, engine):
    return asker(kind, engine)


def refusal(ask, *arguments, **options):
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException) as caught:
        ask.infer(*arguments, **options)
    return caught.value.status(), caught.value.message()


def test_infer_answers_with_the_models_outputs(ask):
    answer = ask.infer("twice", {"x": X}, request_id="abc")
    np.testing.assert_array_equal(answer.as_numpy("y"), [[2, 4]])
    told = answer.get_response() if not ask.is_grpc else answer.get_response(as_json=True)
    assert (told["id"], told["model_name"], told["model_version"]) == ("abc", "twice", "1")


def test_infer_answers_a_batch_row_by_row(ask):
    rows = np.arange(16, dtype=np.float32).reshape(8, 2)
    np.testing.assert_array_equal(ask.infer("twice", {"x": rows}).as_numpy("y"), rows * 2)


def test_only_requested_outputs_come_back(ask):
    answer = ask.infer("twice", {"x": X}, outputs=ask.outputs("y"))
    np.testing.assert_array_equal(answer.as_numpy("y"), [[2, 4]])
    assert answer.as_numpy("z") is None


def test_text_passes_as_utf8_bytes(ask):
    texts = np.array(["a", "", "ä中", b"\xc3\xa4", "nul\0"], dtype=np.object_)
    answer = ask.infer("text", {"x": texts}).as_numpy("y")
    assert answer.tolist() == [b"a", b"", "ä中".encode(), "ä".encode(), b"nul\0"]


@pytest.mark.parametrize(
    ("model", "versions", "default"),
    [
        ("many", ["1", "2", "10"], "10"),
        ("latest", ["10"], "10"),
        ("two", ["2", "3"], "3"),
        ("chosen", ["1", "3"], "3"),
    ],
)
def test_version_policy_decides_what_is_served(ask, model, versions, default):
    assert ask.plain("get_model_metadata", model)["versions"] == versions
    told = ask.infer(model, {"x": X})
    told = told.get_response(as_json=True) if ask.is_grpc else told.get_response()
    assert told["model_version"] == default
    for version in versions:
        assert ask.call("is_model_ready", model, version)
        assert ask.infer(model, {"x": X}, model_version=version).as_numpy("y") is not None


def test_a_version_that_is_not_served_is_unknown(ask):
    status, message = refusal(ask, "latest", {"x": X}, model_version="1")
    assert message == "Request for unknown model: 'latest' version 1 is not found"
    assert status in {"404", "StatusCode.NOT_FOUND"}
    assert not ask.call("is_model_ready", "latest", "1")


def test_an_unknown_model_is_not_found(ask):
    status, message = refusal(ask, "nope", {"x": X})
    assert message == "Request for unknown model: 'nope' is not found"
    assert status in {"404", "StatusCode.NOT_FOUND"}
    assert not ask.call("is_model_ready", "nope")


def test_server_is_live_and_ready_and_says_its_name(ask):
    assert ask.call("is_server_live")
    assert ask.call("is_server_ready")
    told = ask.plain("get_server_metadata")
    assert told["name"]
    assert "binary_tensor_data" in told["extensions"]


def test_metadata_shows_the_batch_axis(ask):
    told = ask.plain("get_model_metadata", "twice")
    shape = [int(size) for size in told["inputs"][0]["shape"]]
    assert (told["platform"], told["inputs"][0]["datatype"], shape) == ("onnxruntime_onnx", "FP32", [-1, 2])


def test_config_is_complete(ask):
    told = ask.plain("get_model_config", "bare")
    told = told.get("config", told)
    assert (told["name"], told["backend"], told["max_batch_size"]) == ("bare", "onnxruntime", 4)
    assert told["input"][0]["data_type"] == "TYPE_FP32"
    assert [int(size) for size in told["input"][0]["dims"]] == [2]
    assert "dynamic_batching" in told


def test_statistics_count_requests_and_rows(ask, eventually):
    """An engine may count a request when it has answered it already."""
    before = settled(ask, eventually)
    ask.infer("twice", {"x": X})
    ask.infer("twice", {"x": np.repeat(X, 3, axis=0)})
    rows, executions, requests = before
    eventually(lambda: counts(ask) == (rows + 4, executions + 2, requests + 2))


def settled(ask, eventually):
    """Return the counts when they stand still."""
    seen = [counts(ask)]

    def stands_still():
        seen.append(counts(ask))
        return seen[-1] == seen[-2]

    eventually(stands_still)
    return seen[-1]


def counts(ask):
    (told,) = ask.plain("get_inference_statistics", "twice")["model_stats"]
    success = int(told["inference_stats"]["success"].get("count", 0))
    return int(told.get("inference_count", 0)), int(told.get("execution_count", 0)), success


def test_index_unload_and_load(ask, eventually):
    """An engine may take its time to unload: it refuses at once, and says UNAVAILABLE in the end."""
    assert state(ask, "goes") == "READY"
    ask.call("unload_model", "goes")
    assert not ask.call("is_model_ready", "goes")
    assert refusal(ask, "goes", {"x": X})[1] == "Request for unknown model: 'goes' has no available versions"
    eventually(lambda: state(ask, "goes") == "UNAVAILABLE")
    ask.call("load_model", "goes")
    np.testing.assert_array_equal(ask.infer("goes", {"x": X}).as_numpy("y"), [[5, 10]])


def state(ask, model):
    told = ask.plain("get_model_repository_index")
    lines = told["models"] if ask.is_grpc else told
    return next(line["state"] for line in lines if line["name"] == model)


def test_loading_a_folder_that_is_not_there_fails(ask):
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException) as caught:
        ask.call("load_model", "nope")
    assert caught.value.message() == "failed to load 'nope', failed to poll from model repository"
    assert caught.value.status() in {"500", "StatusCode.INTERNAL"}


UNKNOWN_ID = "[request id: <id_unknown>] "


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        (
            {"x": np.zeros((1, 3), np.float32)},
            (
                f"{UNKNOWN_ID}unexpected shape for input 'x' for model 'twice'. Expected [-1,2], got [1,3]. "
                "NOTE: Setting a non-zero max_batch_size"
            ),
        ),
        ({"x": np.zeros((9, 2), np.float32)}, f"{UNKNOWN_ID}inference request batch-size must be <= 8 for 'twice'"),
        (
            {"x": np.zeros((1, 2), np.float64)},
            (f"{UNKNOWN_ID}inference input 'x' data-type is 'FP64', but model 'twice' expects 'FP32'"),
        ),
        ({"q": X}, "unexpected inference input 'q' for model 'twice'"),
        (
            {},
            (
                f"{UNKNOWN_ID}expected 1 inputs but got 0 inputs for model 'twice'. Got input(s) [], but missing "
                "required input(s) ['x']. Please provide all required input(s)."
            ),
        ),
    ],
    ids=["shape", "batch", "type", "name", "none"],
)
def test_what_does_not_fit_is_refused_in_tritons_words(ask, arrays, text):
    status, message = refusal(ask, "twice", arrays)
    assert message.startswith(text)
    assert status in {"400", "StatusCode.INVALID_ARGUMENT"}


def test_an_unknown_output_is_refused(ask):
    _, message = refusal(ask, "twice", {"x": X}, outputs=ask.outputs("zzz"))
    assert message == "unexpected inference output 'zzz' for model 'twice'"


def test_a_refusal_names_the_request(ask):
    _, message = refusal(ask, "twice", {"x": np.zeros((9, 2), np.float32)}, request_id="r7")
    assert message.startswith("[request id: r7] ")


def test_classification_answers_with_value_index_and_label(ask):
    answer = ask.infer("sorts", {"x": np.array([[1, 3, 2]], np.float32)}, outputs=ask.outputs("y", class_count=2))
    assert answer.as_numpy("y").tolist() == [[b"3.000000:1:dog", b"2.000000:2"]]


def test_every_type_comes_back_as_it_went(ask):
    given = {dtype.name.lower(): np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype.to_numpy()) for dtype in NUMBERS}
    answer = ask.infer("types", {f"x_{name}": array for name, array in given.items()})
    for name, array in given.items():
        told = answer.as_numpy(f"y_{name}")
        assert told.dtype == array.dtype, name
        np.testing.assert_array_equal(told, array, err_msg=name)


def test_text_and_bf16_are_answered_together(ask):
    answer = ask.infer("mixed", {"x": np.array([[1.5, -2]], np.float32)})
    assert answer.as_numpy("said").tolist() == [[b"1.5", b"-2"]]
    assert answer.as_numpy("half").astype(np.float32).tolist() == [[1.5, -2]]
