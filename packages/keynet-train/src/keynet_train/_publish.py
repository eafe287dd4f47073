"""A package into the outbox, the outbox to store and server: what is done, what waits, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keynet_core import EventRefused, LockTimeout, open_store, package_key, publish_entry
from keynet_train._result import Publication

if TYPE_CHECKING:
    from keynet_core import Entry, EventPublisher, KeynetError, ModelPublished, ObjectStore, Outbox

FLUSH_TIMEOUT_S = 60.0


def publish(outbox: Outbox, entry: Entry, published: ModelPublished, events: EventPublisher) -> Publication:
    """
    Hand over everything that waits in the outbox, oldest first, and say what became of `entry`.

    A store or a server that does not answer is no error here: the package is safe, and the publication says what it
    waits for.
    """
    reasons: dict[str, KeynetError] = {}
    stored: set[str] = set()

    def deliver(each: Entry) -> None:
        publish_entry(each, _store_of(each), events, stored=lambda _: stored.add(each.id))

    try:
        report = outbox.flush(deliver, timeout_s=FLUSH_TIMEOUT_S)
    except LockTimeout as error:
        reasons[entry.id] = error
    else:
        reasons = {event.id: error for event, error in (*report.waiting, *report.refused)}
    reason = reasons.get(entry.event.id) or reasons.get(entry.id)
    return _outcome(outbox, entry, published, reason, is_stored=entry.id in stored)


def _store_of(entry: Entry) -> ObjectStore:
    # The store that was chosen when the package was made, whatever the environment says today.
    store = entry.event.data.get("store")
    if not isinstance(store, str):
        raise EventRefused(f"event {entry.event.id} does not say which store its package goes to")
    return open_store(store)


def _outcome(
    outbox: Outbox, entry: Entry, published: ModelPublished, error: KeynetError | None, *, is_stored: bool
) -> Publication:
    url = f"{published.store}/{package_key(published.model, published.digest)}"
    if (outbox.root / "done" / entry.id).exists():
        return Publication(state="announced", url=url, event_id=entry.event.id)
    if (outbox.root / "refused" / entry.id).exists():
        return Publication(state="refused", url=url, event_id=entry.event.id, reason=_reason(outbox, error))
    return Publication(
        state="stored" if is_stored else "waiting", url=url, event_id=entry.event.id, reason=_reason(outbox, error)
    )


def _reason(outbox: Outbox, error: KeynetError | None) -> str:
    told = str(error) if error else "another process hands the outbox over right now"
    return f"{told}\n  where {outbox.root}"
