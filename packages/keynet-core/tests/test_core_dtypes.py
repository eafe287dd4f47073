"""Element types under the names of every neighbour, asked of the neighbours themselves."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from mlflow.types import TensorSpec as MlflowTensorSpec
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

from keynet_core import DataType, TensorMismatch

ALL = pytest.mark.parametrize("dtype", list(DataType), ids=lambda dtype: dtype.name)


@ALL
def test_numpy_dtype_leads_back_to_the_type(dtype):
    assert DataType.from_numpy(dtype.to_numpy()) is dtype


@ALL
def test_size_is_what_numpy_says(dtype):
    assert dtype.size_bytes == (0 if dtype is DataType.STRING else dtype.to_numpy().itemsize)


@ALL
def test_number_is_the_one_onnx_gives_the_type(dtype):
    names = {DataType.FP16: "FLOAT16", DataType.FP32: "FLOAT", DataType.FP64: "DOUBLE", DataType.BF16: "BFLOAT16"}
    assert onnx.TensorProto.DataType.Value(names.get(dtype, dtype.name)) == dtype.onnx
    assert DataType.from_onnx(dtype.onnx) is dtype


@ALL
def test_onnx_maps_its_number_to_the_same_numpy_dtype(dtype):
    expected = np.dtype(object) if dtype is DataType.STRING else onnx.helper.tensor_dtype_to_np_dtype(dtype.onnx)
    assert dtype.to_numpy() == expected


@ALL
def test_kserve_name_is_the_one_the_triton_client_computes(dtype):
    assert np_to_triton_dtype(dtype.to_numpy()) == dtype.kserve
    assert DataType.from_kserve(dtype.kserve) is dtype


@ALL
def test_triton_client_reads_the_kserve_name_as_the_same_numpy_dtype(dtype):
    read = np.dtype(triton_to_np_dtype(dtype.kserve))
    assert read == dtype.to_numpy() or (dtype, read) == (DataType.BF16, np.float32)


@ALL
def test_triton_name_is_in_its_own_configuration_schema(dtype):
    assert dtype.triton in dict(model_config_pb2.DataType.items())
    assert DataType.from_triton(dtype.triton) is dtype


def test_every_type_of_tritons_configuration_has_a_row():
    assert set(dict(model_config_pb2.DataType.items())) - {"TYPE_INVALID"} == {dtype.triton for dtype in DataType}


@ALL
def test_mlflow_accepts_the_name_in_a_signature(dtype):
    spec = MlflowTensorSpec(np.dtype(dtype.mlflow), (-1, 2))
    assert spec.to_dict()["tensor-spec"]["dtype"] == dtype.mlflow
    assert MlflowTensorSpec.from_json_dict(**spec.to_dict()) == spec


@pytest.mark.parametrize("text", [str, bytes, "U5", "S5", object, np.dtypes.StringDType()])
def test_every_kind_of_text_is_a_string(text):
    assert DataType.from_numpy(text) is DataType.STRING


@pytest.mark.parametrize("name", [">f4", "<f4", "=f4"])
def test_byte_order_is_no_part_of_the_type(name):
    assert DataType.from_numpy(name) is DataType.FP32


def test_bfloat16_is_known_by_its_name_alone():
    assert DataType.from_numpy("bfloat16") is DataType.BF16


@pytest.mark.parametrize("foreign", [complex, "datetime64[ns]", "V4", "no such type"])
def test_a_type_that_cannot_be_served_is_refused_with_those_that_can(foreign):
    with pytest.raises(TensorMismatch, match=r"it can serve bool, .*float32"):
        DataType.from_numpy(foreign)


@pytest.mark.parametrize(
    ("read", "value"), [(DataType.from_kserve, "FP8"), (DataType.from_triton, "FP32"), (DataType.from_onnx, 17)]
)
def test_an_unknown_name_is_refused_and_named(read, value):
    with pytest.raises(TensorMismatch, match=repr(value)):
        read(value)


def test_fractions_are_held_by_the_floating_types_only():
    assert {dtype.name for dtype in DataType if dtype.is_float} == {"FP16", "FP32", "FP64", "BF16"}


def test_bfloat16_without_ml_dtypes_names_the_package_to_install(python):
    done = python(
        """
        import sys
        sys.modules["ml_dtypes"] = None
        from keynet_core import DataType, MissingDependency
        DataType.FP32.to_numpy()
        try:
            DataType.BF16.to_numpy()
        except MissingDependency as error:
            print(error.code, error.hint)
        """
    )
    assert done.stdout.split() == ["dependency.missing", "pip", "install", "ml_dtypes"], done.stderr
