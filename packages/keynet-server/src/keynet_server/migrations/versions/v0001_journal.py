"""The journal: events received, deployments made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create both tables."""
    op.create_table(
        "events",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("subject", sa.Text),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "events_unfinished",
        "events",
        ["seq"],
        sqlite_where=sa.text("outcome IS NULL"),
        postgresql_where=sa.text("outcome IS NULL"),
    )
    op.create_table(
        "deployments",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("model_version", sa.Text),
        sa.Column("served_version", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text),
        sa.Column("event_id", sa.Text, sa.ForeignKey("events.id"), nullable=False, unique=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("requested_by", sa.Text, nullable=False),
        sa.Column("why", sa.Text),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("engine_answer", sa.Text),
        sa.CheckConstraint("state IN ('deploying', 'deployed', 'failed', 'superseded')", name="deployments_state"),
    )
    op.create_index(
        "deployments_live",
        "deployments",
        ["model"],
        unique=True,
        sqlite_where=sa.text("state = 'deployed'"),
        postgresql_where=sa.text("state = 'deployed'"),
    )


def downgrade() -> None:
    """Remove both tables, and with them every record."""
    op.drop_table("deployments")
    op.drop_table("events")
