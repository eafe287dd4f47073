"""The way of a PyTorch model after its training: export, verify, package, register, publish."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from keynet_core import ModelPackage
from keynet_train import _tracking as tracking
from keynet_train._announce import Clock, enter, record_probe, register, send, write_serving_files
from keynet_train._disk import noticing_full_disk
from keynet_train._errors import ModelRefused, ModuleNotStored, ParityFailed, TrackingFailed
from keynet_train._result import Degradation, TraceResult

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from keynet_core import Manifest
    from keynet_train._announce import Entered, Place
    from keynet_train._errors import Unpublished
    from keynet_train._export import Exported
    from keynet_train._order import Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A model whose package is safe in the outbox, and whose run may end."""

    model: torch.nn.Module
    place: Place
    manifest: Manifest
    entered: Entered
    version: str
    degradations: tuple[Degradation, ...]
    clock: Clock


def follow(returned: object, order: Order, place: Place) -> Traced:
    """
    Take what a training function returned from module to package, outbox and registry.

    Raises:
        ModelRefused: It is no module, or gives something that is no tensor.
        ExportFailed: No exporter could write it.
        ParityFailed: It was written, but answers differently; it is in the run as `rejected/`, and not published.
        ServingOptionsRefused: The options do not fit the exported model.
        HomeFull: The package has no room in the outbox.
        TrackingFailed: MLflow did not take the model or its version.
    """
    model = to_module(returned)
    clock = Clock()
    lost: list[Degradation] = []
    with _keeping(model, order, place), ExitStack() as held:
        with noticing_full_disk(place.settings.state_directory, model):
            staged = held.enter_context(place.outbox.stage())
            with clock.step("export"):
                exported = _export(model, order, staged, place)
            with clock.step("package"):
                package, unrecorded = _package(exported, order, place, staged)
                entered = enter(package, place)
        lost += (*exported.degradations, *unrecorded)
        with clock.step("track"):
            log_model = partial(_log, model, order, place.run, exported, package, lost)
            entered, version = register(entered, package.manifest, place, log_model, lost)
    return Traced(
        model=model,
        place=place,
        manifest=package.manifest,
        entered=entered,
        version=version,
        degradations=tuple(lost),
        clock=clock,
    )


def finish(traced: Traced) -> tuple[TraceResult, Unpublished | None]:
    """Publish what is in the outbox; return everything that happened, and the error the call is to end with, if any."""
    with traced.clock.step("publish"):
        outcome = send(traced.entered, traced.place)
    result = TraceResult(
        model=traced.model,
        run_id=traced.place.run.id,
        experiment=traced.place.run.experiment.name,
        model_version=traced.version,
        package=traced.manifest,
        publication=outcome.publication,
        degradations=traced.degradations,
        timings_s=traced.clock.timings_s,
    )
    return result, outcome.to_error(traced.place.settings, result)


def to_module(returned: object) -> torch.nn.Module:
    """
    Return what a training function returned, when it is a module.

    Raises:
        ModelRefused: It is anything else; the message names what.
    """
    import torch

    if not isinstance(returned, torch.nn.Module):
        raise ModelRefused(
            f"the training function returned {_describe(returned)}; it must return a torch.nn.Module and nothing else",
            hint="return the model, and record the rest with mlflow.log_metric(...) or mlflow.log_params(...)",
        )
    return returned


def _describe(returned: object) -> str:
    kind = type(returned).__name__
    if isinstance(returned, tuple | list):
        return f"a {kind} of ({', '.join(type(each).__name__ for each in returned)})"
    return "nothing (None)" if returned is None else f"a {kind}"


@contextmanager
def _keeping(model: torch.nn.Module, order: Order, place: Place) -> Iterator[None]:
    """Keep in the run what was trained, and why it went no further, when the block raises."""
    try:
        yield
    except TrackingFailed:
        raise  # MLflow is what failed
    except Exception as error:
        try:
            _keep(model, order, place.run, error)
        except TrackingFailed as another:
            error.add_note(f"nor could the run keep the model: {another.message}")
        raise


def _keep(model: torch.nn.Module, order: Order, run: tracking.Run, error: Exception) -> None:
    tracking.set_tags(run, {"keynet.refused": getattr(error, "code", type(error).__name__)})
    tracking.log_text(run, "keynet/refused.txt", str(error))
    if order.enable_autolog:
        tracking.log_pytorch_model(run, model, order.name, None)


def _export(model: torch.nn.Module, order: Order, staged: Path, place: Place) -> Exported:
    from keynet_train._export import export_verified

    if order.device is not None:
        model.to(order.device)
    try:
        return export_verified(model, order.sample, order.dynamic_axes, staged)
    except ParityFailed as error:
        try:
            tracking.log_files(place.run, staged, "rejected")
        except TrackingFailed as another:
            error.add_note(f"the run could not keep the rejected file: {another.message}")
        raise


def _package(
    exported: Exported, order: Order, place: Place, staged: Path
) -> tuple[ModelPackage, tuple[Degradation, ...]]:
    write_serving_files(staged, order.name, exported.signature, order.serving, exported.sample_shapes)
    probe, degradations = record_probe(exported.sample_inputs, exported.sample_outputs, order.serving)
    package = ModelPackage.build(
        staged,
        name=order.name,
        signature=exported.signature,
        probe=probe,
        output_keys=exported.output_keys,
        parity=exported.parity.to_dict(),
        lineage=place.lineage("pytorch"),
    )
    return package, degradations


def _log(
    model: torch.nn.Module,
    order: Order,
    run: tracking.Run,
    exported: Exported,
    package: ModelPackage,
    lost: list[Degradation],
) -> str:
    tracking.log_params(run, _params(model, order, exported, package.manifest))
    if order.enable_autolog:
        try:
            return tracking.log_pytorch_model(run, model, order.name, exported.signature)
        except ModuleNotStored as error:
            lost.append(Degradation(code=error.code, message=error.message))
    return tracking.log_external_model(run, order.name, "onnx")


def _params(model: torch.nn.Module, order: Order, exported: Exported, manifest: Manifest) -> dict[str, object]:
    weights = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {
        "model_class": type(model).__name__,
        "device": str(next((each.device for each in model.parameters()), "cpu")),
        "total_params": sum(count for count, _ in weights),
        "trainable_params": sum(count for count, trainable in weights if trainable),
        "input_shapes": {name: list(tensor.shape) for name, tensor in order.sample.tensors.items()},
        "input_dtypes": {name: str(tensor.dtype) for name, tensor in order.sample.tensors.items()},
        "onnx_opset": exported.opset,
    } | onnx_params(manifest)


def onnx_params(manifest: Manifest) -> dict[str, object]:
    """Return what a run records of an ONNX model: its names and its size."""
    return {
        "onnx_inputs": [spec.name for spec in manifest.signature.inputs],
        "onnx_outputs": [spec.name for spec in manifest.signature.outputs],
        "onnx_size_bytes": manifest.size_bytes,
    }
