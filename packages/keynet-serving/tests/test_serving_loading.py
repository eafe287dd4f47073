"""From a folder to a served model: configurations, refusals, reloads, and files that lie elsewhere."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from onnx import TensorProto, helper

from keynet_serving import ControlRefused, LoadFailed, ModelServer, ModelUnloadable

X = np.array([[1, 2]], np.float32)
IO = 'input { name: "x" data_type: TYPE_FP32 dims: [2] } output { name: "y" data_type: TYPE_FP32 dims: [2] }'
FULL = f"max_batch_size: 8 {IO}"


@pytest.fixture
def server(repository):
    with ModelServer(repository) as server:
        yield server


def reason(server, model):
    return next(line for line in server.index() if line.name == model).reason


def test_a_bare_file_is_completed_from_its_graph(models, server):
    models.identity("m", shape=["batch", 3, "n"])
    server.load("m")
    told = server.config("m")
    assert (told["platform"], told["backend"], told["max_batch_size"]) == ("onnxruntime_onnx", "onnxruntime", 4)
    assert told["input"][0]["dims"] == [3, -1]
    assert told["dynamic_batching"]["preferred_batch_size"] == [4]
    assert told["version_policy"] == {"latest": {"num_versions": 1}}
    assert (told["instance_group"][0]["kind"], told["instance_group"][0]["count"]) == ("KIND_CPU", 1)


@pytest.mark.parametrize("config", ['backend: "onnxruntime"', 'platform: "onnxruntime_onnx"', 'name: "m"'])
def test_a_configuration_that_names_only_the_engine_is_completed(models, server, config):
    models.identity("m", config=config)
    server.load("m")
    assert server.config("m")["input"][0]["name"] == "x"


def test_completing_keeps_a_given_batch_size(models, server):
    models.identity("m", config="max_batch_size: 16")
    server.load("m")
    assert server.config("m")["max_batch_size"] == 16


def test_a_fixed_first_axis_is_completed_without_batching(models, server):
    models.identity("m", shape=[2, 3])
    server.load("m")
    told = server.config("m")
    assert (told["max_batch_size"], told["input"][0]["dims"], "dynamic_batching" in told) == (0, [2, 3], False)


def test_a_full_configuration_gets_no_dynamic_batching(models, server):
    models.identity("m", config=FULL)
    server.load("m")
    assert "dynamic_batching" not in server.config("m")


def test_a_scalar_output_is_shown_as_one_element(models, server):
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    models.write("m", [node], [("x", 1, [1, 2])], [("y", 1, [])])
    server.load("m")
    assert server.metadata("m")["outputs"][0]["shape"] == [1]
    assert server.infer("m", {"x": X})["y"].tolist() == [3]


def test_reshape_gives_a_scalar_per_row_one_axis(models, serve, asker, kind):
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    config = FULL.replace(
        '"y" data_type: TYPE_FP32 dims: [2]', '"y" data_type: TYPE_FP32 dims: [1] reshape { shape: [] }'
    )
    models.write("m", [node], [("x", 1, ["batch", 2])], [("y", 1, ["batch"])], weights=[axes], config=config)
    ask = asker(kind, serve("m"))
    answer = ask.infer("m", {"x": np.array([[1, 2], [3, 4]], np.float32)}).as_numpy("y")
    assert answer.tolist() == [[3], [7]]


def test_reshape_of_an_input_is_undone_for_the_graph(models, server):
    models.identity("m", shape=["batch", 2, 2], config=FULL.replace("dims: [2]", "dims: [4] reshape { shape: [2, 2] }"))
    server.load("m")
    flat = np.arange(4, dtype=np.float32).reshape(1, 4)
    assert server.infer("m", {"x": flat})["y"].tolist() == flat.tolist()


def test_another_file_name_and_a_directory_of_files_are_found(models, server):
    models.identity("m", config='default_model_filename: "other.onnx"', filename="other.onnx")
    folder = models.identity("d")
    file = folder / "1" / "model.onnx"
    held = file.read_bytes()
    file.unlink()
    file.mkdir()
    (file / "model.onnx").write_bytes(held)
    server.load("m")
    server.load("d")
    assert server.infer("d", {"x": X})["y"].tolist() == X.tolist()


def test_parameters_and_optimization_reach_the_session(models, server):
    models.identity(
        "m",
        config=f"{FULL} optimization {{ graph {{ level: -1 }} }} "
        'parameters { key: "intra_op_thread_count" value { string_value: "1" } } '
        'parameters { key: "inter_op_thread_count" value { string_value: "2" } } '
        'parameters { key: "execution_mode" value { string_value: "1" } } '
        'parameters { key: "enable_mem_arena" value { string_value: "0" } }',
    )
    server.load("m")
    (served,) = server.served()
    options = served._session._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 2)
    assert (options.enable_cpu_mem_arena, options.execution_mode.name) == (False, "ORT_PARALLEL")
    assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            FULL.replace('"x" data_type: TYPE_FP32', '"x" data_type: TYPE_FP16'),
            (
                "unable to load model 'm', configuration expects datatype TYPE_FP16 for input 'x', model "
                "provides TYPE_FP32"
            ),
        ),
        (
            FULL.replace("dims: [2]", "dims: [1, 2]"),
            (
                "model 'm', tensor 'x': the model expects 2 dimensions (shape [-1,2]) but the model "
                "configuration specifies 3 dimensions (an initial batch dimension because max_batch_size > 0 "
                "followed by the explicit tensor shape, making complete shape [-1,1,2])"
            ),
        ),
        (FULL.replace("dims: [2]", "dims: [3]"), "making complete shape [-1,3])"),
        (FULL.replace("dims: [2]", "dims: [-1]"), "making complete shape [-1,-1])"),
        (
            IO,
            (
                "the model expects 2 dimensions (shape [-1,2]) but the model configuration specifies 1 "
                "dimensions (shape [2])"
            ),
        ),
        (FULL.replace('"x"', '"q"'), "unexpected inference input 'q', allowed inputs are: x"),
        (FULL.replace('"y"', '"q"'), "unexpected inference output 'q', allowed outputs are: y"),
        (
            FULL + ' input { name: "z" data_type: TYPE_FP32 dims: [2] }',
            ("unable to load model 'm', configuration expects 2 inputs, model provides 1"),
        ),
        (
            FULL + " instance_group { kind: KIND_GPU }",
            ("instance group m_0 of model m has kind KIND_GPU but no GPUs are available"),
        ),
        (
            FULL + (' optimization { execution_accelerators { cpu_execution_accelerator { name: "magic" } } }'),
            "unknown Execution Accelerator 'magic' is requested",
        ),
        (FULL + " sequence_batching { }", "asks for sequence_batching, which this server does not have"),
        (FULL + " model_transaction_policy { decoupled: true }", "asks to be decoupled"),
        (FULL + ' parameters { key: "intra_op_thread_count" value { string_value: "many" } }', "'many' is no number"),
        (FULL.replace("max_batch_size: 8", "max_batch_size: -1"), "'max_batch_size' must be non-negative"),
        (FULL.replace('"y"', '"y" label_filename: "none.txt"'), "failed to read label file 'none.txt'"),
        (FULL + ' default_model_filename: "none.onnx"', "unable to find '"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_in_tritons_words(models, server, config, text):
    models.identity("m", config=config)
    with pytest.raises(LoadFailed) as caught:
        server.load("m")
    assert caught.value.message.startswith("load failed for model 'm': version 1 is at UNAVAILABLE state: ")
    assert text in caught.value.message
    assert text in reason(server, "m")
    assert not server.is_model_ready("m")


@pytest.mark.parametrize("config", ["max_batch_size: 4", FULL])
def test_batching_over_a_fixed_first_axis_is_refused(models, server, config):
    models.identity("m", shape=[2, 2], config=config)
    with pytest.raises(LoadFailed, match=r"does not support batching|the first dimension must be -1"):
        server.load("m")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("max_batch_size: eight", "failed to parse config.pbtxt"),
        ('name: "other"', "configuration names model 'other', but its folder is 'm'"),
        ('platform: "tensorrt_plan"', "unexpected platform type for 'm'"),
        ('backend: "onnx"', "unexpected platform type for 'm'"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_refused_with_its_reason(models, server, config, text):
    models.identity("m", config=config)
    with pytest.raises(ModelUnloadable) as caught:
        server.load("m")
    assert caught.value.message.startswith("failed to load 'm', failed to poll from model repository: ")
    assert text in caught.value.message
    assert text in reason(server, "m")


def test_a_configuration_that_is_no_text_is_refused(models, server):
    (models.identity("m") / "config.pbtxt").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelUnloadable, match=r"failed to read config.pbtxt of 'm'"):
        server.load("m")


def test_a_model_without_versions_is_refused(models, server):
    models.identity("m", config="version_policy { specific { versions: [7] } }")
    (models.repository / "empty").mkdir()
    for name in ("m", "empty"):
        with pytest.raises(LoadFailed, match="at least one version must be available under the version policy"):
            server.load(name)


def test_only_plain_numbers_are_versions(models, server):
    models.scaled("m", 2, config="version_policy { all {} }", versions=(1, 2))
    for name in ("01", "0", "v3", "9" * 30, "-1"):
        (models.repository / "m" / name).mkdir()
    server.load("m")
    assert server.metadata("m")["versions"] == ["1", "2"]


def test_bad_models_do_not_stop_the_good_ones(models, repository):
    models.identity("good")
    models.identity("config", config="max_batch_size: eight")
    (models.identity("corrupt") / "1" / "model.onnx").write_bytes(b"nonsense")
    (models.identity("cut") / "1" / "model.onnx").write_bytes(b"")
    (repository / "file").write_text("no folder")
    with ModelServer(repository, control_mode="none") as server:
        server.load_at_start()
        assert server.is_ready()
        assert server.infer("good", {"x": X})["y"].tolist() == X.tolist()
        states = {line.name: line.state for line in server.index()}
    assert states == {"good": "READY", "config": "UNAVAILABLE", "corrupt": "UNAVAILABLE", "cut": "UNAVAILABLE"}


def test_what_nobody_foresaw_in_one_model_does_not_stop_the_others(models, repository, monkeypatch):
    import keynet_serving._server as module

    models.identity("good")
    models.identity("odd")
    load = module.load_model

    def odd(folder, name, *rest):
        if name == "odd":
            raise LookupError("nobody knows")
        return load(folder, name, *rest)

    monkeypatch.setattr(module, "load_model", odd)
    with ModelServer(repository) as server:
        server.load_at_start(["*"])
        assert server.is_ready()
        assert server.is_model_ready("good")
        assert "nobody knows" in reason(server, "odd")


def test_a_missing_package_refuses_the_model_that_needs_it(models, server, monkeypatch):
    models.identity("m", onnx_type=TensorProto.BFLOAT16)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(LoadFailed, match="pip install ml_dtypes"):
        server.load("m")


def test_models_that_were_never_loaded_are_in_the_index_by_name(models, server):
    models.identity("m")
    assert [line.to_dict() for line in server.index()] == [{"name": "m"}]
    assert server.index(only_ready=True) == []


def test_a_repository_that_is_gone_is_said(tmp_path):
    with ModelServer(tmp_path / "nowhere") as server, pytest.raises(ModelUnloadable, match="cannot be read"):
        server.index()


def test_mode_none_refuses_to_load_by_request(models, serve):
    models.identity("m")
    engine = serve(control_mode="none")
    for action in ("load", "unload"):
        status, text = engine.error("POST", f"/v2/repository/models/m/{action}")
        assert (status, text) == (503, "explicit model load / unload is not allowed if polling is enabled")
    assert engine.request("GET", "/v2/models/m/ready")[0] == 200
    with ModelServer(engine.repository, control_mode="none") as server, pytest.raises(ControlRefused):
        server.check_control()
