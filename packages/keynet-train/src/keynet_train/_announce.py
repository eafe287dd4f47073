"""A package into the outbox, its version into the registry, its event on its way: what both ways have in common."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from keynet_core import Lineage, ModelPublished, Probe, package_key
from keynet_train import _tracking as tracking
from keynet_train._publish import publish
from keynet_train._result import Degradation
from keynet_train._triton import LABELS_FILE, to_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from keynet_core import Entry, Manifest, ModelName, ModelPackage, ObjectStore, Outbox, Signature
    from keynet_train._publish import Outcome
    from keynet_train._settings import TrainSettings
    from keynet_train._triton import ServingOptions

MAX_PROBE_ARRAYS_BYTES = 32 * 1024 * 1024

_NEXT = "the next publication announces it, or `keynet-train outbox flush`"

_LOG = logging.getLogger("keynet_train")


class Clock:
    """Seconds per step, in the order the steps were taken; each is told to the logger `keynet_train`."""

    def __init__(self) -> None:
        self.timings_s: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a block."""
        start = time.perf_counter()
        _LOG.info("%s ...", name)
        try:
            yield
        finally:
            self.timings_s[name] = round(time.perf_counter() - start, 4)
            _LOG.info("%s: %.1f s", name, self.timings_s[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the way of one model leads: its run, its settings, its store, its outbox."""

    run: tracking.Run
    settings: TrainSettings
    store: ObjectStore

    @property
    def outbox(self) -> Outbox:
        """The spool of the home."""
        return self.settings.outbox

    def lineage(self, framework: str | None, tags: Mapping[str, str] | None = None) -> Lineage:
        """Return where a package of this run comes from."""
        return Lineage(
            run_id=self.run.id,
            experiment=self.run.experiment.name,
            git_commit=self.run.git_commit,
            framework=framework,
            tags=dict(tags or {}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """A package that is safe in the outbox, and what announces it: its version is in there once it is registered."""

    entry: Entry
    published: ModelPublished


def write_serving_files(
    directory: Path,
    name: ModelName,
    signature: Signature,
    serving: ServingOptions,
    shapes: Mapping[str, Sequence[int]],
) -> None:
    """Write what an engine reads beside the model: its configuration, and the labels when there are some."""
    (directory / "config.pbtxt").write_text(to_config(name, signature, serving, shapes), encoding="utf-8")
    if serving.labels:
        (directory / LABELS_FILE).write_text("".join(f"{label}\n" for label in serving.labels), encoding="utf-8")


def record_probe(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], serving: ServingOptions
) -> tuple[Probe | None, tuple[Degradation, ...]]:
    """Return the probe of these arrays, or none and why: a very large sample is not worth a copy in every package."""
    size = sum(array.nbytes for array in (*inputs.values(), *outputs.values()))
    if size <= MAX_PROBE_ARRAYS_BYTES:
        sent, answered = (
            {name: _as_served(each, serving) for name, each in told.items()} for told in (inputs, outputs)
        )
        return Probe(inputs=sent, outputs=answered), ()
    told = f"the sample and its answer have {size} bytes; over {MAX_PROBE_ARRAYS_BYTES} none is recorded"
    return None, (Degradation(code="probe.too_large", message=f"{told}, so a deployment is loaded but not tried"),)


def _as_served(array: Any, serving: ServingOptions) -> Any:
    # Triton's configuration has no tensor without axes, the batch not counted: one travels as [1], or [batch, 1].
    bare = array.ndim == (1 if serving.max_batch_size > 0 else 0)
    return array.reshape(*array.shape, 1) if bare else array


def enter(package: ModelPackage, place: Place) -> Entered:
    """Put a staged package into the outbox: from here neither a store nor a tracking server can lose it."""
    published = ModelPublished(
        model=package.manifest.name,
        digest=package.manifest.digest,
        store=place.store.url,
        run_id=place.run.id,
        experiment=place.run.experiment.name,
    )
    return Entered(entry=place.outbox.add(published.to_event(), package.directory), published=published)


def register(
    entered: Entered,
    manifest: Manifest,
    place: Place,
    log_model: Callable[[], str],
    told: Sequence[Degradation] = (),
) -> tuple[Entered, str]:
    """
    Register what is in the outbox as the next version of its model, and return it with the version's number.

    Inside the block of `Outbox.stage` nobody hands the entry over before its event carries the version.

    Args:
        entered: What `enter` returned.
        manifest: Of the same package.
        place: Where to.
        log_model: Records the model in MLflow and returns its id there.
        told: What went less well so far; it is left in the run as tags.
    """
    try:
        version = _register(place.run, manifest, entered.published, log_model(), told)
        published = replace(entered.published, model_version=version.number, version_series=version.series)
        numbered = replace(entered, published=published)
        place.outbox.amend(entered.entry, numbered.published.to_event())
    except Exception as error:
        # Whatever failed, the user has to know that the package will go on without this run.
        error.add_note(f"the package is verified and safe in {entered.entry.directory}; {_NEXT}")
        raise
    return numbered, version.number


def send(entered: Entered, place: Place) -> Outcome:
    """Hand the outbox over, and say what became of the package that was entered."""
    return publish(entered.entry, entered.published, place.settings)


def _register(
    run: tracking.Run,
    manifest: Manifest,
    published: ModelPublished,
    model_id: str,
    told: Sequence[Degradation],
) -> tracking.RegisteredVersion:
    url = f"{published.store}/{package_key(published.model, published.digest)}"
    tags = {tracking.DIGEST_TAG: published.digest, tracking.PACKAGE_TAG: url}
    tracking.set_tags(run, tags | {f"keynet.degraded.{each.code}": each.message[:500] for each in told})
    tracking.log_text(run, "keynet/manifest.json", manifest.to_json().decode())
    return tracking.register(run, published.model, model_id, tags)
