import shutil

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from keynet_core import DataType, TensorSpec
from keynet_train._errors import GraphInvalid
from keynet_train._finishing import finish
from keynet_train._graph import load_graph, read_onnx, read_signature, validate
from keynet_train._runtime import OnnxSession, run_onnx

OPTIONAL = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
WEIGHT = np.arange(2048, dtype=np.float32).reshape(4, 512)


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def linear(*, inputs=None, outputs=None, weights=None, opset=18, ir_version=10):
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], doc_string="File '/home/someone/train.py'")],
        "main",
        inputs or [value("x", ["n", 4])],
        outputs or [value("y", ["n", 512])],
        initializer=weights or [numpy_helper.from_array(WEIGHT, "w")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version, producer_version="1.2.3"
    )
    helper.set_model_props(model, {"trace": "/home/someone"})
    return model


def unknown(opsets):
    """Return a model of one operation nobody knows, with an output of no type."""
    node = helper.make_node("Riddle", ["x"], ["y"], domain="nobody")
    graph = helper.make_graph([node], "main", [value("x", [1])], [onnx.ValueInfoProto(name="y")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*each) for each in opsets])


def saved(tmp_path, model, name="model.onnx"):
    path = tmp_path / name
    path.write_bytes(model.SerializeToString())
    return path


def external(tmp_path, location="weights.bin"):
    path = tmp_path / "model.onnx"
    onnx.save(linear(), str(path), save_as_external_data=True, location=location)
    return path


def point_to(path, **entry):
    """Let the weight of an ONNX file name another place."""
    model = onnx.load(str(path), load_external_data=False)
    told = {each.key: each for each in model.graph.initializer[0].external_data}
    for key, text in entry.items():
        told[key].value = text
    path.write_bytes(model.SerializeToString())


def test_names_types_and_symbols_are_read(tmp_path):
    told = validate(saved(tmp_path, linear()))
    assert str(told.signature) == "x FP32 [n, 4] -> y FP32 [n, 512]"
    assert (told.opset, told.ir_version, told.external) == (18, 10, ())


def test_weights_that_are_inputs_too_are_no_inputs(tmp_path):
    model = linear(inputs=[value("w", [4, 512]), value("x", ["n", 4])])
    assert [each.name for each in read_signature(saved(tmp_path, model)).inputs] == ["x"]


@pytest.mark.parametrize("dim", [None, 0, -1])
def test_an_axis_without_name_gets_a_stable_one(tmp_path, dim):
    model = linear(inputs=[value("x", [dim, 4])])
    assert read_signature(saved(tmp_path, model)).inputs[0].shape == ("x_dim_0", 4)


def test_a_missing_output_shape_is_inferred(tmp_path):
    model = linear(outputs=[value("y", None)])
    assert read_signature(saved(tmp_path, model)).outputs[0].shape == ("n", 512)


def test_a_shape_nobody_knows_is_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "main", [value("x", None)], [value("y", None)]
    )
    with pytest.raises(GraphInvalid, match=r"input 'x' of model\.onnx has no shape"):
        read_signature(saved(tmp_path, helper.make_model(graph)))


