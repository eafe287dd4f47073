"""KServe v2 and Triton's extensions over gRPC: each method a call on `ModelServer`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from keynet_serving._about import EXTENSIONS, SERVER_NAME, version
from keynet_serving._control import override_of
from keynet_serving._errors import ServingError, Unsupported
from keynet_serving._grpc_codec import from_message, to_message, to_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from keynet_serving._server import ModelServer

_WORKERS = 32
_ABSENT = (
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
)


class GrpcServer:
    """
    The gRPC side of a model server, listening from its construction on.

    Args:
        server: What it serves.
        address: Host and port; port 0 is any free one.
        max_body_bytes: The largest message it takes.

    Raises:
        OSError: The port cannot be had.
    """

    def __init__(self, server: ModelServer, *, address: str, max_body_bytes: int) -> None:
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", max_body_bytes),
            ("grpc.max_send_message_length", -1),
        ]
        pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="keynet-serving-grpc")
        self._grpc = grpc.server(pool, options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_to_servicer(server), self._grpc)
        try:
            self.port: int = self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {address}: {error}") from error
        self._grpc.start()

    def stop(self, grace_s: float) -> None:
        """Take no more calls, and give those that run so long to end."""
        self._grpc.stop(grace_s).wait(grace_s + 0.2)


def _to_servicer(server: ModelServer) -> Any:
    """Return a servicer; every method of Triton's service is there, so that none falls back to a default."""
    from tritonclient.grpc import service_pb2_grpc

    methods = _Methods(server)
    servicer = service_pb2_grpc.GRPCInferenceServiceServicer()
    for name in _Methods.NAMES:
        setattr(servicer, name, _answering(getattr(methods, name)))
    for name in _ABSENT:
        setattr(servicer, name, _answering(_refusing(name)))
    servicer.ModelStreamInfer = methods.ModelStreamInfer
    return servicer


def _answering(method: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a handler that tells a client of an error by status and text."""
    import grpc

    def handle(request: Any, context: Any) -> Any:
        try:
            return method(request)
        except ServingError as error:
            return context.abort(getattr(grpc.StatusCode, error.grpc_status), error.message)

    return handle


def _refusing(name: str) -> Callable[[Any], Any]:
    def refuse(_: Any) -> Any:
        raise Unsupported(f"this server has no {name}")

    return refuse


class _Methods:
    """The service, method by method, in the names of Triton's protobuf."""

    NAMES = (
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelConfig",
        "ModelStatistics",
        "ModelInfer",
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
    )

    def __init__(self, server: ModelServer) -> None:
        from google.protobuf import json_format
        from tritonclient.grpc import service_pb2

        self._server = server
        self._messages = service_pb2
        self._fill = json_format.ParseDict

    def ServerLive(self, _: Any) -> Any:  # noqa: N802 -- named by the protobuf service
        return self._messages.ServerLiveResponse(live=self._server.is_live())

    def ServerReady(self, _: Any) -> Any:  # noqa: N802 -- named by the protobuf service
        return self._messages.ServerReadyResponse(ready=self._server.is_ready())

    def ModelReady(self, request: Any) -> Any:  # noqa: N802 -- named by the protobuf service
        is_ready = self._server.is_model_ready(request.name, to_version(request.version))
        return self._messages.ModelReadyResponse(ready=is_ready)

    def ServerMetadata(self, _: Any) -> Any:  # noqa: N802 -- named by the protobuf service
        return self._messages.ServerMetadataResponse(name=SERVER_NAME, version=version(), extensions=EXTENSIONS)

    def ModelMetadata(self, request: Any) -> Any:  # noqa: N802 -- named by the protobuf service
        told = self._server.metadata(request.name, to_version(request.version))
        return self._fill(told, self._messages.ModelMetadataResponse())

    def ModelConfig(self, request: Any) -> Any:  # noqa: N802 -- named by the protobuf service
        config = self._server.config_message(request.name, to_version(request.version))
        return self._messages.ModelConfigResponse(config=config)

    def ModelStatistics(self, request: Any) -> Any:  # noqa: N802 -- named by the protobuf service
        told = self._server.statistics(request.name, to_version(request.version))
        return self._fill({"model_stats": told}, self._messages.ModelStatisticsResponse())

    def ModelInfer(self, request: Any) -> Any:  # noqa: N802 -- named by the protobuf service
        with self._server.start(from_message(request)) as call:
            return to_message(call.answer(call.run()))

    def ModelStreamInfer(self, requests: Iterable[Any], _: Any) -> Iterator[Any]:  # noqa: N802 -- named by the protobuf service
        for request in requests:
            yield self._answer_in_stream(request)

    def RepositoryIndex(self, request: Any) -> Any:  # noqa: N802 -- named by the protobuf service
        lines = self._server.index(only_ready=request.ready)
        return self._fill({"models": [line.to_dict() for line in lines]}, self._messages.RepositoryIndexResponse())

    def RepositoryModelLoad(self, request: Any) -> Any:  # noqa: N802 -- named by the protobuf service
        self._server.check_control()
        parameters = {
            key: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
            for key, value in request.parameters.items()
        }
        self._server.load(request.model_name, override=override_of(parameters))
        return self._messages.RepositoryModelLoadResponse()

    def RepositoryModelUnload(self, request: Any) -> Any:  # noqa: N802 -- named by the protobuf service
        self._server.check_control()
        self._server.unload(request.model_name)
        return self._messages.RepositoryModelUnloadResponse()

    def _answer_in_stream(self, request: Any) -> Any:
        try:
            answer = self.ModelInfer(request)
        except ServingError as error:
            failed = self._messages.ModelInferResponse(id=request.id)
            return self._messages.ModelStreamInferResponse(error_message=error.message, infer_response=failed)
        answer.parameters["triton_final_response"].bool_param = True
        return self._messages.ModelStreamInferResponse(infer_response=answer)
