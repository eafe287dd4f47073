"""
Deployer: an event to a deployment that counts, or to the reason why not; what was served before stays until then.

Events are acted on in the order they were received: of two versions of a model, the one announced last is live,
whichever was trained first; what is delivered late is known by its number in the registry. Every step can be cut short
and repeated.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from keynet_core import (
    EventInvalid,
    EventRefused,
    KeynetError,
    ModelPublished,
    ObjectMissing,
    PackageInvalid,
    StoreError,
    StoreForbidden,
    StoreUnavailable,
    read_manifest,
)
from keynet_server._claims import ALWAYS_OURS, FreeClaims
from keynet_server._errors import (
    DeploymentConflict,
    DeploymentFailed,
    DeploymentPostponed,
    EngineRefused,
    EngineUnavailable,
    JournalUnavailable,
    PackageElsewhere,
    RepositoryFailed,
)
from keynet_server._journal import to_version
from keynet_server._lateness import too_late
from keynet_server._requests import to_request
from keynet_server._rollback import RollbackRequested, choose_target
from keynet_server._rollout import Rollout
from keynet_server._sources import PackageSource, to_placement
from keynet_server._unload import UnloadRequested
from keynet_server._upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from keynet_core import Event, ModelName, ObjectStore
    from keynet_server._claims import Claim, Claims
    from keynet_server._engine import ServingEngine
    from keynet_server._journal import Journal
    from keynet_server._records import Deployment, Outcome, ReceivedEvent
    from keynet_server._repository import ServingRepository

log = logging.getLogger("keynet.server")


def _no_step(_name: str) -> None:
    """Do nothing between two steps."""


class Deployer:
    """
    Brings packages to the model server.

    Args:
        journal: What was received and done.
        store: Where packages are fetched from; an address in an event is never followed.
        repository: What the model server reads.
        engine: The model server.
        claims: What the servers of one journal agree with on who acts on a model; a server alone needs none.
        on_step: Called with a step's name after it is done.

    """

    def __init__(
        self,
        *,
        journal: Journal,
        store: ObjectStore,
        repository: ServingRepository,
        engine: ServingEngine,
        claims: Claims | None = None,
        on_step: Callable[[str], None] = _no_step,
    ) -> None:
        self.journal = journal
        self.claims = claims or FreeClaims()
        self._store = store
        self._repository = repository
        self._engine = engine
        self._on_step = on_step
        source = PackageSource(store, journal, on_step)
        self._rollout = Rollout(source=source, repository=repository, engine=engine, on_step=on_step)
        self._upkeep = Upkeep(journal=journal, repository=repository, rollout=self._rollout, claims=self.claims)

    def receive(self, event: Event) -> bool:
        """
        Write an event down, to be acted on later; return False when it was known.

        Raises:
            EventRefused: No one here acts on events of its type.
            EventInvalid: Its data is not what its type promises.
            PackageElsewhere: The package is not in this server's store; the publisher keeps the event.

        """
        if event.type != ModelPublished.TYPE:
            raise EventRefused(f"nothing here acts on events of type {event.type!r}, only on {ModelPublished.TYPE!r}")
        published = ModelPublished.from_event(event)
        if self.journal.knows(event.id):
            return False
        self._require_package(published)
        return self._write_down(replace(event, subject=published.model))

    def request_rollback(self, model: ModelName, *, to: int | None, who: str, why: str | None) -> Event:
        """
        Write down that an older package is to be deployed again, and return the event.

        Raises:
            DeploymentUnknown: There is no such model, or no deployment of that number.
            DeploymentConflict: Its package is live already, or nothing older was ever live.
            StoreError: The package cannot be had from the store.

        """
        history = self.journal.history(model, limit=10_000)
        event = RollbackRequested.of(choose_target(history, to), who=who, why=why).to_event()
        read_manifest(self._store, model, event.data["digest"])
        self._write_down(event)
        return event

    def request_unload(self, model: ModelName, *, who: str, why: str | None) -> Event:
        """
        Write down that a model is to be served no more, and return the event.

        Raises:
            DeploymentUnknown: There is no such model.
            DeploymentConflict: Nothing of it is live.

        """
        self.journal.history(model, limit=1)
        if self.journal.live(model) is None:
            raise DeploymentConflict(f"nothing of {model} is live", hint=f"keynet models history {model}")
        event = UnloadRequested(model=model, who=who, why=why).to_event()
        self._write_down(event)
        return event

    def deploy(self, received: ReceivedEvent, claim: Claim = ALWAYS_OURS) -> Outcome:
        """
        Act on an event, and return its outcome, which is in the journal by then.

        Args:
            received: The event, without an outcome.
            claim: This server's, on the event's model.

        Raises:
            ClaimMissing: Another server may be acting on the model by now; it finishes the event.
            DeploymentPostponed: Store, engine or disk do not answer now, or the journal did not and answers again by
                then; who asks the model notices nothing.
            JournalUnavailable: The journal does not answer: neither outcome nor delay could be written down.

        """
        try:
            request = to_request(received)
        except EventInvalid as error:  # written down by a keynet that knew more
            self.journal.finish(received.id, "failed", error.message)
            return "failed"
        if isinstance(request, UnloadRequested):
            return self._unload(received, request, claim)
        live = self.journal.live(request.model)
        if live and live.digest == request.digest and self._is_done(received, live):
            return self._absorb(received, live)
        if reason := too_late(received, self.journal):
            hint = f"keynet events replay {received.id}"
            self.give_up(received, DeploymentFailed(f"{reason}; to deploy it all the same: {hint}", hint=hint))
            return "failed"
        deployment = self.journal.begin(request)
        self._on_step("begun")
        try:
            answer = self._rollout.bring(deployment, claim)
        except KeynetError as error:
            claim.require()  # what went wrong may be another server's doing, and so is the rest
            if _may_pass(error):
                raise self._postpone(deployment, live, error) from error
            self.fail(deployment, error)
            return "failed"
        self.journal.deployed(deployment, answer + _version_note(deployment))
        self._on_step("journaled")
        with _at_leisure("old deployments of", deployment):
            self._repository.prune(deployment.model)
        self._on_step("pruned")
        return "deployed"

    def give_up(self, received: ReceivedEvent, reason: KeynetError) -> None:
        """Finish an event as failed, whatever it had come to; what is done stays done."""
        try:
            request = to_request(received)
        except EventInvalid:
            self.journal.finish(received.id, "failed", reason.message)
            return
        if isinstance(request, UnloadRequested):
            self._stay(received, request.model, reason)
            return
        deployment = self.journal.begin(request)
        if deployment.state == "deploying":
            self.fail(deployment, reason)

    def give_up_overtaken(self, subject: str | None) -> int:
        """Fail the events of a model that a newer one overtook while they waited, and return how many there were."""
        reason = "a newer event for the model was deployed before this one could be"
        count, begun = self.journal.fail_overtaken(subject, reason)
        for deployment in begun:
            with _at_leisure("what was built for", deployment):
                self._repository.discard(to_placement(deployment))
        return count

    def fail(self, deployment: Deployment, error: KeynetError) -> None:
        """Restore what was served before a deployment, and journal why it failed."""
        restored = self._rollout.restore(deployment, self.journal.live(deployment.model))
        self._on_step("restored")
        answer = error.message if isinstance(error, EngineRefused) else None
        self.journal.failed(deployment, "; ".join(filter(None, (error.message, restored))), answer)
        with _at_leisure("what was built for", deployment):
            self._repository.discard(to_placement(deployment))

    def repair_links(self) -> list[ModelName]:
        """
        Point every link at the deployment the journal calls live, and return the models that needed it.

        Before the engine starts: what a crash left linked was never probed.
        """
        return self._upkeep.repair_all()

    def reload(self, names: Iterable[ModelName]) -> list[tuple[ModelName, KeynetError]]:
        """Have a running engine serve what the links of these models say; return what it does not, with reasons."""
        return self._upkeep.reload(names)

    def is_engine_live(self) -> bool:
        """Return whether the model server takes requests."""
        try:
            return self._engine.is_live()
        except EngineUnavailable:
            return False

    def ensure_served(self) -> list[tuple[Deployment, KeynetError]]:
        """Load what is live and not ready, and return what cannot be, each with the reason."""
        return self._upkeep.ensure_served()

    def _require_package(self, published: ModelPublished) -> None:
        try:
            read_manifest(self._store, published.model, published.digest)
        except ObjectMissing as error:
            raise PackageElsewhere(
                f"package {published.model} {published.digest} is not in this server's store {self._store.url}; "
                f"it was published to {published.store}",
                hint="set the same KEYNET_STORE for training and server",
            ) from error
        except (StoreError, PackageInvalid):
            return  # a store that does not answer now, or answers wrongly, is the deployment's to judge

    def _write_down(self, event: Event) -> bool:
        fresh = self.journal.receive(event)
        self._on_step("received")
        return fresh

    def _postpone(self, deployment: Deployment, live: Deployment | None, error: KeynetError) -> DeploymentPostponed:
        after_link = self._is_linked(deployment)
        reason = "; ".join(filter(None, (error.message, self._rollout.restore(deployment, live))))
        self.journal.postponed(deployment, reason)
        message = f"deployment {deployment.number} of {deployment.model} waits: {reason}"
        return DeploymentPostponed(message, hint=error.hint, after_link=after_link)

    def _is_linked(self, deployment: Deployment) -> bool:
        try:
            return self._repository.linked(deployment.model) == deployment.number
        except RepositoryFailed:
            return False

    def _unload(self, received: ReceivedEvent, asked: UnloadRequested, claim: Claim) -> Outcome:
        live = self.journal.live(asked.model)
        if live is None:
            self.journal.finish(received.id, "unloaded", f"nothing of {asked.model} was live")
            return "unloaded"
        try:
            self._rollout.take_out(live)
        except KeynetError as error:
            claim.require()
            if _may_pass(error):
                message = f"unloading {asked.model} waits: {error.message}"
                raise DeploymentPostponed(message, hint=error.hint, after_link=False) from error
            self._stay(received, asked.model, error)
            return "failed"
        self.journal.unloaded(live, received.id, who=asked.who, why=asked.why)
        return "unloaded"

    def _stay(self, received: ReceivedEvent, model: ModelName, reason: KeynetError) -> None:
        """Have a model that could not be unloaded be found again, and journal why."""
        self.journal.finish(received.id, "failed", reason.message)
        live = self.journal.live(model)
        if live is not None and self._upkeep.repair(model, live):
            self._upkeep.try_reload(model)

    def _absorb(self, received: ReceivedEvent, live: Deployment) -> Outcome:
        self.journal.finish(received.id, "already deployed", f"deployment {live.number} is this package")
        return "already deployed"

    def _is_done(self, received: ReceivedEvent, live: Deployment) -> bool:
        """Return whether an event asks for what is served; one with a deployment of its own goes on with that."""
        try:
            return not self.journal.has_begun(received.id) and self._rollout.serves(live)
        except (EngineUnavailable, RepositoryFailed):
            return False  # the deployment that begins now meets it again, and waits with a reason


def _may_pass(error: KeynetError) -> bool:
    """Return whether something may be mended without the package changing: then the event waits."""
    if isinstance(error, RepositoryFailed):
        return error.may_pass
    return isinstance(error, EngineUnavailable | JournalUnavailable | StoreForbidden | StoreUnavailable)


@contextmanager
def _at_leisure(what: str, deployment: Deployment) -> Iterator[None]:
    """Tidy up; what cannot be removed now is tried again after a later deployment, and changes no outcome."""
    try:
        yield
    except RepositoryFailed as error:
        log.warning("%s %s %s stays for now: %s", what, deployment.model, deployment.number, error.message)


def _version_note(deployment: Deployment) -> str:
    version = to_version(deployment.model_version)
    if version is None or str(version) == deployment.served_version:
        return ""
    return f"; served as version {deployment.served_version}, because another package was served as {version} before"
