"""Worker: the one thread that acts on events, in order, and announces what waits in the outbox of its home."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from keynet_core import KeynetError, LockTimeout, publish_entry
from keynet_server._errors import ClaimMissing, DeploymentFailed, DeploymentPostponed
from keynet_server._turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from keynet_core import Entry, Event, EventPublisher, ModelName, ObjectStore, Outbox
    from keynet_server._claims import Claim
    from keynet_server._deployer import Deployer
    from keynet_server._records import Backlog, ReceivedEvent

log = logging.getLogger("keynet.server")

T = TypeVar("T")

TICK_S = 2.0
MAX_BLAMED = 5
"""How often a package may be what made the model server stop answering, before it is given up."""

MODELS_AT_ONCE = 10_000
EVENTS_AT_ONCE = 50
"""How many events of a model have their turn before the next model has."""

_FLUSH_TIMEOUT_S = 30.0
_LOOK_S = 30.0


@dataclass(frozen=True, slots=True)
class _Here:
    """Hands events of the home's own outbox straight to the journal."""

    deployer: Deployer

    def publish(self, event: Event) -> None:
        self.deployer.receive(event)

    def opened(self) -> AbstractContextManager[EventPublisher]:
        return nullcontext(self)


class Worker:
    """Acts on received events until it is stopped; what one event does never stops another."""

    def __init__(self, deployer: Deployer, outbox: Outbox, store: ObjectStore, *, tick_s: float = TICK_S) -> None:
        self._deployer = deployer
        self._outbox = outbox
        self._store = store
        self._tick_s = tick_s
        self._turns = Turns()
        self._place = 0
        self._look_at_engine = 0.0
        self._was_engine_live = True
        self._trouble: dict[str, str] = {}
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

    def run_once(self) -> bool:
        """Give every model with events its turn; return whether any of them came to its end."""
        self._safely(self._flush_outbox)
        self._safely(self._notice_engine)
        return self._safely(self._deploy_all) or False

    def _safely(self, step: Callable[[], T]) -> T | None:
        """Take a step; what stops it stops neither the thread nor the next step."""
        try:
            done = step()
        except KeynetError as error:
            if self._trouble.get(step.__name__) != error.message:
                log.warning("%s: %s", error.code, error.message)
            self._trouble[step.__name__] = error.message
        except Exception:  # the boundary of the thread: it outlives what nobody foresaw
            log.exception("an unforeseen error in the worker")
        else:
            self._trouble.pop(step.__name__, None)
            return done
        return None

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self.run_once():
                continue
            self._wanted.wait(self._tick_s)
            self._wanted.clear()

    def _deploy_all(self) -> bool:
        if not self._turns.begin(time.monotonic()):
            return False
        progress = False
        for backlog in self._backlogs():
            if self._stopping.is_set():
                break
            if self._turns.is_resting(backlog, time.monotonic()):
                continue
            with self._deployer.claims.hold(backlog.subject) as claim:
                if claim is not None:  # else another server acts on the model; the next round looks again
                    progress = self._take_turn(backlog, claim) or progress
            if self._turns.is_enough(time.monotonic()):
                break
        return progress

    def _backlogs(self) -> Iterator[Backlog]:
        """Yield the models whose events wait, from where the last round ended; a later round begins anew."""
        while True:
            page = self._deployer.journal.backlogs(after=self._place, limit=MODELS_AT_ONCE)
            for backlog in page:
                self._place = backlog.first
                yield backlog
            if len(page) < MODELS_AT_ONCE:
                self._place = 0
                return

    def _take_turn(self, backlog: Backlog, claim: Claim) -> bool:
        """Act on events of a model; what they are was not known for sure before it was claimed."""
        journal, turns, subject = self._deployer.journal, self._turns, backlog.subject
        finished = self._give_up_overtaken(subject)
        waiting = journal.waiting(subject, limit=EVENTS_AT_ONCE + turns.count(subject))
        for received in turns.untried(subject, waiting)[:EVENTS_AT_ONCE]:
            if self._stopping.is_set() or not self._act(received, claim):
                break
            finished = True
        finished = self._give_up_overtaken(subject) or finished
        newest = journal.newest_waiting(subject)
        if newest and turns.is_due(newest, time.monotonic()):
            finished = self._act(newest, claim) or finished
        finished = self._give_up_overtaken(subject) or finished
        turns.end(backlog, journal.newest_waiting(subject))
        return finished

    def _give_up_overtaken(self, subject: str | None) -> bool:
        count = self._deployer.give_up_overtaken(subject)
        if count:
            log.warning("%d events of %s are given up: a newer one came before them", count, subject)
        return count > 0

    def _act(self, received: ReceivedEvent, claim: Claim) -> bool:
        """Act on an event; return whether it has an outcome now."""
        try:
            outcome = self._deployer.deploy(received, claim)
        except DeploymentPostponed as error:
            log.warning("%s", error.message)
            self._look_at_engine = 0.0  # it may have lost what it served
            blamed = self._turns.postponed(received, time.monotonic(), blamed=error.after_link)
            if blamed < MAX_BLAMED:
                return False
            self._give_up(received, DeploymentFailed(f"{error.message}; tried {blamed} times"))
        except KeynetError as error:
            log.warning("%s: %s", error.code, error.message)
            self._turns.postponed(received, time.monotonic())
            return False
        except Exception as error:  # the boundary of one event: the next one is acted on all the same
            log.exception("an unforeseen error while acting on event %s", received.id)
            self._give_up(received, DeploymentFailed(f"an unforeseen error: {type(error).__name__}: {error}"))
        else:
            log.info("event %s of %s: %s", received.id, received.subject, outcome)
        self._turns.finished(received)
        return True

    def _give_up(self, received: ReceivedEvent, reason: KeynetError) -> None:
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
            self._was_engine_live = False
            return
        if not self._was_engine_live:
            self._was_engine_live = True
            self._turns.clear_up()
        if time.monotonic() < self._look_at_engine:
            return
        self._look_at_engine = time.monotonic() + _LOOK_S
        still_stale: set[ModelName] = set()
        for name, reason in self._deployer.reload(self._stale):
            if isinstance(reason, ClaimMissing | DeploymentPostponed):
                # Whoever acts on it may have read the link before it was put right; `DeploymentPostponed` stands for a
                # first deployment that is under way and may be loaded: until it has an outcome, nothing is decided.
                still_stale.add(name)
            else:
                self._complain(name, reason)
        self._stale = still_stale
        trouble = self._deployer.ensure_served()
        for deployment, reason in trouble:
            self._complain(deployment.model, reason)
        still = {deployment.model for deployment, _ in trouble}
        self._complaints = {name: told for name, told in self._complaints.items() if name in still}

    def _complain(self, name: ModelName, reason: KeynetError) -> None:
        if self._complaints.get(name) != reason.message:
            log.warning("%s is not served: %s", name, reason.message)
        self._complaints[name] = reason.message
