"""Upkeep: what engines find and serve, kept to what the journal calls live; what another server has is left to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keynet_core import KeynetError
from keynet_server._errors import (
    ClaimMissing,
    DeploymentPostponed,
    DeploymentUnknown,
    EngineRefused,
    EngineUnavailable,
    JournalUnavailable,
    RepositoryFailed,
)
from keynet_server._sources import to_placement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keynet_core import ModelName
    from keynet_server._claims import Claims
    from keynet_server._journal import Journal
    from keynet_server._records import Deployment, ModelState
    from keynet_server._repository import ServingRepository
    from keynet_server._rollout import Rollout


class Upkeep:
    """
    Looks after all models, one at a time, each while it is claimed.

    Args:
        journal: What is live.
        repository: What the model server reads.
        rollout: Has the model server load.
        claims: What servers agree with on who acts on a model.

    """

    def __init__(self, *, journal: Journal, repository: ServingRepository, rollout: Rollout, claims: Claims) -> None:
        self._journal = journal
        self._repository = repository
        self._rollout = rollout
        self._claims = claims

    def repair_all(self) -> list[ModelName]:
        """
        Have engines find what the journal calls live, and return the models of which they may serve something else.

        Before the engine starts: what a crash left linked was never probed. A first deployment under way may be loaded
        without a link: a server that started since the crash took that away, and may have ended before it said more.
        A model the journal never heard of is left alone, unless its link stops engines that load all they find.
        """
        self._repository.prepare()
        models = self._journal.models()
        names = {state.name for state in models if state.live or self._is_under_way(state.name)}
        names |= set(self._repository.links())
        if strangers := names - {state.name for state in models}:
            # Another journal's, or an operator's: nothing this journal does was ever linked without a line in it.
            names -= strangers - set(self._repository.broken())
        repaired = []
        for name in sorted(names):
            with self._claims.hold(name) as claim:
                # What was live when the names were read may have been replaced since.
                if claim is not None and self.repair(name, self._journal.live(name)):
                    repaired.append(name)
        return repaired

    def repair(self, name: ModelName, live: Deployment | None) -> bool:
        """Have engines find what is live of a model; return whether they did not. The model must be claimed."""
        self._repository.tidy(name)
        if live and self._repository.linked(name) == live.number and self._repository.has(to_placement(live)):
            return False
        try:
            self._rollout.point(name, live)
        except JournalUnavailable:
            raise
        except KeynetError:
            # A link that points nowhere stops engines that load all they find; `doctor` tells of the model.
            self._repository.unlink(name)
        return True

    def reload(self, names: Iterable[ModelName]) -> list[tuple[ModelName, KeynetError]]:
        """
        Have a running engine serve what it finds of these models; return what it does not, with reasons.

        A model of which nothing is live and a deployment is under way may answer already, when a server was killed, or
        its database, before that was written down. The deployment loads it again, or takes it out.
        """
        trouble: list[tuple[ModelName, KeynetError]] = []
        for name in sorted(names):
            with self._claims.hold(name) as claim:
                reason = self._reload(name) if claim else ClaimMissing(f"another server acts on {name}")
            if reason is not None:
                trouble.append((name, reason))
        return trouble

    def try_reload(self, name: ModelName) -> KeynetError | None:
        """Have a running engine serve what it finds of a model, or return why not. The model must be claimed."""
        try:
            self._rollout.reload(name)
        except (EngineRefused, EngineUnavailable, RepositoryFailed) as error:
            return error
        return None

    def _reload(self, name: ModelName) -> KeynetError | None:
        if self._journal.live(name) is None and self._is_under_way(name):
            return DeploymentPostponed(f"the first deployment of {name} is under way", after_link=True)
        return self.try_reload(name)

    def _is_under_way(self, name: ModelName) -> bool:
        try:
            return any(each.state == "deploying" for each in self._journal.history(name))
        except DeploymentUnknown:  # another journal's
            return False

    def ensure_served(self) -> list[tuple[Deployment, KeynetError]]:
        """Load what is live and not ready, and return what cannot be, each with the reason."""
        trouble: list[tuple[Deployment, KeynetError]] = []
        for state in self._journal.models():
            if state.live is None:
                continue
            try:
                if not self._rollout.serves(state.live):
                    self._serve(state)
            except JournalUnavailable:
                raise
            except KeynetError as error:
                trouble.append((state.live, error))
        return trouble

    def _serve(self, state: ModelState) -> None:
        with self._claims.hold(state.name) as claim:
            live = self._journal.live(state.name)
            if claim is None or live is None or self._rollout.serves(live):
                return
            if self._repository.linked(state.name) != live.number:
                # A server that was killed linked what it never tried, or one that was cut off what was not its own.
                self._rollout.point(state.name, live)
            self._rollout.load(state.name)
