"""GrpcClient: KServe v2 over gRPC, through the messages that Triton's client brings."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
import numpy as np
from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE, service_pb2, service_pb2_grpc

from keynet_core import DataType, KeynetError, from_wire, to_wire
from keynet_inference._errors import InferenceFailed, TritonUnavailable, TritonUnreachable
from keynet_inference._model import read_model
from keynet_inference._refusals import from_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from keynet_inference._client import Arrays, Deadline
    from keynet_inference._model import Asked, Model

    Array = npt.NDArray[Any]

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_SIZE),
    # gRPC would wait a second, then two, before it tries a lost server again; how often to try is ours to say.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

_STATE_TIMEOUT_S = 1.0


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

    def infer(self, model: Model, inputs: Arrays, deadline: Deadline) -> dict[str, Array]:
        """Return what a model gives."""
        request = service_pb2.ModelInferRequest(
            model_name=model.asked.model,
            model_version=model.asked.version,
            inputs=[_tell(model, name, array) for name, array in inputs.items()],
            raw_input_contents=[to_wire(array) for array in inputs.values()],
        )
        with self._translating():
            response = self._stub.ModelInfer(request, timeout=deadline.left_s())
        try:
            return {
                each.name: _to_array(each, data)
                for each, data in zip(response.outputs, response.raw_output_contents, strict=True)
            }
        except (ValueError, KeynetError) as error:
            raise InferenceFailed(f"{self.url} answered outputs that cannot be read: {error!r}") from error

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            # Every error of a call that is waited for is a Call too; the types do not say so.
            call: Any = error
            translated = from_grpc(str(call.code()), str(call.details()), self.url)
            if type(translated) is TritonUnavailable and self._has_no_connection():
                raise TritonUnreachable(
                    f"no model server answers at {self.url}: {call.details()}",
                    hint="start one with `keynet up`, or set TRITON_URL to where one runs",
                ) from error
            raise translated from error

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


def _tell(model: Model, name: str, array: Array) -> Any:
    return service_pb2.ModelInferRequest.InferInputTensor(
        name=name, datatype=model.inputs[name].datatype.kserve, shape=array.shape
    )


def _to_array(told: Any, data: bytes) -> Array:
    """Return an output; gRPC's bytes cannot be written to, so they are copied once."""
    array = from_wire(data, DataType.from_kserve(told.datatype), tuple(told.shape))
    return array if array.dtype.kind == "O" else np.array(array)
