"""The two models of the serving benchmarks, as a Triton repository, and ONNX Runtime as they are compared with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pathlib import Path

Array = npt.NDArray[Any]


def to_session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def write_mlp(repository: Path) -> tuple[str, Array]:
    from onnx import TensorProto, helper

    generator = np.random.default_rng(0)
    weights, nodes, at = [], [], "input_0"
    for number, shape in enumerate([(16, 64), (64, 64), (64, 10)]):
        values = generator.normal(size=shape).astype(np.float32)
        weights.append(helper.make_tensor(f"w{number}", TensorProto.FLOAT, shape, values.ravel()))
        nodes.append(helper.make_node("MatMul", [at, f"w{number}"], [f"m{number}"]))
        at = f"m{number}" if number == 2 else f"r{number}"
        if number < 2:
            nodes.append(helper.make_node("Relu", [f"m{number}"], [at]))
    nodes[-1].output[0] = "output_0"
    write_model(repository, "mlp", nodes, weights, ["batch", 16], ["batch", 10], "dims: [16]", "dims: [10]")
    return "input_0", generator.normal(size=(1, 16)).astype(np.float32)


def write_conv(repository: Path) -> tuple[str, Array]:
    from onnx import TensorProto, helper

    generator = np.random.default_rng(0)
    weights, nodes, at = [], [], "input_0"
    for number, (outs, ins) in enumerate([(16, 3), (16, 16), (32, 16)]):
        values = generator.normal(size=(outs, ins, 3, 3)).astype(np.float32)
        weights.append(helper.make_tensor(f"w{number}", TensorProto.FLOAT, values.shape, values.ravel()))
        nodes.append(helper.make_node("Conv", [at, f"w{number}"], [f"c{number}"], strides=[2, 2], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        at = f"r{number}"
    nodes.append(helper.make_node("GlobalAveragePool", [at], ["output_0"]))
    shape_in, shape_out = ["batch", 3, 224, 224], ["batch", 32, 1, 1]
    write_model(repository, "conv", nodes, weights, shape_in, shape_out, "dims: [3, 224, 224]", "dims: [32, 1, 1]")
    return "input_0", generator.normal(size=(1, 3, 224, 224)).astype(np.float32)


def write_model(
    repository: Path,
    name: str,
    nodes: list[Any],
    weights: list[Any],
    shape_in: list[Any],
    shape_out: list[Any],
    *dims: str,
) -> None:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input_0", TensorProto.FLOAT, shape_in)],
        [helper.make_tensor_value_info("output_0", TensorProto.FLOAT, shape_out)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (repository / name / "config.pbtxt").write_text(
        f'backend: "onnxruntime" max_batch_size: 32 dynamic_batching {{ }}\n'
        f'input {{ name: "input_0" data_type: TYPE_FP32 {dims[0]} }}\n'
        f'output {{ name: "output_0" data_type: TYPE_FP32 {dims[1]} }}\n'
        'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
    )
