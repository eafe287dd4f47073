"""MLflow, as far as the way of a model needs it: reachable or not, experiment, run, logged model, version."""

from __future__ import annotations

import os
import pickle
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keynet_core import make_private_directory
from keynet_train._autolog import import_mlflow_pytorch
from keynet_train._errors import ModuleNotStored, TrackingFailed
from keynet_train._mlflow_database import artifact_root, default_uri, prepare_database
from keynet_train._patience import answering

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import mlflow
    import torch

    from keynet_core import Signature
    from keynet_train._settings import TrainSettings

DIGEST_TAG = "keynet.digest"
PACKAGE_TAG = "keynet.package"

_defaulted: set[str] = set()
"""Tracking URIs that were our default, so that another KEYNET_HOME in the same process is not mistaken for a choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """An MLflow experiment: its id, its name, and where its artifacts go."""

    id: str
    name: str
    artifact_root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An MLflow run that is active in this thread."""

    id: str
    experiment: Experiment
    uri: str
    """Where it is; the training function may have set another address meanwhile."""
    outer_id: str | None = None
    """The run it is nested in."""
    git_commit: str | None = None


def open_experiment(settings: TrainSettings, name: str) -> Experiment:
    """
    Make sure that MLflow answers, and return the experiment `name`, created when it is missing.

    Without a tracking address, MLflow works on SQLite in the home; that address stays MLflow's default in this
    process, so that code after the call finds the run it made.

    Raises:
        TrackingUnreachable: The tracking server takes no connection, or does not answer within seconds.
        TrackingFailed: MLflow refuses the experiment, for example because it was deleted.
    """
    import mlflow

    home = settings.state_directory
    _choose_default(home)
    uri = mlflow.get_tracking_uri()
    with _translating(f"experiment {name!r}"), answering(uri):
        client = mlflow.MlflowClient()
        location = artifact_root(home) if _is_ours(uri, home) else None
        found = client.get_experiment_by_name(name) or _create_experiment(client, name, location)
    if found.lifecycle_stage != "active":
        raise TrackingFailed(
            f"experiment {name!r} was deleted in MLflow",
            hint=f"mlflow experiments restore --experiment-id {found.experiment_id}",
        )
    return Experiment(id=found.experiment_id, name=name, artifact_root=found.artifact_location)


def _create_experiment(client: mlflow.MlflowClient, name: str, location: str | None) -> mlflow.entities.Experiment:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return client.get_experiment_by_name(name)  # another training created it just now


@contextmanager
def active_run(experiment: Experiment, run_name: str | None) -> Iterator[Run]:
    """Start a run, nested in the one that is active, and end it: FINISHED, or FAILED when the block raises."""
    import mlflow

    with ExitStack() as stack:
        if mlflow.active_run() is None and os.environ.get("MLFLOW_RUN_ID"):
            # `mlflow run` made this run for us; a run in another experiment can only be nested in it.
            stack.enter_context(mlflow.start_run())
        outer = mlflow.active_run()
        started = mlflow.start_run(experiment_id=experiment.id, run_name=run_name, nested=outer is not None)
        run = Run(
            id=started.info.run_id,
            experiment=experiment,
            uri=mlflow.get_tracking_uri(),
            outer_id=outer.info.run_id if outer else None,
            git_commit=started.data.tags.get("mlflow.source.git.commit"),
        )
        try:
            yield run
        except BaseException as error:
            _end_failed(run, error)
            raise
        _end(run, "FINISHED")


def _end_failed(run: Run, why: BaseException) -> None:
    """End a run that failed; that MLflow cannot even do that must not hide why."""
    from mlflow.exceptions import MlflowException

    try:
        _end(run, "FAILED")
    except (MlflowException, OSError) as another:
        why.add_note(f"nor could MLflow end run {run.id}: {another}")


def reclaim(run: Run) -> None:
    """Make `run` the active run again, whatever the training function started or ended."""
    import mlflow

    _return_to(run)
    if not _close_inner(run):
        mlflow.start_run(run_id=run.id, nested=run.outer_id is not None)


def _end(run: Run, status: str) -> None:
    import mlflow

    _return_to(run)
    if _close_inner(run):
        mlflow.end_run(status)
    else:
        mlflow.MlflowClient().set_terminated(run.id, status)


def _return_to(run: Run) -> None:
    import mlflow

    if mlflow.get_tracking_uri() != run.uri:
        mlflow.set_tracking_uri(run.uri)


def _close_inner(run: Run) -> bool:
    """End the runs that were started inside `run` and left open; return whether `run` itself is still active."""
    import mlflow

    while (active := mlflow.active_run()) is not None and active.info.run_id not in {run.id, run.outer_id}:
        mlflow.end_run()
    return active is not None and active.info.run_id == run.id