def test_the_zipmap_of_a_real_classifier_is_refused_with_the_option_that_avoids_it(tmp_path):
    skl2onnx = pytest.importorskip("skl2onnx")
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit(np.array([[0.0], [1.0]]), [0, 1])
    sample = [("x", skl2onnx.common.data_types.FloatTensorType([None, 1]))]
    with pytest.raises(GraphInvalid, match="zipmap") as caught:
        read_signature(saved(tmp_path, skl2onnx.convert_sklearn(model, initial_types=sample)))
    assert "output_probability" in caught.value.message
    plain = skl2onnx.convert_sklearn(model, initial_types=sample, options={"zipmap": False})
    assert read_signature(saved(tmp_path, plain)).outputs[1].shape == ("probabilities_dim_0", 2)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (linear(inputs=[value("x", ["n", 4], TensorProto.COMPLEX64)]), "input 'x' .* type 14"),
        (linear(inputs=[value("a/b", ["n", 4])]), "'a/b'"),
        (linear(outputs=[helper.make_tensor_sequence_value_info("y", 1, None)]), "has type sequence"),
        (linear(outputs=[helper.make_value_info("y", OPTIONAL)]), "'y' of model.onnx has type optional"),
        (unknown(opsets=[("", 18)]), "cannot be inferred: .*Riddle"),
        (unknown(opsets=[("", 18), ("nobody", 1)]), "'y' of model.onnx has type none"),
        (onnx.ModelProto(), "no outputs"),
    ],
)
def test_tensors_that_cannot_be_served_are_refused(tmp_path, model, told):
    with pytest.raises(GraphInvalid, match=told):
        read_signature(saved(tmp_path, model))


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(GraphInvalid, match="cannot be read"):
        read_onnx(path)
    path.write_bytes(b"PK\x03\x04 not an onnx file at all")
    with pytest.raises(GraphInvalid, match="no ONNX"):
        read_onnx(path)


def test_what_the_checker_finds_is_told(tmp_path):
    model = linear()
    model.graph.node[0].op_type = "MatMulTypo"
    with pytest.raises(GraphInvalid, match="no valid ONNX model"):
        validate(saved(tmp_path, model))


def test_weights_beside_the_file_are_listed(tmp_path):
    assert validate(external(tmp_path)).external == ("weights.bin",)


def test_weights_that_are_not_there_are_refused(tmp_path):
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(GraphInvalid, match=r"'weights\.bin', which is not beside it"):
        read_onnx(path)


def test_weights_that_end_too_early_are_refused(tmp_path):
    path = external(tmp_path)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(GraphInvalid, match="has 8191 bytes, weight 'w' ends at byte 8192"):
        read_onnx(path)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "C:\\weights.bin", "a/../../w", ""])
