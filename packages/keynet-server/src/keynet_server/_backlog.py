"""The queries about events that wait: which models have some, whose turn it is, and what came too late."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from keynet_server._tables import deployments, events

if TYPE_CHECKING:
    from typing import Any

_SUCCESSES = ("deployed", "already deployed", "unloaded")
_WAITS = events.c.outcome.is_(None)


def backlogs(*, after: int, limit: int) -> sa.Select[tuple[Any, ...]]:
    """Select the models with events that wait, by their first such event."""
    first = sa.func.min(events.c.seq)
    return (
        sa.select(events.c.subject, first.label("first"), sa.func.max(events.c.seq).label("last"))
        .where(_WAITS)
        .group_by(events.c.subject)
        .having(first > after)
        .order_by(first)
        .limit(limit)
    )


def waiting(subject: str | None, *, limit: int, newest: bool = False) -> sa.Select[tuple[Any, ...]]:
    """Select a model's events that wait, the oldest first, or the newest."""
    order = events.c.seq.desc() if newest else events.c.seq
    return sa.select(events).where(_is_of(subject), _WAITS).order_by(order).limit(limit)


def newest_success(subject: str | None) -> sa.Select[tuple[Any, ...]]:
    """Select the place of a model's last event that did what it asked for."""
    return sa.select(sa.func.max(events.c.seq)).where(_is_of(subject), events.c.outcome.in_(_SUCCESSES))


def too_late(subject: str | None, place: int) -> sa.ColumnElement[bool]:
    """Match a model's events that wait and were received before a place in the order."""
    return sa.and_(_is_of(subject), _WAITS, events.c.seq < place)


def begun(events_matched: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Match the deployments that are under way for some events."""
    ids = sa.select(events.c.id).where(events_matched)
    return sa.and_(deployments.c.state == "deploying", deployments.c.event_id.in_(ids))


def _is_of(subject: str | None) -> sa.ColumnElement[bool]:
    return events.c.subject.is_(None) if subject is None else events.c.subject == subject
