"""One pass through the outbox: each package to its store, then its event to whoever is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keynet_core import (
    EventRefused,
    EventUndelivered,
    Nowhere,
    StoreFull,
    StoreUnavailable,
    open_store,
    publish_entry,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from keynet_core import Entry, EventPublisher, FlushReport, ObjectStore, Outbox


def hand_over(
    outbox: Outbox,
    events: EventPublisher,
    *,
    timeout_s: float,
    lock_timeout_s: float | None = None,
    stored: Callable[[Entry], None] = lambda _entry: None,
) -> FlushReport:
    """
    Hand over what waits in the outbox, oldest first.

    A store that does not answer is not asked again for the entries that follow. While nobody is known who could be
    told, an entry that only waits for that is left alone.

    Args:
        outbox: Where it waits.
        events: Who is told.
        timeout_s: When no further entry is begun.
        lock_timeout_s: How long another process may flush before it is this one's turn; default: `timeout_s`.
        stored: Called with an entry whose package is in its store, before it is announced.

    Raises:
        LockTimeout: Another process was flushing for longer.
    """

    def is_worth_a_try(entry: Entry) -> bool:
        last = entry.last_error()
        return not isinstance(events, Nowhere) or last is None or last["code"] != EventUndelivered.code

    with events.opened() as link:
        deliver = _Delivery(link, stored)
        return outbox.flush(deliver, timeout_s=timeout_s, lock_timeout_s=lock_timeout_s, only=is_worth_a_try)


class _Delivery:
    """Hands one entry over after the other, and remembers which stores were silent."""

    def __init__(self, events: EventPublisher, stored: Callable[[Entry], None]) -> None:
        self._events = events
        self._stored = stored
        self._silent: dict[str, StoreUnavailable] = {}

    def __call__(self, entry: Entry) -> None:
        store = _store_of(entry)
        if (known := self._silent.get(store.url)) is not None:
            raise type(known)(known.message, hint=known.hint)
        try:
            publish_entry(entry, store, self._events, stored=lambda _address: self._stored(entry))
        except StoreFull:
            raise  # a smaller package may still have room
        except StoreUnavailable as error:
            self._silent[store.url] = error
            raise


def _store_of(entry: Entry) -> ObjectStore:
    # The store that was chosen when the package was made, whatever the environment says today.
    store = entry.event.data.get("store")
    if not isinstance(store, str):
        raise EventRefused(f"event {entry.event.id} does not say which store its package goes to")
    return open_store(store)
