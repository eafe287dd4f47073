"""trace_pytorch: refuse what can be refused before training, run the training, take its model the whole way."""

from __future__ import annotations

import functools
import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, cast

from keynet_core import to_model_name
from keynet_train._installed import check_installed
from keynet_train._order import Order
from keynet_train._result import DegradationWarning, shortfalls
from keynet_train._sample import Sample, check_dynamic_axes
from keynet_train._triton import ServingOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from keynet_train._errors import Unpublished
    from keynet_train._result import TraceResult

P = ParamSpec("P")


class TracedFunction(Generic[P]):
    """A training function whose model goes the whole way each time it is called."""

    def __init__(self, function: Callable[P, object], order: Order) -> None:
        self._function = function
        self._order = order
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> torch.nn.Module:
        """
        Train, publish, and return the model.

        What ended less well than was asked for is a DegradationWarning each; `trace` returns it as values. A package
        that is not announced although it could be is an error, as in `trace`.
        """
        result, error = self._run(*args, **kwargs)
        told = result.publication if error is None else None
        for message in shortfalls(result.package.name, result.degradations, told):
            warnings.warn(message, DegradationWarning, stacklevel=2)
        if error is not None:
            raise error
        return result.model

    def trace(self, *args: P.args, **kwargs: P.kwargs) -> TraceResult:
        """
        Train and publish, and return everything that happened: run, version, package, publication, degradations.

        Raises:
            SettingsInvalid: Before training; the home cannot be written, or a variable has no usable value.
            TrackingUnreachable: Before training; MLflow does not answer.
            StoreError: Before training; the store refuses the keys, or has no such bucket.
            ModelRefused: After training; the function returned something other than a module.
            ExportFailed: After training; no exporter could write the module.
            ParityFailed: After training; the written model answers differently.
            HomeFull: After training; the disk of the home has no room for the package. The error has the model.
            PublicationWaiting: At the end, when all else is done; the package waits in the outbox, because a store, a
                broker or a server did not answer in time. `result` of the error is what this would have returned.
                With `KEYNET_ON_UNPUBLISHED=continue` it is returned.
            PublicationRefused: At the end; the store or the server will not have the package. As above.
        """
        result, error = self._run(*args, **kwargs)
        if error is not None:
            raise error
        return result

    def _run(self, *args: P.args, **kwargs: P.kwargs) -> tuple[TraceResult, Unpublished | None]:
        check_installed("torch", "onnx", "onnxruntime", "tritonclient.grpc", "mlflow")
        from keynet_train import _tracking as tracking
        from keynet_train._announce import Place
        from keynet_train._autolog import import_mlflow_pytorch, recording
        from keynet_train._opening import open_everything
        from keynet_train._way import finish, follow

        order = self._order
        if order.enable_autolog:
            import_mlflow_pytorch()
        opened = open_everything(order.name)
        _check_device(order.device)
        with tracking.active_run(opened.experiment, order.run_name) as run:
            with recording() if order.enable_autolog else nullcontext():
                returned = self._function(*args, **kwargs)
            tracking.reclaim(run)
            traced = follow(returned, order, Place(run=run, settings=opened.settings, store=opened.store))
        # The run is over before anybody is waited for: it is FINISHED, whatever becomes of the package.
        return finish(traced)

    def __get__(self, instance: object, owner: type | None = None) -> TracedFunction[...]:
        """Bind a decorated method to its object, as Python does with functions."""
        bound: Callable[..., object] = functools.partial(cast("Callable[..., object]", self._function), instance)
        return self if instance is None else TracedFunction(bound, self._order)


def trace_pytorch(
    model_name: str,
    sample_input: Any,
    *,
    run_name: str | None = None,
    device: str | None = None,
    enable_autolog: bool = True,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    serving: ServingOptions | None = None,
) -> Callable[[Callable[P, object]], TracedFunction[P]]:
    """
    Decorate a function that trains and returns a `torch.nn.Module`.

    Calling it starts an MLflow run, trains, exports the model to ONNX, verifies it against PyTorch, packages it for
    Triton and publishes it. It returns the model; `.trace(...)` instead of the call returns a `TraceResult`.

    Args:
        model_name: What the model is called in the registry, the store and the server.
        sample_input: One input as a tensor, or a dict of tensors whose keys are the parameters of `forward`. Any
            sizes that the model takes; axis 0 is the batch.
        run_name: Name of the MLflow run.
        device: Where the model is moved before it is exported; default: where it is.
        enable_autolog: Store the PyTorch model in MLflow, and record what PyTorch Lightning logs.
        dynamic_axes: Per tensor, the axes whose size may vary and a name for each, as `torch.onnx.export` takes them.
            Default: axis 0 of every input.
        serving: How the model is to be served: batching, instances, labels.

    Raises:
        NameRefused: The name cannot be carried by a folder, a URL and the registry.
        SampleRefused: The sample is no tensor and no dict of tensors.
        AxisRefused: `dynamic_axes` names a tensor or an axis that is not there.
    """
    sample = Sample.of(sample_input)
    order = Order(
        name=to_model_name(model_name),
        sample=sample,
        dynamic_axes=check_dynamic_axes(dynamic_axes, sample),
        serving=serving or ServingOptions(),
        enable_autolog=enable_autolog,
        run_name=run_name,
        device=device,
    )
    return lambda function: TracedFunction(function, order)


def _check_device(device: str | None) -> None:
    if device is not None:
        import torch

        torch.empty(0, device=device)  # raises torch's own sentence when there is no such device
