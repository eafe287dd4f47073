"""Rollout: one package brought to the model server and tried, and what was served before brought back."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from keynet_core import KeynetError
from keynet_server._errors import EngineRefused, EngineUnavailable, ProbeRefused
from keynet_server._sources import to_placement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keynet_core import ModelName
    from keynet_server._claims import Claim
    from keynet_server._engine import ServingEngine
    from keynet_server._records import Deployment
    from keynet_server._repository import Built, ServingRepository, Source

READY_TIMEOUT_S = 10.0
_POLL_S = 0.05


class Rollout:
    """
    The steps between a package and a model that answers; each can be cut short and repeated.

    Args:
        source: Where packages come from.
        repository: What the model server reads.
        engine: The model server.
        on_step: Called with a step's name after it is done.

    """

    def __init__(
        self, *, source: Source, repository: ServingRepository, engine: ServingEngine, on_step: Callable[[str], None]
    ) -> None:
        self._source = source
        self._repository = repository
        self._engine = engine
        self._on_step = on_step

    def bring(self, deployment: Deployment, claim: Claim) -> str:
        """Have a deployment served, and return what the journal keeps of it."""
        self._require_live()  # else nothing is swapped
        built = self._repository.build(to_placement(deployment), self._source)
        self._on_step("materialized")
        claim.require()  # to build took long, and does no harm; what comes now does
        self._repository.link(built)
        self._on_step("linked")
        self.load(deployment.model)
        self._on_step("loaded")
        self._wait_until_ready(built)
        self._on_step("ready")
        answer = self._probe(built)
        self._on_step("probed")
        return answer + _versions_note(built)

    def restore(self, deployment: Deployment, live: Deployment | None) -> str | None:
        """Bring back what was served before a deployment, and return what could not be, or None."""
        try:
            if self._repository.linked(deployment.model) != deployment.number:
                return None  # nothing was swapped
            self.point(deployment.model, live)
            if live is None:
                self._engine.unload(deployment.model)
            else:
                self.load(deployment.model)
        except KeynetError as error:
            return f"and what was served before could not be restored: {error.message}"
        return None

    def take_out(self, live: Deployment) -> str:
        """Have a model served no more, and return what the journal keeps of it."""
        self._require_live()
        self._repository.unlink(live.model)
        self._on_step("unlinked")
        self._engine.unload(live.model)
        self._on_step("unloaded")
        self._wait_until_gone(live)
        return "unloaded"

    def _require_live(self) -> None:
        # What stands in front of an engine that is gone answers for it, and a refused load would be final.
        if not self._engine.is_live():
            raise EngineUnavailable("the model server answers, and takes no requests", hint="keynet doctor")

    def point(self, name: ModelName, live: Deployment | None) -> None:
        """Have engines find what is live, or nothing, when they load a model."""
        if live is None:
            self._repository.unlink(name)
        else:
            self._repository.link(self._repository.build(to_placement(live), self._source))

    def reload(self, name: ModelName) -> None:
        """Have a running engine serve what engines find of a model."""
        if self._repository.linked(name) is None:
            self._engine.unload(name)
        else:
            self.load(name)

    def load(self, name: ModelName) -> None:
        """Have a running engine load what it finds of a model."""
        self._engine.load(name, self._repository.override(name))

    def serves(self, live: Deployment) -> bool:
        """Return whether a deployment is what engines find, and what this one answers with."""
        return self._repository.linked(live.model) == live.number and self._engine.is_ready(
            live.model, live.served_version
        )

    def _wait_until_ready(self, built: Built) -> None:
        name = built.placement.model
        for version in built.versions:
            if not self._happens(partial(self._engine.is_ready, name, version)):
                raise EngineRefused(f"the model server loaded {name}, but version {version} is not ready")

    def _wait_until_gone(self, live: Deployment) -> None:
        if not self._happens(lambda: not self._engine.is_ready(live.model, live.served_version)):
            raise EngineUnavailable(
                f"the model server unloaded {live.model}, but version {live.served_version} still answers"
            )

    def _happens(self, holds: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not holds():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _probe(self, built: Built) -> str:
        name = built.placement.model
        if built.probe is None:
            return "loaded; no probe was recorded"
        answer = self._engine.infer(name, built.placement.version, built.probe.inputs)
        if reason := built.probe.refuses(answer):
            raise ProbeRefused(f"{name} does not answer as it did when it was published: {reason}")
        return "loaded; the probe was answered as recorded"


def _versions_note(built: Built) -> str:
    """Return which versions are served, where it is more than one or could have been."""
    told = ""
    if len(built.versions) > 1:
        told = f"; versions {_listed(built.versions)} are served"
    elif built.left_out:
        told = f"; version {built.placement.version} is served alone"
    return "; ".join((told, *built.left_out)) if told else ""


def _listed(texts: Iterable[str]) -> str:
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last
