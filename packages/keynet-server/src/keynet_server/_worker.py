"""Worker: the one thread that acts on events, in order, and announces what waits in the outbox of its home."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keynet_core import KeynetError, LockTimeout, publish_entry
from keynet_server._errors import DeploymentFailed, DeploymentPostponed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keynet_core import Entry, Event, ModelName, ObjectStore, Outbox
    from keynet_server._deployer import Deployer
    from keynet_server._records import ReceivedEvent

log = logging.getLogger("keynet.server")

TICK_S = 2.0
MAX_BLAMED = 5
"""How often a package may be what made the model server stop answering, before it is given up."""

_FLUSH_TIMEOUT_S = 30.0
_LOOK_S = 30.0
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Patience:
    attempts: int = 0
    blamed: int = 0
    not_before: float = 0.0

    def after(self, error: DeploymentPostponed, now: float) -> _Patience:
        pause_s = min(_FIRST_PAUSE_S * 2**self.attempts, _LONGEST_PAUSE_S)
        return _Patience(attempts=self.attempts + 1, blamed=self.blamed + error.after_link, not_before=now + pause_s)


@dataclass(frozen=True, slots=True)
class _Here:
    """Hands events of the home's own outbox straight to the journal."""

    deployer: Deployer

    def publish(self, event: Event) -> None:
        self.deployer.receive(event)


class Worker:
    """Acts on received events until it is stopped; what one event does never stops another."""

    def __init__(self, deployer: Deployer, outbox: Outbox, store: ObjectStore, *, tick_s: float = TICK_S) -> None:
        self._deployer = deployer
        self._outbox = outbox
        self._store = store
        self._tick_s = tick_s
        self._patience: dict[str, _Patience] = {}
        self._look_at_engine = 0.0
        self._complaints: dict[ModelName, str] = {}
        self._outbox_trouble = ""
        self._stale: set[ModelName] = set()
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keynet-worker", daemon=True)

    def start(self, stale: Iterable[ModelName] = ()) -> None:
        """
        Begin.

        Args:
            stale: Models whose links were repaired: a model server that runs already may serve something else.

        """
        self._stale = set(stale)
        self._look_at_engine = 0.0
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something to do."""
        self._wanted.set()

    def stop(self, *, timeout_s: float = 3.0) -> bool:
        """End after the current event; return False when that takes longer (a new start finishes it)."""
        self._stopping.set()
        self._wanted.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def is_alive(self) -> bool:
        """Return whether events are acted on."""
        return self._thread.is_alive()

    def run_once(self) -> None:
        """Do everything that can be done now."""
        for step in (self._flush_outbox, self._notice_engine, self._deploy_all):
            try:
                step()
            except KeynetError as error:
                log.warning("%s: %s", error.code, error.message)
            except Exception:  # the boundary of the thread: it, and the next step, outlive what nobody foresaw
                log.exception("an unforeseen error in the worker")

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.run_once()
            self._wanted.wait(self._tick_s)
            self._wanted.clear()

    def _deploy_all(self) -> None:
        self._give_up_overtaken()
        waiting = self._deployer.journal.unfinished()
        newest = {received.subject: received.id for received in waiting}
        for received in waiting:
            if self._stopping.is_set():
                return
            patience = self._patience.get(received.id, _Patience())
            if patience.attempts and newest[received.subject] != received.id:
                continue  # the newer one has its turn first; when it fails, this one is tried again
            if patience.not_before <= time.monotonic():
                self._deploy(received, patience)
        self._give_up_overtaken()

    def _give_up_overtaken(self) -> None:
        journal = self._deployer.journal
        for received in journal.unfinished():
            if journal.is_overtaken(received.id):
                self._give_up(
                    received, DeploymentFailed("a newer event for the model was deployed before this one could be")
                )

    def _deploy(self, received: ReceivedEvent, patience: _Patience) -> None:
        try:
            outcome = self._deployer.deploy(received)
        except DeploymentPostponed as error:
            log.warning("%s", error.message)
            self._look_at_engine = 0.0  # it may have lost what it served
            later = patience.after(error, time.monotonic())
            self._patience[received.id] = later
            if later.blamed >= MAX_BLAMED:
                self._give_up(received, DeploymentFailed(f"{error.message}; tried {later.blamed} times"))
        except KeynetError as error:
            log.warning("%s: %s", error.code, error.message)
        except Exception as error:  # the boundary of one event: the next one is acted on all the same
            log.exception("an unforeseen error while acting on event %s", received.id)
            self._give_up(received, DeploymentFailed(f"an unforeseen error: {type(error).__name__}: {error}"))
        else:
            self._patience.pop(received.id, None)
            log.info("event %s of %s: %s", received.id, received.subject, outcome)

    def _give_up(self, received: ReceivedEvent, reason: KeynetError) -> None:
        self._patience.pop(received.id, None)
        log.warning("event %s of %s is given up: %s", received.id, received.subject, reason.message)
        self._deployer.give_up(received, reason)

    def _flush_outbox(self) -> None:
        try:
            if not any((self._outbox.root / "ready").glob("*")):
                return
            report = self._outbox.flush(self._hand_over, timeout_s=_FLUSH_TIMEOUT_S)
        except LockTimeout:
            return  # another process hands the same entries over
        except (KeynetError, OSError) as error:
            self._note_outbox(str(error))
            return
        self._note_outbox("")
        for event in report.delivered:
            log.info("event %s came out of the outbox", event.id)
        for event, reason in (*report.waiting, *report.refused):
            log.warning("event %s stays in the outbox: %s", event.id, reason.message)
        for entry, unread in report.unreadable:
            log.warning("entry %s of the outbox: %s", entry, unread.message)

    def _note_outbox(self, trouble: str) -> None:
        if trouble and trouble != self._outbox_trouble:
            log.warning("the outbox cannot be flushed: %s", trouble)
        self._outbox_trouble = trouble

    def _hand_over(self, entry: Entry) -> None:
        publish_entry(entry, self._store, _Here(self._deployer), stored=lambda _address: None)

    def _notice_engine(self) -> None:
        """Have a model server that came back serve what is live; one that was never away is asked now and then."""
        if not self._deployer.is_engine_live():
            self._look_at_engine = 0.0
            return
        if time.monotonic() < self._look_at_engine:
            return
        self._look_at_engine = time.monotonic() + _LOOK_S
        for name, reason in self._deployer.reload(self._stale):
            self._complain(name, reason)
        self._stale.clear()
        trouble = self._deployer.ensure_served()
        for deployment, reason in trouble:
            self._complain(deployment.model, reason)
        still = {deployment.model for deployment, _ in trouble}
        self._complaints = {name: told for name, told in self._complaints.items() if name in still}

    def _complain(self, name: ModelName, reason: KeynetError) -> None:
        if self._complaints.get(name) != reason.message:
            log.warning("%s is not served: %s", name, reason.message)
        self._complaints[name] = reason.message
