"""
Deployer: an event to a deployment that counts, or to the reason why not; what was served before stays until then.

Events are acted on in the order they were received: of two versions of a model, the one announced last is live,
whichever was trained first. Every step can be cut short and repeated.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from keynet_core import (
    Event,
    EventInvalid,
    EventRefused,
    KeynetError,
    ModelPublished,
    ObjectMissing,
    PackageInvalid,
    StoreError,
    StoreUnavailable,
    download_package,
    read_manifest,
)
from keynet_server._errors import (
    DeploymentPostponed,
    EngineRefused,
    EngineUnavailable,
    PackageElsewhere,
    ProbeRefused,
    RepositoryFailed,
)
from keynet_server._journal import to_version
from keynet_server._records import Request
from keynet_server._rollback import RollbackRequested, choose_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from keynet_core import ModelName, ModelPackage, ObjectStore
    from keynet_server._engine import ServingEngine
    from keynet_server._journal import Journal
    from keynet_server._materialize import ServingRepository
    from keynet_server._records import Deployment, Outcome, ReceivedEvent

log = logging.getLogger("keynet.server")

READY_TIMEOUT_S = 10.0
_READY_POLL_S = 0.05


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
        on_step: Called with a step's name after it is done.

    """

    def __init__(
        self,
        *,
        journal: Journal,
        store: ObjectStore,
        repository: ServingRepository,
        engine: ServingEngine,
        on_step: Callable[[str], None] = _no_step,
    ) -> None:
        self.journal = journal
        self._store = store
        self._repository = repository
        self._engine = engine
        self._on_step = on_step

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

    def deploy(self, received: ReceivedEvent) -> Outcome:
        """
        Act on an event, and return its outcome, which is in the journal by then.

        Raises:
            DeploymentPostponed: Store, engine or disk do not answer now; nothing changed for who asks the model.
            JournalUnavailable: The outcome could not be written down.

        """
        try:
            request = to_request(received)
        except EventInvalid as error:  # written down by a keynet that knew more
            self.journal.finish(received.id, "failed", error.message)
            return "failed"
        live = self.journal.live(request.model)
        if live and live.digest == request.digest and self._is_done(received, live):
            return self._absorb(received, live)
        deployment = self.journal.begin(request)
        self._on_step("begun")
        try:
            answer = self._roll_out(deployment)
        except KeynetError as error:
            if _may_pass(error):
                raise self._postpone(deployment, live, error) from error
            self.fail(deployment, error)
            return "failed"
        self.journal.deployed(deployment, answer + _version_note(deployment))
        self._on_step("journaled")
        with _at_leisure("old deployments of", deployment):
            self._repository.prune(deployment.model, keep={deployment.number})
        self._on_step("pruned")
        return "deployed"

    def give_up(self, received: ReceivedEvent, reason: KeynetError) -> None:
        """Finish an event as failed, whatever it had come to; what is done stays done."""
        try:
            deployment = self.journal.begin(to_request(received))
        except EventInvalid:
            self.journal.finish(received.id, "failed", reason.message)
            return
        if deployment.state == "deploying":
            self.fail(deployment, reason)

    def fail(self, deployment: Deployment, error: KeynetError) -> None:
        """Restore what was served before a deployment, and journal why it failed."""
        restored = self._restore(deployment, self.journal.live(deployment.model))
        self._on_step("restored")
        answer = error.message if isinstance(error, EngineRefused) else None
        self.journal.failed(deployment, "; ".join(filter(None, (error.message, restored))), answer)
        with _at_leisure("what was built for", deployment):
            self._repository.discard(deployment.model, deployment.number)

    def repair_links(self) -> list[ModelName]:
        """
        Point every link at the deployment the journal calls live, and return the models that needed it.

        Before the engine starts: what a crash left linked was never probed.
        """
        self._repository.prepare()
        live = {state.name: state.live for state in self.journal.models() if state.live}
        names = sorted({*live, *self._repository.links()})
        repaired = [name for name in names if not self._is_right(name, live.get(name))]
        for name in repaired:
            try:
                self._repoint(name, live.get(name))
            except KeynetError:
                # A link that points nowhere stops engines that load all they find; `doctor` tells of the model.
                self._repository.unlink(name)
        return repaired

    def reload(self, names: Iterable[ModelName]) -> list[tuple[ModelName, KeynetError]]:
        """Have a running engine serve what the links of these models say; return what it does not, with reasons."""
        trouble: list[tuple[ModelName, KeynetError]] = []
        for name in sorted(names):
            try:
                if self._repository.linked(name) is None:
                    self._engine.unload(name)
                else:
                    self._engine.load(name)
            except (EngineRefused, EngineUnavailable) as error:
                trouble.append((name, error))
        return trouble

    def is_engine_live(self) -> bool:
        """Return whether the model server takes requests."""
        try:
            return self._engine.is_live()
        except EngineUnavailable:
            return False

    def ensure_served(self) -> list[tuple[Deployment, KeynetError]]:
        """Load what is live and not ready, and return what cannot be, each with the reason."""
        trouble: list[tuple[Deployment, KeynetError]] = []
        for state in self.journal.models():
            if state.live is None:
                continue
            try:
                if not self._serves(state.live):
                    self._engine.load(state.name)
            except (EngineRefused, EngineUnavailable) as error:
                trouble.append((state.live, error))
        return trouble

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
        after_link = self._repository.linked(deployment.model) == deployment.number
        reason = "; ".join(filter(None, (error.message, self._restore(deployment, live))))
        self.journal.postponed(deployment, reason)
        message = f"deployment {deployment.number} of {deployment.model} waits: {reason}"
        return DeploymentPostponed(message, hint=error.hint, after_link=after_link)

    def _roll_out(self, deployment: Deployment) -> str:
        self._engine.is_live()  # raises when nobody answers: then nothing is swapped
        package = self._repository.build(
            deployment.model, deployment.number, deployment.served_version, lambda into: self._fetch(deployment, into)
        )
        self._on_step("materialized")
        self._repository.link(deployment.model, deployment.number)
        self._on_step("linked")
        self._engine.load(deployment.model)
        self._on_step("loaded")
        self._wait_until_ready(deployment)
        self._on_step("ready")
        answer = self._probe(deployment, package)
        self._on_step("probed")
        return answer

    def _fetch(self, deployment: Deployment, into: Path) -> ModelPackage:
        package = download_package(self._store, deployment.model, deployment.digest, into)
        self._on_step("fetched")
        return package

    def _wait_until_ready(self, deployment: Deployment) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._engine.is_ready(deployment.model, deployment.served_version):
            if time.monotonic() > deadline:
                raise EngineRefused(
                    f"the model server loaded {deployment.model}, but version {deployment.served_version} is not ready"
                )
            time.sleep(_READY_POLL_S)

    def _probe(self, deployment: Deployment, package: ModelPackage) -> str:
        probe = package.probe()
        if probe is None:
            return "loaded; no probe was recorded"
        answer = self._engine.infer(deployment.model, deployment.served_version, probe.inputs)
        if reason := probe.refuses(answer):
            raise ProbeRefused(f"{deployment.model} does not answer as it did when it was published: {reason}")
        return "loaded; the probe was answered as recorded"

    def _absorb(self, received: ReceivedEvent, live: Deployment) -> Outcome:
        self.journal.finish(received.id, "already deployed", f"deployment {live.number} is this package")
        return "already deployed"

    def _is_done(self, received: ReceivedEvent, live: Deployment) -> bool:
        """Return whether an event asks for what is served; one with a deployment of its own goes on with that."""
        try:
            return not self.journal.has_begun(received.id) and self._serves(live)
        except EngineUnavailable:
            return False  # the deployment that begins now meets it again, and waits with a reason

    def _serves(self, live: Deployment) -> bool:
        return self._repository.linked(live.model) == live.number and self._engine.is_ready(
            live.model, live.served_version
        )

    def _restore(self, deployment: Deployment, live: Deployment | None) -> str | None:
        """Put the link and the engine back, and return what could not be, or None."""
        if self._repository.linked(deployment.model) != deployment.number:
            return None  # nothing was swapped
        try:
            self._repoint(deployment.model, live)
            if live is None:
                self._engine.unload(deployment.model)
            else:
                self._engine.load(deployment.model)
        except KeynetError as error:
            return f"and what was served before could not be restored: {error.message}"
        return None

    def _repoint(self, name: ModelName, live: Deployment | None) -> None:
        if live is None:
            self._repository.unlink(name)
            return
        self._repository.build(name, live.number, live.served_version, lambda into: self._fetch(live, into))
        self._repository.link(name, live.number)

    def _is_right(self, name: ModelName, live: Deployment | None) -> bool:
        if live is None:
            return False
        return self._repository.linked(name) == live.number and self._repository.has(name, live.number)


def _may_pass(error: KeynetError) -> bool:
    """Return whether something may be mended without the package changing: then the event waits."""
    if isinstance(error, RepositoryFailed):
        return error.may_pass
    return isinstance(error, EngineUnavailable | StoreUnavailable)


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


def to_request(received: ReceivedEvent) -> Request:
    """Return what a received event asks for."""
    event = Event.from_json(received.body.encode())
    if event.type == RollbackRequested.TYPE:
        asked = RollbackRequested.from_event(event)
        return Request(
            event_id=event.id,
            model=asked.model,
            digest=asked.digest,
            model_version=asked.model_version,
            run_id=asked.run_id,
            requested_by=asked.who,
            why=asked.why or f"rollback to deployment {asked.restores}",
            restores=asked.restores,
        )
    published = ModelPublished.from_event(event)
    return Request(
        event_id=event.id,
        model=published.model,
        digest=published.digest,
        model_version=published.model_version,
        run_id=published.run_id,
        requested_by=received.source,
        why="published",
    )
