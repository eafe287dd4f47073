"""`config.pbtxt` to a complete `ModelConfig`: parsed with Triton's protobuf, defaults filled in, I/O from the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keynet_serving._errors import ModelUnloadable, VersionRefused
from keynet_serving._session import SessionOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keynet_serving._repository import ModelFolder
    from keynet_serving._session import GraphTensor, Session

BACKEND = "onnxruntime"
PLATFORM = "onnxruntime_onnx"
DEFAULT_MAX_BATCH_SIZE = 4

_UNSUPPORTED = ("sequence_batching", "ensemble_scheduling", "model_repository_agents")
_ACCELERATORS = ("gpu_execution_accelerator", "cpu_execution_accelerator")


def read_config(folder: ModelFolder, override: str | None = None) -> Any:
    """
    Return a folder's `ModelConfig` with name, backend, file name and policy filled in.

    Args:
        folder: The model's folder.
        override: A configuration as JSON, which takes the place of `config.pbtxt`.

    Raises:
        ModelUnloadable: It cannot be parsed, names another model, or is for another backend.
    """
    config = _parse_json(override) if override is not None else _parse_text(folder.read_config() or "")
    if config.name and config.name != folder.name:
        raise ModelUnloadable(f"configuration names model '{config.name}', but its folder is '{folder.name}'")
    if (config.platform or PLATFORM) != PLATFORM or (config.backend or BACKEND) != BACKEND:
        told = f"platform '{config.platform}', backend '{config.backend}'"
        raise ModelUnloadable(
            f"unexpected platform type for '{folder.name}': {told}; "
            f"this server runs platform '{PLATFORM}', backend '{BACKEND}'"
        )
    _fill(config, folder.name)
    return config


def complete_config(config: Any, session: Session) -> None:
    """
    Take from the graph what the configuration leaves out, by the rules of Triton's ONNX Runtime backend.

    Raises:
        VersionRefused: The configuration asks for batching and the graph's first axes are fixed.
    """
    if config.input and config.output:
        return
    tensors = (*session.inputs, *session.outputs)
    can_batch = bool(tensors) and all(tensor.sizes[:1] == [-1] for tensor in tensors)
    if can_batch and config.max_batch_size == 0:
        config.max_batch_size = DEFAULT_MAX_BATCH_SIZE
    elif not can_batch and config.max_batch_size > 0:
        raise VersionRefused(
            f"autofill failed for model '{config.name}': model does not support batching while "
            "non-zero max_batch_size is specified"
        )
    if config.max_batch_size > 1 and not config.HasField("dynamic_batching"):
        config.dynamic_batching.preferred_batch_size.append(config.max_batch_size)
    if not config.input:
        _add_tensors(config.input, session.inputs, batched=config.max_batch_size > 0)
    if not config.output:
        _add_tensors(config.output, session.outputs, batched=config.max_batch_size > 0)


def session_options(config: Any, *, default_threads: int) -> SessionOptions:
    """
    Return how a configuration asks ONNX Runtime to run.

    Raises:
        VersionRefused: A parameter is no number, or needs what this machine or this server does not have.
    """
    _refuse_unsupported(config)
    return SessionOptions(
        intra_op_threads=_number(config, "intra_op_thread_count") or default_threads,
        inter_op_threads=_number(config, "inter_op_thread_count"),
        parallel=_number(config, "execution_mode") == 1,
        memory_arena=_number(config, "enable_mem_arena", default=1) != 0,
        graph_level=config.optimization.graph.level,
        use_cuda=_wants_gpu(config),
    )


def to_json(config: Any) -> dict[str, Any]:
    """Return a configuration as Triton's `/config` tells it: every field by its name, numbers as numbers."""
    from google.protobuf import json_format

    told = json_format.MessageToDict(
        config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    numbered = _numbers(config.DESCRIPTOR, told)
    assert isinstance(numbered, dict)
    return numbered


def _parse_text(text: str) -> Any:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ModelUnloadable(f"failed to parse config.pbtxt: {error}") from error


def _parse_json(text: str) -> Any:
    from google.protobuf import json_format
    from tritonclient.grpc import model_config_pb2

    try:
        return json_format.Parse(text, model_config_pb2.ModelConfig())
    except json_format.ParseError as error:
        raise ModelUnloadable(f"failed to parse the configuration of the request: {error}") from error


def _fill(config: Any, name: str) -> None:
    config.name = name
    config.platform = PLATFORM
    config.backend = BACKEND
    config.default_model_filename = config.default_model_filename or "model.onnx"
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    config.optimization.SetInParent()
    if not config.instance_group:
        config.instance_group.add()
    for number, group in enumerate(config.instance_group):
        group.name = group.name or f"{name}_{number}"
        group.count = group.count or 1


def _add_tensors(rows: Any, tensors: Iterable[GraphTensor], *, batched: bool) -> None:
    from tritonclient.grpc import model_config_pb2

    for tensor in tensors:
        row = rows.add()
        row.name = tensor.name
        row.data_type = model_config_pb2.DataType.Value(tensor.dtype.triton)
        sizes = tensor.sizes[1:] if batched else tensor.sizes
        row.dims.extend(sizes or [1])
        if not sizes:
            row.reshape.SetInParent()


def _refuse_unsupported(config: Any) -> None:
    for field in _UNSUPPORTED:
        if config.HasField(field):
            raise VersionRefused(f"model '{config.name}' asks for {field}, which this server does not have")
    if config.model_transaction_policy.decoupled:
        raise VersionRefused(f"model '{config.name}' asks to be decoupled, which this server does not have")
    accelerators = config.optimization.execution_accelerators
    for accelerator in (each for kind in _ACCELERATORS for each in getattr(accelerators, kind)):
        raise VersionRefused(f"unknown Execution Accelerator '{accelerator.name}' is requested")


def _wants_gpu(config: Any) -> bool:
    import onnxruntime
    from tritonclient.grpc import model_config_pb2

    kinds = model_config_pb2.ModelInstanceGroup
    has_gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    for group in config.instance_group:
        if group.kind == kinds.KIND_GPU and not has_gpu:
            raise VersionRefused(
                f"instance group {group.name} of model {config.name} has kind KIND_GPU but no GPUs are available",
                label="Invalid argument",
            )
        if group.kind == kinds.KIND_AUTO:
            group.kind = kinds.KIND_GPU if has_gpu else kinds.KIND_CPU
    return any(group.kind == kinds.KIND_GPU for group in config.instance_group)


def _number(config: Any, key: str, *, default: int = 0) -> int:
    if key not in config.parameters:
        return default
    text = config.parameters[key].string_value
    try:
        return int(text)
    except ValueError as error:
        raise VersionRefused(f"failed to parse parameter '{key}' of '{config.name}': '{text}' is no number") from error


def _numbers(descriptor: Any, told: Any) -> Any:
    """Undo protobuf's JSON habit of writing 64-bit integers as text."""
    if isinstance(told, list):
        return [_numbers(descriptor, each) for each in told]
    if not isinstance(told, dict) or descriptor is None:
        return told
    fields = descriptor.fields_by_name
    return {key: _numbered(fields[key], value) if key in fields else value for key, value in told.items()}


def _numbered(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        return {key: _numbered(entry, each) for key, each in value.items()}
    if field.message_type is not None:
        return _numbers(field.message_type, value)
    if field.cpp_type in {field.CPPTYPE_INT64, field.CPPTYPE_UINT64}:
        return [int(each) for each in value] if isinstance(value, list) else int(value)
    return value
