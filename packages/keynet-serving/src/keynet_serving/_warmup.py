"""`model_warmup`: requests a version answers before it serves, so that no client waits for its first run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from keynet_core import DataType
from keynet_serving._contract import to_text
from keynet_serving._errors import ServingError, VersionRefused
from keynet_serving._requests import InferInput, InferRequest

if TYPE_CHECKING:
    from keynet_serving._model import ServedVersion
    from keynet_serving._repository import ModelFolder

MAX_WARMUP_BYTES = 256 << 20
MAX_WARMUP_RUNS = 1000


def warm_up(served: ServedVersion, folder: ModelFolder) -> None:
    """
    Run every sample of the configuration.

    Raises:
        VersionRefused: A sample cannot be made or the model does not answer it.
    """
    for sample in served.config.model_warmup:
        request = InferRequest(model=served.name, inputs=_inputs(sample, served, folder))
        try:
            for _ in range(min(max(1, sample.count), MAX_WARMUP_RUNS)):
                served.start(request).run()
        except ServingError as error:
            raise VersionRefused(f"failed to run warmup sample '{sample.name}': {error.message}") from error


def _inputs(sample: Any, served: ServedVersion, folder: ModelFolder) -> tuple[InferInput, ...]:
    rows = [max(1, sample.batch_size)] if served.contract.max_batch_size > 0 else []
    return tuple(_input(name, told, rows, folder) for name, told in sample.inputs.items())


def _input(name: str, told: Any, rows: list[int], folder: ModelFolder) -> InferInput:
    from tritonclient.grpc import model_config_pb2

    dtype = DataType.from_triton(model_config_pb2.DataType.Name(told.data_type))
    shape = (*rows, *told.dims)
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * max(1, dtype.size_bytes) > MAX_WARMUP_BYTES:
        raise VersionRefused(f"warmup input '{name}' has shape {to_text(shape)}, which is no size to warm up with")
    return InferInput(name=name, datatype=dtype.kserve, shape=shape, data=_data(told, dtype, count, folder))


def _data(told: Any, dtype: DataType, count: int, folder: ModelFolder) -> bytes:
    if told.WhichOneof("input_data_type") == "input_data_file":
        return _read(told.input_data_file, folder)
    if dtype is DataType.STRING:
        return bytes(4 * count)
    if told.WhichOneof("input_data_type") == "random_data":
        return _random(dtype, count)
    return bytes(count * dtype.size_bytes)


def _random(dtype: DataType, count: int) -> bytes:
    import numpy as np

    generator = np.random.default_rng(0)
    if dtype.is_float:
        return generator.random(count).astype(dtype.to_numpy()).tobytes()
    return generator.integers(0, 2, count).astype(dtype.to_numpy()).tobytes()


def _read(filename: str, folder: ModelFolder) -> bytes:
    path = folder.confine(folder.root / "warmup" / filename)
    if not path.is_relative_to(folder.root / "warmup"):
        raise VersionRefused(f"warmup file '{filename}' lies outside the model's 'warmup' folder")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_WARMUP_BYTES + 1)
    except OSError as error:
        raise VersionRefused(f"unable to read warmup file '{filename}': {error.strerror}") from error
    if len(data) > MAX_WARMUP_BYTES:
        raise VersionRefused(f"warmup file '{filename}' is larger than {MAX_WARMUP_BYTES} bytes")
    return data