def test_weights_outside_of_the_folder_are_refused(tmp_path, location):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = external(inside)
    shutil.copy(inside / "weights.bin", tmp_path / "weights.bin")
    point_to(path, location=location)
    with pytest.raises(GraphInvalid, match="outside its folder"):
        read_onnx(path)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = external(inside)
    (inside / "weights.bin").rename(tmp_path / "weights.bin")
    (inside / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(GraphInvalid, match="a link out of its folder"):
        read_onnx(path)


def test_an_offset_that_is_no_number_is_refused(tmp_path):
    path = external(tmp_path)
    point_to(path, length="-1")
    with pytest.raises(GraphInvalid, match="'-1' as the length"):
        read_onnx(path)


def test_weights_in_nested_graphs_are_found(tmp_path):
    (tmp_path / "deep.bin").write_bytes(bytes(4))
    tensor = TensorProto(name="deep", dims=[1], data_type=1, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="deep.bin")
    constant = helper.make_node("Constant", [], ["out"], value=tensor)
    branch = helper.make_graph([constant], "branch", [], [value("out", [1])])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([node], "main", [value("c", [], TensorProto.BOOL)], [value("y", [1])])
    assert read_onnx(saved(tmp_path, helper.make_model(graph))).external == ("deep.bin",)


INPUTS = (TensorSpec(name="x", dtype=DataType.FP32, shape=("batch", 4)),)


def test_a_finished_file_has_our_names_and_nothing_of_the_machine(tmp_path):
    target = tmp_path / "final.onnx"
    told, unused = finish(saved(tmp_path, linear()), target, INPUTS, [("batch", 512)])
    assert str(told.signature) == "x FP32 [batch, 4] -> y FP32 [batch, 512]"
    assert unused == ()
    assert b"/home/someone" not in target.read_bytes()
    assert b"1.2.3" not in target.read_bytes()
    assert told.ir_version == 8
    assert validate(target).signature == told.signature


def test_a_file_that_needs_a_newer_format_keeps_it(tmp_path):
    told, _ = finish(saved(tmp_path, linear(opset=21)), tmp_path / "final.onnx", INPUTS, [("batch", 512)])
    assert told.ir_version == 10


def test_an_input_that_was_dropped_is_put_back(tmp_path):
    inputs = (*INPUTS, TensorSpec(name="label", dtype=DataType.INT64, shape=("batch",)))
    target = tmp_path / "final.onnx"
    _, unused = finish(saved(tmp_path, linear()), target, inputs, [("batch", 512)])
    assert unused == ("label",)
    answered = run_onnx(target, {"x": np.eye(4, dtype=np.float32), "label": np.zeros(4, dtype=np.int64)})
    assert np.array_equal(answered["y"], WEIGHT)


def test_weights_in_other_files_become_one_file(tmp_path):
    source, out = external(tmp_path), tmp_path / "out"
    out.mkdir()
    model = load_graph(source)
    second = model.graph.initializer.add()
    second.CopyFrom(model.graph.initializer[0])
    second.name = "copy"
    del second.external_data[1:]
    source.write_bytes(model.SerializeToString())
    told, _ = finish(source, out / "model.onnx", INPUTS, [("batch", 512)])
    assert told.external == ("model.onnx.data",)
    assert (out / "model.onnx.data").stat().st_size == 2 * WEIGHT.nbytes
    assert np.array_equal(run_onnx(out / "model.onnx", {"x": np.eye(4, dtype=np.float32)})["y"], WEIGHT)


def test_weights_that_end_early_are_noticed_while_they_are_gathered(tmp_path):
    source = external(tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes(10))
    with pytest.raises(GraphInvalid, match="ends 8182 bytes before its weight does"):
        finish(source, tmp_path / "final.onnx", INPUTS, [("batch", 512)])


def test_a_graph_with_other_tensors_than_the_plan_is_refused(tmp_path):
    source = saved(tmp_path, linear())
    other = (TensorSpec(name="x", dtype=DataType.FP64, shape=("batch", 4)),)
    with pytest.raises(GraphInvalid, match="has an input 'x'"):
        finish(source, tmp_path / "final.onnx", other, [("batch", 512)])
    with pytest.raises(GraphInvalid, match="1 outputs, the model has 2"):
        finish(source, tmp_path / "final.onnx", INPUTS, [(1,), (1,)])


def test_the_runtime_says_what_it_cannot_load_or_run(tmp_path):
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"nothing")
    with pytest.raises(GraphInvalid, match=r"cannot load model\.onnx"):
        OnnxSession(broken)
    with pytest.raises(GraphInvalid, match="cannot run the model"):
        run_onnx(saved(tmp_path, linear()), {"x": np.zeros((1, 5), np.float32)})


def test_bfloat16_goes_in_and_comes_out(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "factor"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.BFLOAT16),
    ]
    kinds = [value("x", ["n", 2], TensorProto.BFLOAT16), value("factor", [1])]
    graph = helper.make_graph(nodes, "main", kinds, [value("y", ["n", 2], TensorProto.BFLOAT16)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    x = np.array([[1.5, -2.0]], dtype=ml_dtypes.bfloat16)
    answered = run_onnx(saved(tmp_path, model), {"x": x, "factor": np.array([2], np.float32)})["y"]
    assert answered.dtype == ml_dtypes.bfloat16
    assert answered.tolist() == [[3.0, -4.0]]
    assert run_onnx(tmp_path / "model.onnx", {"x": x[:0], "factor": np.array([2], np.float32)})["y"].shape == (0, 2)


def test_bfloat16_goes_in_beside_text(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["text"], ["said"]),
    ]
    kinds = [value("x", ["n", 2], TensorProto.BFLOAT16), value("text", ["n"], TensorProto.STRING)]
    graph = helper.make_graph(nodes, "main", kinds, [value("y", ["n", 2]), value("said", ["n"], TensorProto.STRING)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    inputs = {"x": np.array([[1.5, -2.0]], dtype=ml_dtypes.bfloat16), "text": np.array(["a"], np.object_)}
    answered = run_onnx(saved(tmp_path, model), inputs)
    assert (answered["y"].tolist(), answered["said"].tolist()) == ([[1.5, -2.0]], ["a"])
