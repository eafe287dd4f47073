import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from keynet_core import DataType, Signature, TensorSpec
from keynet_train._errors import ServingOptionsRefused
from keynet_train._triton import ServingOptions, to_config

GOLDEN_DEFAULT = """\
name: "mnist"
version_policy {
  latest {
    num_versions: 1
  }
}
input {
  name: "input_0"
  data_type: TYPE_FP32
  dims: -1
  dims: 3
  dims: 224
  dims: 224
}
output {
  name: "output_0"
  data_type: TYPE_FP32
  dims: -1
  dims: 10
}
instance_group {
  count: 1
}
backend: "onnxruntime"
"""

GOLDEN_BATCHED = """\
name: "mnist"
version_policy {
  specific {
    versions: 1
    versions: 3
  }
}
max_batch_size: 8
input {
  name: "input_0"
  data_type: TYPE_INT64
  dims: 5
}
output {
  name: "output_0"
  data_type: TYPE_FP32
  dims: 2
  label_filename: "labels.txt"
}
output {
  name: "output_1"
  data_type: TYPE_FP32
  dims: 1
  reshape {
  }
}
instance_group {
  count: 2
}
dynamic_batching {
  preferred_batch_size: 4
  preferred_batch_size: 8
  max_queue_delay_microseconds: 100
}
model_warmup {
  name: "sample"
  batch_size: 1
  inputs {
    key: "input_0"
    value {
      data_type: TYPE_INT64
      dims: 5
      zero_data: true
    }
  }
}
backend: "onnxruntime"
"""


def spec(name, *shape, dtype=DataType.FP32):
    return TensorSpec(name=name, dtype=dtype, shape=shape)


IMAGE = Signature(inputs=(spec("input_0", "batch", 3, 224, 224),), outputs=(spec("output_0", "batch", 10),))
SCORES = Signature(
    inputs=(spec("input_0", "batch", 5, dtype=DataType.INT64),),
    outputs=(spec("output_0", "batch", 2), spec("output_1", "batch")),
)


def parsed(text):
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_by_default_the_batch_is_part_of_the_shape():
    text = to_config("mnist", IMAGE, ServingOptions(), {"input_0": (1, 3, 224, 224)})
    assert text == GOLDEN_DEFAULT
    config = parsed(text)
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [-1, 3, 224, 224]
    assert not config.HasField("dynamic_batching")


def test_with_batching_the_batch_is_left_out_and_batching_is_explicit():
    options = ServingOptions(
        max_batch_size=8,
        instance_count=2,
        labels=("cat", "dog"),
        warmup=True,
        specific_versions=(3, 1),
        max_queue_delay_us=100,
        preferred_batch_sizes=(4, 8),
    )
    text = to_config("mnist", SCORES, options, {"input_0": (2, 5)})
    assert text == GOLDEN_BATCHED
    assert parsed(text).output[1].HasField("reshape")


def test_batching_without_further_options_is_still_written():
    config = parsed(to_config("m", SCORES, ServingOptions(max_batch_size=4), {"input_0": (2, 5)}))
    assert config.HasField("dynamic_batching")


def test_scalars_travel_as_one_element():
    scalar = Signature(inputs=(spec("x"),), outputs=(spec("y"),))
    config = parsed(to_config("m", scalar, ServingOptions(warmup=True), {"x": ()}))
    for tensor in (config.input[0], config.output[0]):
        assert list(tensor.dims) == [1]
        assert not tensor.HasField("reshape")  # Triton refuses it without a batch
    assert list(config.model_warmup[0].inputs["x"].dims) == [1]


def test_the_greatest_numbers_fit_the_protocol():
    greatest = (1 << 31) - 1
    options = ServingOptions(
        max_batch_size=greatest,
        instance_count=greatest,
        specific_versions=((1 << 63) - 1,),
        max_queue_delay_us=greatest,
        preferred_batch_sizes=(greatest,),
    )
    assert parsed(to_config("m", SCORES, options, {"input_0": (2, 5)})).max_batch_size == greatest
    parsed(to_config("m", SCORES, ServingOptions(latest_versions=greatest), {"input_0": (2, 5)}))


@pytest.mark.parametrize("dtype", DataType)
def test_every_element_type_has_a_name_triton_knows(dtype):
    told = Signature(inputs=(spec("x", 1, dtype=dtype),), outputs=(spec("y", 1, dtype=dtype),))
    config = parsed(to_config("m", told, ServingOptions(), {"x": (1,)}))
    assert model_config_pb2.DataType.Name(config.input[0].data_type) == dtype.triton


def test_text_beyond_ascii_stays_readable():
    told = Signature(inputs=(spec("이미지", 1),), outputs=(spec("y", 1),))
    assert "이미지" in to_config("m", told, ServingOptions(), {"이미지": (1,)})


def test_batching_is_refused_for_a_first_axis_that_is_not_the_batch():
    rows = Signature(inputs=(spec("x", "batch", 4),), outputs=(spec("y", "y_dim_0", 4),))
    with pytest.raises(ServingOptionsRefused, match="do not share one that varies"):
        to_config("m", rows, ServingOptions(max_batch_size=4), {"x": (1, 4)})


def test_labels_have_to_be_as_many_as_classes():
    with pytest.raises(ServingOptionsRefused, match="2 labels for 'output_0' of 'm', which has 10 classes"):
        to_config("m", IMAGE, ServingOptions(labels=("a", "b")), {"input_0": (1, 3, 224, 224)})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_batch_size": -1}, "max_batch_size is -1"),
        ({"max_batch_size": True}, "max_batch_size is True"),
        ({"max_batch_size": 1 << 31}, "from 0 to 2147483647"),
        ({"instance_count": 0}, "instance_count is 0"),
        ({"instance_count": 1 << 31}, "instance_count is 2147483648"),
        ({"latest_versions": 1 << 31}, "latest_versions"),
        ({"specific_versions": (1 << 63,)}, "specific_versions"),
        ({"max_batch_size": 4, "max_queue_delay_us": 1 << 31}, "max_queue_delay_us"),
        ({"max_batch_size": 4, "preferred_batch_sizes": (1 << 31,)}, "preferred_batch_sizes is 2147483648"),
        ({"latest_versions": 0}, "latest_versions"),
        ({"specific_versions": (0,)}, "specific_versions"),
        ({"max_batch_size": 4, "max_queue_delay_us": -1}, "max_queue_delay_us"),
        ({"max_batch_size": 4, "preferred_batch_sizes": (0,)}, "preferred_batch_sizes"),
        ({"max_queue_delay_us": 5}, "max_batch_size=0 says that none are"),
        ({"preferred_batch_sizes": (4,)}, "max_batch_size=0 says that none are"),
        ({"max_batch_size": 4, "preferred_batch_sizes": (8,)}, "preferred batch size 8"),
        ({"labels": ("cat", "")}, "'' is no label"),
        ({"labels": ("cat\ndog",)}, "one line"),
    ],
)
def test_options_that_contradict_are_refused_at_once(options, told):
    with pytest.raises(ServingOptionsRefused, match=told):
        ServingOptions(**options)
