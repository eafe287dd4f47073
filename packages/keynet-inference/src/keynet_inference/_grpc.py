"""GrpcClient: KServe v2 over gRPC, through the messages that Triton's client brings."""

from __future__ import annotations

import functools
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE, service_pb2, service_pb2_grpc

from keynet_core import DataType, KeynetError, from_wire
from keynet_inference._client import ServerTold
from keynet_inference._errors import InferenceFailed, TritonUnavailable, TritonUnreachable
from keynet_inference._model import read_model, to_data, to_datatype
from keynet_inference._protobuf import join, split
from keynet_inference._refusals import from_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from keynet_inference._client import Arrays, Slice
    from keynet_inference._deadlines import Deadline
    from keynet_inference._model import Asked, Model

    Array = npt.NDArray[Any]
    Told = tuple[str, str, tuple[int, ...]]

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_SIZE),
    # gRPC would wait a second, then two, before it tries a lost server again; how often to try is ours to say.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

_STATE_TIMEOUT_S = 1.0

_COPIED_BYTES = 64 * 1024
"""Up to here copying an answer's tensors is cheaper than cutting them out of it."""

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_INPUTS = service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_OUTPUTS = service_pb2.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER


class GrpcClient:
    """Asks a server at `grpc://host:port` or `grpcs://`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = url
        self._channel = (
            grpc.secure_channel(parts.netloc, grpc.ssl_channel_credentials(), options=_CHANNEL_OPTIONS)
            if parts.scheme == "grpcs"
            else grpc.insecure_channel(parts.netloc, options=_CHANNEL_OPTIONS)
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer = self._channel.unary_unary(_INFER)  # bytes to bytes

    def describe(self, asked: Asked, deadline: Deadline) -> Model:
        """Return what a model takes and gives."""
        request = service_pb2.ModelMetadataRequest(name=asked.model, version=asked.version)
        with self._translating():
            told = self._stub.ModelMetadata(request, timeout=deadline.left_s())
        return read_model(asked, {"inputs": _plain(told.inputs), "outputs": _plain(told.outputs)})

    def ready_models(self, deadline: Deadline) -> tuple[str, ...]:
        """Return the names of the models that are ready."""
        with self._translating():
            told = self._stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True), timeout=deadline.left_s())
        return tuple(sorted({each.name for each in told.models if each.state == "READY"}))

    def infer(
        self, model: Model, inputs: Arrays, deadline: Deadline, shared: Mapping[str, Slice] | None = None
    ) -> dict[str, Array]:
        """Return what a model gives; inputs that are in `shared` are there already."""
        message = _write(model, inputs, shared or {})
        try:
            answer = self._infer(message, timeout=deadline.left_s())
        except grpc.RpcError as error:
            raise self._translated(error) from error
        try:
            return _read_outputs(answer)
        except (ValueError, DecodeError, KeynetError) as error:
            raise InferenceFailed(f"{self.url} answered outputs that cannot be read: {error!r}") from error

    def describe_server(self, deadline: Deadline) -> ServerTold:
        """Return what the server says of itself."""
        with self._translating():
            told = self._stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=deadline.left_s())
        return ServerTold(told.version, frozenset(told.extensions))

    def register_region(self, name: str, size_bytes: int, deadline: Deadline) -> None:
        """Have the server map a region."""
        request = service_pb2.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", byte_size=size_bytes)
        with self._translating():
            self._stub.SystemSharedMemoryRegister(request, timeout=deadline.left_s())

    def unregister_region(self, name: str, deadline: Deadline) -> None:
        """Have the server let go of a region."""
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
        with self._translating():
            self._stub.SystemSharedMemoryUnregister(request, timeout=deadline.left_s())

    def region_names(self, deadline: Deadline) -> tuple[str, ...]:
        """Return the names of the regions that the server has mapped."""
        with self._translating():
            told = self._stub.SystemSharedMemoryStatus(
                service_pb2.SystemSharedMemoryStatusRequest(), timeout=deadline.left_s()
            )
        return tuple(told.regions)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self._translated(error) from error

    def _translated(self, error: grpc.RpcError) -> KeynetError:
        # Every error of a call that is waited for is a Call too; the types do not say so.
        call: Any = error
        translated = from_grpc(str(call.code()), str(call.details()), self.url)
        if type(translated) is TritonUnavailable and self._has_no_connection():
            return TritonUnreachable(
                f"no model server answers at {self.url}: {call.details()}",
                hint="start one with `keynet up`, or set TRITON_URL to where one runs",
            )
        return translated

    def _has_no_connection(self) -> bool:
        """
        Whether the last attempt to connect failed, so that nothing was sent.

        After a connection that broke the channel is idle: the request may have been answered, which gRPC does not tell.
        """
        told = threading.Event()
        found: list[grpc.ChannelConnectivity] = []

        def note(state: grpc.ChannelConnectivity) -> None:
            found.append(state)
            told.set()

        self._channel.subscribe(note)
        told.wait(_STATE_TIMEOUT_S)
        self._channel.unsubscribe(note)
        return found[:1] == [grpc.ChannelConnectivity.TRANSIENT_FAILURE]


def _plain(tensors: Any) -> list[dict[str, Any]]:
    return [{"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each in tensors]


def _write(model: Model, inputs: Arrays, there: Mapping[str, Slice]) -> bytes:
    """Return a request, with the data of what is not there already."""
    told = tuple((name, model.inputs[name].datatype.kserve, array.shape) for name, array in inputs.items())
    head = _write_shared(model.asked, told, there) if there else _write_head(model.asked, told)
    return join(head, _INPUTS, [to_data(array) for name, array in inputs.items() if name not in there])


@functools.lru_cache(maxsize=256)
def _write_head(asked: Asked, told: tuple[Told, ...]) -> bytes:
    """Return a request without data; the next one is mostly the same, and to write it is a third of a small call."""
    return bytes(_to_request(asked, told).SerializeToString())


def _write_shared(asked: Asked, told: tuple[Told, ...], there: Mapping[str, Slice]) -> bytes:
    request = _to_request(asked, told)
    for tensor in request.inputs:
        if (where := there.get(tensor.name)) is not None:
            tensor.parameters["shared_memory_region"].string_param = where.region
            tensor.parameters["shared_memory_offset"].int64_param = where.offset_bytes
            tensor.parameters["shared_memory_byte_size"].int64_param = where.size_bytes
    return bytes(request.SerializeToString())


def _to_request(asked: Asked, told: tuple[Told, ...]) -> Any:
    return service_pb2.ModelInferRequest(
        model_name=asked.model,
        model_version=asked.version,
        inputs=[
            service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
            for name, datatype, shape in told
        ],
    )


def _read_outputs(answer: bytes) -> dict[str, Array]:
    head, datas = split(answer, _OUTPUTS) if len(answer) > _COPIED_BYTES else (answer, None)
    told = service_pb2.ModelInferResponse.FromString(head)
    raw = told.raw_output_contents if datas is None else datas
    return {each.name: _to_array(each, data) for each, data in zip(told.outputs, raw, strict=True)}


def _to_array(told: Any, data: bytes | memoryview) -> Array:
    """Return an output; gRPC's bytes cannot be written to, so they are copied once."""
    datatype, shape = to_datatype(told.datatype), tuple(told.shape)
    if datatype is DataType.STRING or min(shape, default=0) < 0:
        return from_wire(data, datatype, shape)
    return np.frombuffer(bytearray(data), datatype.to_numpy()).reshape(shape)
