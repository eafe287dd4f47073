"""How a model is to be served, and a signature written as Triton's `config.pbtxt` through Triton's own protobuf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keynet_train._errors import ServingOptionsRefused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keynet_core import Signature, TensorSpec

LABELS_FILE = "labels.txt"
BACKEND = "onnxruntime"

_GREATEST_INT32 = (1 << 31) - 1
_GREATEST_INT64 = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """
    How a model is to be served.

    Raises:
        ServingOptionsRefused: A number is out of range, or two options contradict each other.
    """

    max_batch_size: int = 0
    """How many requests the server may join into one; 0: it joins none, and requests carry their batch themselves."""
    instance_count: int = 1
    """How many copies of the model work side by side."""
    labels: tuple[str, ...] | None = None
    """Names of the classes, in the order of the first output's last axis."""
    warmup: bool = False
    """
    Whether the server runs the model once before it is ready: on zeros of the sample's shapes, not on its values.

    The configuration is so the same text for every sample of these shapes.
    """
    latest_versions: int = 1
    """
    How many versions are served at once: the live one, and the newest before it whose configuration is the same.

    What was taken back by a rollback, or unloaded, is not among them; a deployment's `engine_answer` says who is.
    """
    specific_versions: tuple[int, ...] = ()
    """Exactly these versions are served instead, in a repository of your own."""
    max_queue_delay_us: int | None = None
    """How long a request may wait for others to be joined with."""
    preferred_batch_sizes: tuple[int, ...] = ()
    """Sizes at which the server stops waiting for more."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_batching()
        for label in self.labels or ():
            if not isinstance(label, str) or not label or not label.isprintable():
                raise ServingOptionsRefused(f"{label!r} is no label: a label is one line of text")

    def _check_numbers(self) -> None:
        _check_number("max_batch_size", self.max_batch_size, least=0)
        _check_number("instance_count", self.instance_count, least=1)
        _check_number("latest_versions", self.latest_versions, least=1)
        for version in self.specific_versions:
            _check_number("specific_versions", version, least=1, greatest=_GREATEST_INT64)
        for size in self.preferred_batch_sizes:
            _check_number("preferred_batch_sizes", size, least=1)
        if self.max_queue_delay_us is not None:
            _check_number("max_queue_delay_us", self.max_queue_delay_us, least=0)

    def _check_batching(self) -> None:
        if self.max_batch_size == 0 and (self.preferred_batch_sizes or self.max_queue_delay_us is not None):
            raise ServingOptionsRefused(
                "max_queue_delay_us and preferred_batch_sizes say how requests are joined, and max_batch_size=0 "
                "says that none are",
                hint="ServingOptions(max_batch_size=8, ...)",
            )
        if over := [size for size in self.preferred_batch_sizes if size > self.max_batch_size]:
            raise ServingOptionsRefused(
                f"preferred batch size {over[0]} is more than max_batch_size={self.max_batch_size}"
            )


def to_config(
    name: str, signature: Signature, options: ServingOptions, sample_shapes: Mapping[str, Sequence[int]]
) -> str:
    """
    Return the text of `config.pbtxt`.

    Args:
        name: The model's name; Triton wants it equal to the folder's.
        signature: Read from the ONNX graph: Triton compares it with the graph exactly.
        options: How it is to be served.
        sample_shapes: Shape of each input in the sample, for the warm-up.

    Raises:
        ServingOptionsRefused: The options ask for batching, and the model's first axes are not one batch; or the
            labels are not as many as the first output has classes.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    is_batched = options.max_batch_size > 0
    _check_options(name, signature, options)
    config = model_config_pb2.ModelConfig(name=name, backend=BACKEND, max_batch_size=options.max_batch_size)
    for specs, entries in ((signature.inputs, config.input), (signature.outputs, config.output)):
        for spec in specs:
            _fill_tensor(entries.add(), spec, is_batched=is_batched)
    config.instance_group.add(count=options.instance_count)
    _fill_versions(config.version_policy, options)
    if is_batched:
        _fill_batching(config.dynamic_batching, options)
    if options.labels:
        config.output[0].label_filename = LABELS_FILE
    if options.warmup:
        _fill_warmup(config.model_warmup.add(), signature, sample_shapes, is_batched=is_batched)
    text: str = text_format.MessageToString(config, as_utf8=True)
    return text


def _check_options(name: str, signature: Signature, options: ServingOptions) -> None:
    if options.max_batch_size > 0 and signature.batch_symbol is None:
        raise ServingOptionsRefused(
            f"max_batch_size={options.max_batch_size} joins requests along the first axis, but the tensors of "
            f"{name!r} do not share one that varies: {signature}",
            hint="ServingOptions(max_batch_size=0), or a model whose inputs and outputs all begin with the batch",
        )
    classes = signature.outputs[0].shape[-1] if signature.outputs[0].shape else 1
    if options.labels and isinstance(classes, int) and len(options.labels) != classes:
        raise ServingOptionsRefused(
            f"{len(options.labels)} labels for {signature.outputs[0].name!r} of {name!r}, which has {classes} classes"
        )


def _fill_tensor(entry: Any, spec: TensorSpec, *, is_batched: bool) -> None:
    from tritonclient.grpc import model_config_pb2

    entry.name = spec.name
    entry.data_type = model_config_pb2.DataType.Value(spec.dtype.triton)
    sizes = spec.sizes[1:] if is_batched else spec.sizes
    if not sizes and is_batched:
        # Triton's configuration has no tensor without axes: a row's scalar is sent as [1] and reshaped.
        # Without a batch it refuses to reshape to nothing, and gives a scalar one axis by itself.
        entry.reshape.SetInParent()
    entry.dims.extend(sizes or (1,))


def _fill_versions(policy: Any, options: ServingOptions) -> None:
    if options.specific_versions:
        policy.specific.versions.extend(sorted(options.specific_versions))
    else:
        policy.latest.num_versions = options.latest_versions


def _fill_batching(batching: Any, options: ServingOptions) -> None:
    # Explicit even when empty: a server adds batching only to a configuration without tensors.
    batching.SetInParent()
    batching.preferred_batch_size.extend(options.preferred_batch_sizes)
    if options.max_queue_delay_us is not None:
        batching.max_queue_delay_microseconds = options.max_queue_delay_us


def _fill_warmup(
    warmup: Any, signature: Signature, sample_shapes: Mapping[str, Sequence[int]], *, is_batched: bool
) -> None:
    from tritonclient.grpc import model_config_pb2

    warmup.name = "sample"
    warmup.batch_size = 1
    for spec in signature.inputs:
        shape = tuple(sample_shapes[spec.name])[1 if is_batched else 0 :]
        entry = warmup.inputs[spec.name]
        entry.data_type = model_config_pb2.DataType.Value(spec.dtype.triton)
        entry.dims.extend(shape or (1,))
        entry.zero_data = True


def _check_number(name: str, value: object, *, least: int, greatest: int = _GREATEST_INT32) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= greatest:
        raise ServingOptionsRefused(f"{name} is {value!r}: it is a whole number from {least} to {greatest}")
