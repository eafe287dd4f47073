"""log_onnx_model: the same way for a model that is an ONNX file already, from any framework."""

from __future__ import annotations

import math
import shutil
import warnings
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keynet_core import DataType, ModelPackage, Probe, to_model_name
from keynet_train._errors import GraphInvalid
from keynet_train._installed import check_installed
from keynet_train._result import Degradation, DegradationWarning, shortfalls
from keynet_train._runtime import run_onnx
from keynet_train._triton import ServingOptions

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import numpy.typing as npt

    from keynet_core import ModelName, Signature
    from keynet_train._announce import Place
    from keynet_train._graph import OnnxFile
    from keynet_train._tracking import Run


def log_onnx_model(
    experiment_name: str,
    onnx_model_path: str | os.PathLike[str],
    *,
    run_name: str | None = None,
    model_name: str | None = None,
    metadata: Mapping[str, object] | None = None,
    serving: ServingOptions | None = None,
) -> str:
    """
    Record an ONNX file as a run, package it for Triton, publish it, and return the package's address.

    Args:
        experiment_name: The MLflow experiment of the run; `MODEL_ID`, when set, goes in front of it.
        onnx_model_path: The file; external data beside it goes with it.
        run_name: Name of the MLflow run.
        model_name: What the model is called in the registry, the store and the server; default: the file's stem.
        metadata: Recorded as tags of the run and in the package's lineage, for example `{"framework": "jax"}`.
        serving: How the model is to be served: batching, instances, labels.

    Raises:
        NameRefused: The name cannot be carried by a folder, a URL and the registry.
        GraphInvalid: The file is missing, is no valid ONNX, or has inputs or outputs that cannot be served.
        ServingOptionsRefused: The options do not fit the model.
        TrackingUnreachable: MLflow does not answer.
        StoreError: The store refuses the keys, or has no such bucket.
        HomeFull: The package has no room in the outbox.
        PublicationWaiting: When all else is done; the package waits in the outbox, because a store, a broker or a
            server did not answer in time. With `KEYNET_ON_UNPUBLISHED=continue` it is a warning.
        PublicationRefused: The store or the server will not have the package. As above.
    """
    from keynet_train import _tracking as tracking
    from keynet_train._announce import Place, enter, register, send
    from keynet_train._disk import noticing_full_disk
    from keynet_train._graph import validate
    from keynet_train._opening import open_everything

    path = Path(onnx_model_path)
    name = to_model_name(model_name if model_name is not None else path.stem)
    check_installed("onnx", "onnxruntime", "tritonclient.grpc", "mlflow")
    graph = validate(path)
    opened = open_everything(experiment_name)
    tags = {key: str(value) for key, value in (metadata or {}).items()}
    with tracking.active_run(opened.experiment, run_name) as run:
        tracking.set_tags(run, tags)
        place = Place(run=run, settings=opened.settings, store=opened.store)
        with ExitStack() as held:
            with noticing_full_disk(opened.settings.state_directory):
                staged = held.enter_context(place.outbox.stage())
                package, lost = _package(graph, name, serving or ServingOptions(), place, tags, staged)
                entered = enter(package, place)
            entered, _ = register(entered, package.manifest, place, partial(_log, run, graph, package), lost)
    outcome = send(entered, place)
    error = outcome.to_error(opened.settings, outcome.publication)
    for message in shortfalls(name, lost, outcome.publication if error is None else None):
        warnings.warn(message, DegradationWarning, stacklevel=2)
    if error is not None:
        raise error
    return outcome.url


def _package(
    graph: OnnxFile, name: ModelName, serving: ServingOptions, place: Place, tags: Mapping[str, str], staged: Path
) -> tuple[ModelPackage, tuple[Degradation, ...]]:
    from keynet_train._announce import write_serving_files

    write_serving_files(staged, name, graph.signature, serving, _shapes(graph.signature))
    _copy(graph, staged)
    probe, lost = _record(graph, serving, staged)
    package = ModelPackage.build(
        staged,
        name=name,
        signature=graph.signature,
        probe=probe,
        lineage=place.lineage(tags.get("framework"), tags),
    )
    return package, lost


def _record(graph: OnnxFile, serving: ServingOptions, staged: Path) -> tuple[Probe | None, tuple[Degradation, ...]]:
    """Record the model's answer to zeros, when it has one and gives the same one twice."""
    from keynet_train._announce import MAX_PROBE_ARRAYS_BYTES, record_probe

    sizes = (math.prod(shape) for shape in _shapes(graph.signature).values())
    if sum(sizes) > MAX_PROBE_ARRAYS_BYTES:
        return _untried("its inputs are very large")
    inputs = _made_up(graph.signature)
    try:
        first, second = (run_onnx(staged / "model.onnx", inputs) for _ in range(2))
    except GraphInvalid as error:
        return _untried(f"{error.message}, with zeros as inputs")
    if reason := Probe(inputs=inputs, outputs=first).refuses(second):
        return _untried(f"it is random: asked twice, {reason}")
    return record_probe(inputs, first, serving)


def _untried(why: str) -> tuple[None, tuple[Degradation, ...]]:
    told = f"no probe is recorded, a deployment is loaded but not tried: {why}"
    return None, (Degradation(code="probe.missing", message=told),)


def _copy(graph: OnnxFile, staged: Path) -> None:
    shutil.copyfile(graph.path, staged / "model.onnx")
    for location in graph.external:
        target = staged / location
        if target.exists():
            raise GraphInvalid(f"{graph.path.name} keeps weights in {location!r}, a name that a package needs itself")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(graph.path.parent / location, target)


def _shapes(signature: Signature) -> dict[str, tuple[int, ...]]:
    """Return a size for every axis: there is no sample, and 1 is what a caller sends most."""
    return {spec.name: tuple(1 if isinstance(dim, str) else dim for dim in spec.shape) for spec in signature.inputs}


def _made_up(signature: Signature) -> dict[str, npt.NDArray[Any]]:
    """Return an input of zeros and empty texts: a value that every element type has, and most models take."""
    import numpy as np

    shapes = _shapes(signature)
    return {
        spec.name: np.full(shapes[spec.name], "" if spec.dtype is DataType.STRING else 0, spec.dtype.to_numpy())
        for spec in signature.inputs
    }


def _log(run: Run, graph: OnnxFile, package: ModelPackage) -> str:
    from keynet_train import _tracking as tracking
    from keynet_train._way import onnx_params

    tracking.log_params(run, onnx_params(package.manifest) | {"onnx_opset": graph.opset})
    return tracking.log_external_model(run, package.manifest.name, "onnx")
