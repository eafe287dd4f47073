"""Everything that can be missing is opened before anything long begins: settings, home, MLflow, store, broker."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from keynet_core import (
    KeynetError,
    LockTimeout,
    Nowhere,
    SettingsInvalid,
    StoreUnavailable,
    read_settings,
    to_publisher,
)
from keynet_train import _tracking as tracking
from keynet_train._background import Background
from keynet_train._delivering import hand_over
from keynet_train._disk import noticing_full_disk
from keynet_train._settings import TrainSettings, open_package_store, to_experiment_name

if TYPE_CHECKING:
    from keynet_core import EventPublisher, ObjectStore

ANSWER_TIMEOUT_S = 5.0
"""How long the store may take to answer, and again what waited to be handed over, before training begins without."""

CHECK_KEY = "packages/.keynet"
"""An object that every training writes first; no model can be called so."""

_LOG = logging.getLogger("keynet_train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What the way of a model starts from."""

    settings: TrainSettings
    experiment: tracking.Experiment
    store: ObjectStore


def open_everything(name: str) -> Opened:
    """
    Open what the way of a model needs, before it is needed, and hand over what waited since an earlier run.

    What only a setting can mend is an error now. What time can mend, such as a store that is down, is told and no
    error: the package will wait in the outbox.

    Args:
        name: The experiment, without `MODEL_ID`.

    Raises:
        SettingsInvalid: A variable has no usable value, or the home cannot be written.
        HomeFull: The disk of the home has no room left.
        TrackingUnreachable: MLflow does not answer.
        TrackingFailed: MLflow refuses the experiment.
        StoreUnsupported: No engine is known for the store.
        StoreError: The store refuses the keys, or has no such bucket.
        MissingDependency: What speaks to the store or the broker is not installed.
    """
    told = read_settings(TrainSettings, os.environ)
    # Fixed now: a training function may change the working directory.
    settings = replace(told, home=told.state_directory)
    _check_home(settings)
    events = to_publisher(settings)
    experiment = tracking.open_experiment(settings, to_experiment_name(settings, name))
    store = open_package_store(settings, experiment.artifact_root)
    if _is_answering(store):
        _hand_over_what_waits(settings, events)
    return Opened(settings=settings, experiment=experiment, store=store)


def _check_home(settings: TrainSettings) -> None:
    home = settings.state_directory
    try:
        with noticing_full_disk(home), settings.outbox.stage():
            return
    except OSError as error:
        raise SettingsInvalid(
            f"{home} cannot be written: {error.strerror or error}", hint="set KEYNET_HOME to a directory of your own"
        ) from error


def _is_answering(store: ObjectStore) -> bool:
    """Write something small where packages go; return False, and say so, when only time can mend that it fails."""
    # In a thread: the engines are patient with a store that is busy, for longer than anyone waits for a training.
    writing = Background(lambda: store.put(CHECK_KEY, b"keynet\n"), f"writing to {store.url}")
    try:
        writing.result(ANSWER_TIMEOUT_S)
    except (StoreUnavailable, TimeoutError) as error:
        _LOG.warning("training begins, its package will wait if this is not mended until its end: %s", error)
        return False
    return True


def _hand_over_what_waits(settings: TrainSettings, events: EventPublisher) -> None:
    """Give what an earlier run left a few seconds; what takes longer goes on while the training runs."""
    if isinstance(events, Nowhere) or not settings.outbox.entries():
        return
    handing = Background(
        lambda: hand_over(settings.outbox, events, timeout_s=ANSWER_TIMEOUT_S, lock_timeout_s=0.0),
        "handing over what waited",
    )
    try:
        report = handing.result(ANSWER_TIMEOUT_S)
    except LockTimeout:
        return  # another process hands it over
    except TimeoutError as slow:
        _LOG.warning("training begins meanwhile: %s", slow)
    except (KeynetError, OSError) as error:
        _LOG.warning("what waited since an earlier run still waits: %s", error)
    else:
        for event in report.delivered:
            _LOG.info("%s, which waited since an earlier run, is announced", event.subject)
        for event, reason in (*report.waiting, *report.refused):
            _LOG.warning("%s, which waited since an earlier run, is not announced: %s", event.subject, reason)
