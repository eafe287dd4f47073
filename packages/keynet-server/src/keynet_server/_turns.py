"""Turns: which events are to be tried now, and which later; one worker's memory of what it tried, lost with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keynet_server._records import Backlog, ReceivedEvent

MAX_POSTPONED = 3
"""After so many models in a row that had to wait, something is down that they all need."""

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often something was tried, and when it is tried again, as `time.monotonic` counts."""

    attempts: int = 0
    blamed: int = 0
    not_before: float = 0.0

    def after(self, now: float, *, blamed: bool = False) -> Patience:
        """Return the patience after one more attempt; the pauses grow."""
        pause_s = min(_FIRST_PAUSE_S * 2**self.attempts, _LONGEST_PAUSE_S)
        return Patience(attempts=self.attempts + 1, blamed=self.blamed + blamed, not_before=now + pause_s)


@dataclass(slots=True)
class _Model:
    """What is remembered of a model: its events that were tried, and up to which event that is all of them."""

    tried: dict[str, Patience] = field(default_factory=dict)
    known_last: int = 0
    rests_until: float = 0.0


class Turns:
    """
    Events in the order they were received, model by model, so that none waits for what another model waits for.

    Of a model's events, each is tried once, in order. Those that had to wait are tried again later, the newest first:
    once it is served, nobody wants the older ones.
    """

    def __init__(self) -> None:
        self._models: dict[str | None, _Model] = {}
        self._weather = Patience()
        self._postponed_in_a_row = 0

    def begin(self, now: float) -> bool:
        """Begin a round; return False when it is too early for one."""
        self._postponed_in_a_row = 0
        return self._weather.not_before <= now

    def clear_up(self) -> None:
        """Forget the weather: what everybody needs is there."""
        self._weather = Patience()
        self._postponed_in_a_row = 0

    def is_enough(self, now: float) -> bool:
        """Return whether so many events had to wait that the others had better wait as well, for a while."""
        if self._postponed_in_a_row < MAX_POSTPONED:
            return False
        self._weather = self._weather.after(now)
        return True

    def is_resting(self, backlog: Backlog, now: float) -> bool:
        """Return whether a model has nothing to be tried now."""
        model = self._models.get(backlog.subject)
        return model is not None and backlog.last <= model.known_last and now < model.rests_until

    def count(self, subject: str | None) -> int:
        """Return how many of a model's events were tried and wait."""
        model = self._models.get(subject)
        return len(model.tried) if model else 0

    def untried(self, subject: str | None, waiting: Iterable[ReceivedEvent]) -> list[ReceivedEvent]:
        """Return the events whose first turn it is, in order; what does not wait any more is forgotten."""
        model = self._models.setdefault(subject, _Model())
        waiting = list(waiting)
        ids = {received.id for received in waiting}
        model.tried = {event_id: patience for event_id, patience in model.tried.items() if event_id in ids}
        return [received for received in waiting if received.id not in model.tried]

    def is_due(self, received: ReceivedEvent, now: float) -> bool:
        """Return whether an event that was tried is to be tried again."""
        patience = self._of(received).tried.get(received.id)
        return patience is not None and patience.not_before <= now

    def postponed(self, received: ReceivedEvent, now: float, *, blamed: bool = False) -> int:
        """Note that an event has to wait, and return how often it may have been what stopped the model server."""
        tried = self._of(received).tried
        tried[received.id] = tried.get(received.id, Patience()).after(now, blamed=blamed)
        self._postponed_in_a_row += 1
        return tried[received.id].blamed

    def finished(self, received: ReceivedEvent) -> None:
        """Note that an event has its outcome."""
        self._of(received).tried.pop(received.id, None)
        self.clear_up()

    def end(self, backlog: Backlog, newest: ReceivedEvent | None) -> None:
        """Note the end of a model's turn, and what is its newest event that waits."""
        if newest is None:
            self._models.pop(backlog.subject, None)
            return
        model = self._models.setdefault(backlog.subject, _Model())
        patience = model.tried.get(newest.id)
        if patience is not None:
            model.known_last, model.rests_until = backlog.last, patience.not_before

    def _of(self, received: ReceivedEvent) -> _Model:
        return self._models.setdefault(received.subject, _Model())
