"""Everything that can be missing is opened before anything long begins: settings, home, MLflow, store."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from keynet_core import Outbox, SettingsInvalid, read_settings
from keynet_train import _tracking as tracking
from keynet_train._settings import TrainSettings, open_package_store, to_experiment_name

if TYPE_CHECKING:
    from keynet_core import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What the way of a model starts from."""

    settings: TrainSettings
    experiment: tracking.Experiment
    store: ObjectStore


def open_everything(name: str) -> Opened:
    """
    Open what the way of a model needs, before it is needed.

    Args:
        name: The experiment, without `MODEL_ID`.

    Raises:
        SettingsInvalid: A variable has no usable value, or the home cannot be written.
        TrackingUnreachable: MLflow does not answer.
        TrackingFailed: MLflow refuses the experiment.
        StoreUnsupported: No engine is known for the store.
    """
    told = read_settings(TrainSettings, os.environ)
    # Fixed now: a training function may change the working directory.
    settings = replace(told, home=told.state_directory)
    _check_home(settings)
    experiment = tracking.open_experiment(settings, to_experiment_name(settings, name))
    return Opened(
        settings=settings, experiment=experiment, store=open_package_store(settings, experiment.artifact_root)
    )


def _check_home(settings: TrainSettings) -> None:
    home = settings.state_directory
    try:
        with Outbox(home / "outbox").stage():
            return
    except OSError as error:
        raise SettingsInvalid(
            f"{home} cannot be written: {error.strerror or error}", hint="set KEYNET_HOME to a directory of your own"
        ) from error