def log_params(run: Run, params: Mapping[str, object]) -> None:
    """Record parameters; one the user recorded under the same name keeps the user's value."""
    import mlflow
    from mlflow.entities import Param

    client = mlflow.MlflowClient()
    with _translating(f"parameters of run {run.id}"):
        taken = client.get_run(run.id).data.params
        client.log_batch(run.id, params=[Param(key, str(value)) for key, value in params.items() if key not in taken])


def log_pytorch_model(run: Run, model: torch.nn.Module, name: str, signature: Signature | None) -> str:
    """
    Store the module itself in MLflow and return its id there; MLflow writes it with cloudpickle.

    Raises:
        ModuleNotStored: The module holds something that cannot be pickled, such as a lock or an open file.
    """
    import mlflow

    import_mlflow_pytorch()
    with _translating(f"model {name!r} of run {run.id}"):
        try:
            info = mlflow.pytorch.log_model(
                model,
                name=name,
                signature=to_mlflow_signature(signature) if signature else None,
                pip_requirements=_requirements(),
                serialization_format="pickle",
            )
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            raise ModuleNotStored(f"the PyTorch module of {name!r} cannot be pickled: {error}") from error
    return str(info.model_id)


def log_external_model(run: Run, name: str, kind: str) -> str:
    """Record in MLflow that a model exists whose files are elsewhere, in the package store; return its id there."""
    import mlflow

    with _translating(f"model {name!r} of run {run.id}"):
        found = mlflow.create_external_model(
            name=name, source_run_id=run.id, experiment_id=run.experiment.id, model_type=kind
        )
    return str(found.model_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredVersion:
    """A version in MLflow's registry, and the registered model whose versions it is counted among."""

    number: str
    series: str


def register(run: Run, name: str, model_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
    """Register a logged model as the next version of `name`."""
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    with _translating(f"registered model {name!r}"):
        try:
            model = client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            model = client.get_registered_model(name)
        version = client.create_model_version(
            name, source=f"models:/{model_id}", run_id=run.id, tags=dict(tags), model_id=model_id
        )
        client.set_logged_model_tags(model_id, dict(tags))
    # Two registries both count from 1, and so does one after a deletion: the birth of the model tells them apart.
    return RegisteredVersion(number=str(version.version), series=f"{name}@{model.creation_timestamp}")


def log_files(run: Run, directory: Path, folder: str) -> None:
    """Record the files of a directory as artifacts of the run."""
    import mlflow

    with _translating(f"artifacts in {folder!r} of run {run.id}"):
        mlflow.MlflowClient().log_artifacts(run.id, str(directory), folder)


def log_text(run: Run, path: str, text: str) -> None:
    """Record a small text as an artifact of the run."""
    import mlflow

    with _translating(f"artifact {path!r} of run {run.id}"):
        mlflow.MlflowClient().log_text(run.id, text, path)


def set_tags(run: Run, tags: Mapping[str, str]) -> None:
    """Set tags on the run."""
    import mlflow
    from mlflow.entities import RunTag

    with _translating(f"tags of run {run.id}"):
        mlflow.MlflowClient().log_batch(run.id, tags=[RunTag(key, value) for key, value in tags.items()])


def to_mlflow_signature(signature: Signature) -> mlflow.models.ModelSignature:
    """Return the signature in MLflow's form: numpy types, -1 for an axis that may vary."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def to_schema(specs: tuple[Any, ...]) -> Schema:
        # MLflow's types are numpy's own; bfloat16 is not among them, and is read as float32.
        named = {"bfloat16": "float32"}
        return Schema([TensorSpec(np.dtype(named.get(s.dtype.mlflow, s.dtype.mlflow)), s.sizes, s.name) for s in specs])

    return ModelSignature(inputs=to_schema(signature.inputs), outputs=to_schema(signature.outputs))


def _choose_default(home: Path) -> None:
    import mlflow
    from mlflow.tracking import is_tracking_uri_set

    if not is_tracking_uri_set() or _is_ours(mlflow.get_tracking_uri(), home):
        make_private_directory(home)
        prepare_database(home)
        _defaulted.add(default_uri(home))
        mlflow.set_tracking_uri(default_uri(home))


def _is_ours(uri: str, home: Path) -> bool:
    # MLflow hands an address on to child processes through the environment: the home's own is no one's choice.
    return uri in _defaulted or uri == default_uri(home)


def _requirements() -> list[str]:
    """Return what loading the model takes, without asking pip: MLflow's own inference imports torch once more."""
    import mlflow
    import torch

    return [f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.partition('+')[0]}", "cloudpickle"]


@contextmanager
def _translating(what: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise TrackingFailed(f"MLflow did not take {what}: {error}") from error
