"""The outbox handed over, again and again for a while: what became of one package, and what stands in its way."""

from __future__ import annotations

import logging
import random
import shlex
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Timer
from typing import TYPE_CHECKING, Literal

from keynet_core import (
    EventUndelivered,
    KeynetError,
    LockTimeout,
    Nowhere,
    StoreFull,
    StoreUnavailable,
    package_key,
    to_publisher,
)
from keynet_train._delivering import hand_over
from keynet_train._errors import PublicationRefused, PublicationWaiting
from keynet_train._result import Publication
from keynet_train._settings import CONTINUE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keynet_core import Entry, ModelPublished, Outbox
    from keynet_train._errors import Unpublished
    from keynet_train._result import TraceResult
    from keynet_train._settings import TrainSettings

    State = Literal["announced", "stored", "waiting", "refused"]

TELL_AFTER_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_LEAST_PASS_S = 5.0
"""How long a pass begins further entries, however little patience is left: the oldest go first, ours is the newest."""

_LOG = logging.getLogger("keynet_train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How far a package came, and what stands in its way."""

    state: State
    url: str
    event_id: str
    told: str = ""
    """Why it is not announced, and where it waits."""

    command: str | None = None
    """What to do next."""

    is_settled: bool = True
    """Whether trying again would change nothing."""

    is_all_there_is: bool = False
    """Whether it came as far as it can where nobody is known who could be told."""

    @property
    def publication(self) -> Publication:
        """The same for the user."""
        reason = None if self.state == "announced" else f"{self.told}\n  next  {self.command}"
        return Publication(state=self.state, url=self.url, event_id=self.event_id, reason=reason)

    def to_error(self, settings: TrainSettings, result: TraceResult | Publication) -> Unpublished | None:
        """Return what the call is to end with, or None: nothing more was asked for, or the user wants to go on."""
        if self.state == "announced" or self.is_all_there_is or settings.on_unpublished == CONTINUE:
            return None
        kind = PublicationRefused if self.state == "refused" else PublicationWaiting
        message = f"the model is trained, recorded and packaged, but {self.state}, not announced: {self.told}"
        return kind(message, result=result, hint=self.command)


def publish(entry: Entry, published: ModelPublished, settings: TrainSettings) -> Outcome:
    """
    Hand over everything that waits in the outbox, oldest first, and say what became of `entry`.

    A store, a broker or a server that does not answer is asked again until `settings.publish_timeout_s` is over. It is
    no error here: the package is safe, and the outcome says what it waits for.
    """
    began = time.monotonic()
    deadline = began + settings.publish_timeout_s
    pauses = _pauses()
    while True:
        with _telling_when_slow(f"{published.model} is on its way to {published.store} ..."):
            outcome = _attempt(entry, published, settings, max(deadline - time.monotonic(), _LEAST_PASS_S))
        now = time.monotonic()
        if outcome.is_settled or now >= deadline:
            return outcome
        if now - began > TELL_AFTER_S:
            why = outcome.told.partition("\n")[0]
            _LOG.warning("%s waits, tried for another %.0f s: %s", published.model, deadline - now, why)
        time.sleep(min(next(pauses), deadline - now))


def to_command(home: Path, *words: str) -> str:
    """Return the command that looks after the outbox of a home, from any directory."""
    return shlex.join(["keynet-train", "outbox", *words, "--home", str(home)])


def _attempt(entry: Entry, published: ModelPublished, settings: TrainSettings, timeout_s: float) -> Outcome:
    """Go through the outbox once."""
    stored: set[str] = set()
    is_nobody_known = False
    error: KeynetError | None = None
    try:
        events = to_publisher(settings)
        is_nobody_known = isinstance(events, Nowhere)
        report = hand_over(settings.outbox, events, timeout_s=timeout_s, stored=lambda each: stored.add(each.id))
        failed = {event.id: reason for event, reason in (*report.waiting, *report.refused)}
        error = failed.get(entry.event.id)
    except KeynetError as trouble:
        error = trouble
    except OSError as trouble:
        error = EventUndelivered(f"the outbox cannot be worked on: {trouble}")
    state, directory = _where_is(entry, settings.outbox, is_stored=entry.id in stored)
    error = error or _noted(replace(entry, directory=directory))
    command = to_command(settings.state_directory, *(("show", entry.id) if state == "refused" else ("flush",)))
    is_all_there_is = is_nobody_known and state == "stored"
    return Outcome(
        state=state,
        url=f"{published.store}/{package_key(published.model, published.digest)}",
        event_id=entry.event.id,
        told=_explain(error, directory, mend=not is_all_there_is),
        command=error.hint if is_all_there_is and error else command,
        is_settled=state in {"announced", "refused"} or not _is_mended_by_time(error, is_nobody_known=is_nobody_known),
        is_all_there_is=is_all_there_is,
    )


def _where_is(entry: Entry, outbox: Outbox, *, is_stored: bool) -> tuple[State, Path]:
    done, refused = outbox.root / "done" / entry.id, outbox.root / "refused" / entry.id
    if done.exists():
        return "announced", done
    if refused.exists():
        return "refused", refused
    return "stored" if is_stored else "waiting", entry.directory


def _noted(entry: Entry) -> KeynetError | None:
    """Return what the last attempt noted beside the entry; it may have been another process's."""
    told = entry.last_error()
    return KeynetError(told["message"], hint=told.get("hint")) if told else None


def _is_mended_by_time(error: KeynetError | None, *, is_nobody_known: bool) -> bool:
    """Return whether the same attempt may succeed later, with nothing changed here."""
    if isinstance(error, EventUndelivered):
        return not is_nobody_known
    return isinstance(error, StoreUnavailable | LockTimeout) and not isinstance(error, StoreFull)


def _explain(error: KeynetError | None, directory: Path, *, mend: bool) -> str:
    if error is None:
        return f"another process hands the outbox over right now\n  where {directory}"
    lines = [error.message, f"  where {directory}"]
    return "\n".join([*lines, f"  mend  {error.hint}"] if mend and error.hint else lines)


@contextmanager
def _telling_when_slow(what: str) -> Iterator[None]:
    """Say what is being done when it takes longer than anyone expects."""
    timer = Timer(TELL_AFTER_S, _LOG.warning, ("%s", what))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _pauses() -> Iterator[float]:
    """Yield how long to wait before each further attempt: longer and longer, and no two trainings in step."""
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s * random.uniform(0.7, 1.3)  # noqa: S311 - no secret
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
