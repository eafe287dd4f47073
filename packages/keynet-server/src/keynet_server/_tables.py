"""The journal's tables, as the newest migration leaves them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa


class UtcTime(sa.TypeDecorator[datetime]):
    """An aware time, kept as UTC; a naive one is refused, because nobody knows which hour it means."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Return what is written."""
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Return what was read; SQLite forgets the zone, PostgreSQL has the zone of the session."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class PlainText(sa.TypeDecorator[str]):
    """Somebody else's words; a character that no database takes is replaced, the rest is kept."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Return what is written."""
        if value is None:
            return None
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


metadata = sa.MetaData()

events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("subject", sa.Text),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("received_at", UtcTime, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text),
    sa.Column("reason", PlainText),
    sa.Column("finished_at", UtcTime),
    sqlite_autoincrement=True,
)

deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("model_version", sa.Text),
    sa.Column("served_version", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text),
    sa.Column("event_id", sa.Text, sa.ForeignKey("events.id"), nullable=False, unique=True),
    sa.Column("restores", sa.Integer),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", PlainText),
    sa.Column("requested_by", PlainText, nullable=False),
    sa.Column("why", PlainText),
    sa.Column("started_at", UtcTime, nullable=False),
    sa.Column("finished_at", UtcTime),
    sa.Column("engine_answer", PlainText),
    sa.CheckConstraint(
        "state IN ('deploying', 'deployed', 'failed', 'superseded', 'unloaded')", name="deployments_state"
    ),
)

sa.Index(
    "events_waiting",
    events.c.subject,
    events.c.seq,
    sqlite_where=events.c.outcome.is_(None),
    postgresql_where=events.c.outcome.is_(None),
)
sa.Index("events_of_subject", events.c.subject, events.c.outcome, events.c.seq)
sa.Index(
    "deployments_live",
    deployments.c.model,
    unique=True,
    sqlite_where=deployments.c.state == "deployed",
    postgresql_where=deployments.c.state == "deployed",
)
