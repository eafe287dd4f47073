"""What any engine behind the KServe v2 seam must do with models that are loaded by request, in strict mode."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import pytest
from onnx import TensorProto, external_data_helper, helper, load, save

IO = (
    'input { name: "x" data_type: TYPE_FP32 dims: [2] } output { name: "y" data_type: TYPE_FP32 dims: [2] } '
    'backend: "onnxruntime" instance_group { count: 1 } '
)
FULL = f"{IO} max_batch_size: 8"
X = np.array([[1, 2]], np.float32)


@pytest.fixture(scope="module")
def engine(tmp_path_factory, each_serving):
    with each_serving(tmp_path_factory.mktemp("models"), strict=True) as engine:
        yield engine


@pytest.fixture
def models(engine, models_in):
    return models_in(engine.repository)


@pytest.fixture
def ask(asker, engine):
    return asker("http", engine)


def refusal(ask, name):
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException) as caught:
        ask.call("load_model", name)
    return caught.value.message()


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            FULL.replace('"x" data_type: TYPE_FP32', '"x" data_type: TYPE_FP16'),
            (
                "unable to load model 'misfit', configuration expects datatype TYPE_FP16 for input 'x', model provides "
                "TYPE_FP32"
            ),
        ),
        (
            FULL.replace("dims: [2]", "dims: [1, 2]"),
            (
                "model 'misfit', tensor 'x': the model expects 2 dimensions (shape [-1,2]) but the model configuration "
                "specifies 3 dimensions (an initial batch dimension because max_batch_size > 0 followed by the "
                "explicit tensor shape, making complete shape [-1,1,2])"
            ),
        ),
        (FULL.replace("dims: [2]", "dims: [-1]"), "making complete shape [-1,-1])"),
        (
            IO,
            (
                "the model expects 2 dimensions (shape [-1,2]) but the model configuration specifies 1 dimensions "
                "(shape [2])"
            ),
        ),
        (FULL.replace('"x"', '"q"'), "unexpected inference input 'q', allowed inputs are: x"),
        (FULL.replace('"y"', '"q"'), "unexpected inference output 'q', allowed outputs are: y"),
        (
            FULL + ' input { name: "z" data_type: TYPE_FP32 dims: [2] }',
            "unable to load model 'misfit', configuration expects 2 inputs, model provides 1",
        ),
        (
            FULL + ' optimization { execution_accelerators { cpu_execution_accelerator { name: "magic" } } }',
            "unknown Execution Accelerator 'magic' is requested",
        ),
        (FULL + ' default_model_filename: "none.onnx"', "none.onnx"),
    ],
    ids=["type", "rank", "size", "batch", "input", "output", "count", "accelerator", "file"],
)
def test_a_configuration_that_does_not_fit_is_refused_with_the_reason(models, ask, config, text):
    models.identity("misfit", config=config)
    message = refusal(ask, "misfit")
    assert message.startswith("load failed for model 'misfit': version 1 is at UNAVAILABLE state: ")
    assert text in message
    assert not ask.call("is_model_ready", "misfit")


def test_batching_over_a_fixed_first_axis_is_refused(models, ask):
    models.identity("fixed", shape=[2, 2], config=FULL)
    assert "the first dimension must be -1; but shape expected by the model is [2,2]" in refusal(ask, "fixed")


def test_a_failed_reload_keeps_what_serves(models, ask):
    folder = models.scaled("kept", 2, config=FULL)
    ask.call("load_model", "kept")
    (folder / "1" / "model.onnx").write_bytes(b"nonsense")
    assert "onnx runtime error" in refusal(ask, "kept")
    assert ask.infer("kept", {"x": X}).as_numpy("y").tolist() == [[2, 4]]
    assert ask.call("is_model_ready", "kept")
    models.scaled("kept", 3, config=FULL)
    ask.call("load_model", "kept")
    assert ask.infer("kept", {"x": X}).as_numpy("y").tolist() == [[3, 6]]


def test_weights_in_a_file_beside_the_model_are_found(models, ask):
    weight = helper.make_tensor(
        "w", TensorProto.FLOAT, [2, 2], np.array([[1, 2], [3, 4]], np.float32).tobytes(), raw=True
    )
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    io = [("x", 1, ["batch", 2])], [("y", 1, ["batch", 2])]
    path = models.write("outside", [node], *io, weights=[weight], config=FULL) / "1" / "model.onnx"
    model = load(path)
    external_data_helper.convert_model_to_external_data(model, location="model.onnx.data", size_threshold=0)
    save(model, path)
    assert path.with_name("model.onnx.data").stat().st_size == 16
    ask.call("load_model", "outside")
    assert ask.infer("outside", {"x": X}).as_numpy("y").tolist() == [[7, 10]]
    path.with_name("model.onnx.data").unlink()
    path.touch()
    assert "model.onnx.data" in refusal(ask, "outside") or "xternal data" in refusal(ask, "outside")


def test_several_inputs_and_outputs_of_other_shapes(models, ask):
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Shape", ["a"], ["shape"])]
    config = (
        'backend: "onnxruntime" instance_group { count: 1 } '
        'input { name: "a" data_type: TYPE_FP64 dims: [-1, 2] } input { name: "b" data_type: TYPE_FP64 dims: [2] } '
        'output { name: "sum" data_type: TYPE_FP64 dims: [-1, 2] } '
        'output { name: "shape" data_type: TYPE_INT64 dims: [2] }'
    )
    inputs = [("a", 11, ["n", 2]), ("b", 11, [2])]
    models.write("several", nodes, inputs, [("sum", 11, ["n", 2]), ("shape", 7, [2])], config=config)
    ask.call("load_model", "several")
    given = {"a": np.ones((3, 2)), "b": np.array([1.0, 2.0])}
    answer = ask.infer("several", given)
    assert answer.as_numpy("sum").tolist() == [[2, 3]] * 3
    assert answer.as_numpy("shape").tolist() == [3, 2]
    answer = ask.infer("several", given, outputs=ask.outputs("shape"))
    assert (answer.as_numpy("shape").tolist(), answer.as_numpy("sum")) == ([3, 2], None)


def test_a_scalar_per_row_and_a_scalar_of_all(models, ask):
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    per_row = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    config = FULL.replace(
        '"y" data_type: TYPE_FP32 dims: [2]', '"y" data_type: TYPE_FP32 dims: [1] reshape { shape: [] }'
    )
    models.write("rows", [per_row], [("x", 1, ["batch", 2])], [("y", 1, ["batch"])], weights=[axes], config=config)
    of_all = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    config = IO.replace('"x" data_type: TYPE_FP32 dims: [2]', '"x" data_type: TYPE_FP32 dims: [1, 2]')
    config = config.replace('"y" data_type: TYPE_FP32 dims: [2]', '"y" data_type: TYPE_FP32 dims: [1]')
    models.write("all", [of_all], [("x", 1, [1, 2])], [("y", 1, [])], config=config)
    for name in ("rows", "all"):
        ask.call("load_model", name)
    rows = np.array([[1, 2], [3, 4]], np.float32)
    assert ask.infer("rows", {"x": rows}).as_numpy("y").tolist() == [[3], [7]]
    assert ask.infer("all", {"x": X}).as_numpy("y").tolist() == [3]


@pytest.mark.parametrize("first", ["batch", "three_times"])
def test_requests_that_meet_in_one_batch_get_their_own_answers(models, ask, asker, engine, first):
    """Also where the first axis of the output is none of rows: such requests must not be merged."""
    config = f"{FULL} dynamic_batching {{ max_queue_delay_microseconds: 20000 }}"
    inputs = [("x", 1, ["batch", 2])]
    if first == "batch":
        models.scaled(first, 2, config=config)
    else:
        node = helper.make_node("Concat", ["x", "x", "x"], ["y"], axis=0)
        models.write(first, [node], inputs, [("y", 1, ["batches", 2])], config=config)
    ask.call("load_model", first)

    def one(number):
        row = np.array([[number, -number]], np.float32)
        expected = row * 2 if first == "batch" else np.repeat(row, 3, axis=0)
        return np.array_equal(asker("http", engine).infer(first, {"x": row}).as_numpy("y"), expected)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(64)))
    (told,) = ask.plain("get_inference_statistics", first)["model_stats"]
    assert int(told["inference_count"]) == 64
    if first == "batch":
        assert int(told["execution_count"]) < 64
