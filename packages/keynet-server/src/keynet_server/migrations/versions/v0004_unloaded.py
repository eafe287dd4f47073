"""A deployment that an operator unloaded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BEFORE = "state IN ('deploying', 'deployed', 'failed', 'superseded')"
_AFTER = "state IN ('deploying', 'deployed', 'failed', 'superseded', 'unloaded')"


def upgrade() -> None:
    """Allow the state."""
    _allow(_AFTER)


def downgrade() -> None:
    """Call what was unloaded superseded, which is the nearest this release knew, and refuse the state."""
    deployments = sa.table("deployments", sa.column("state", sa.Text))
    op.execute(deployments.update().where(deployments.c.state == "unloaded").values(state="superseded"))
    _allow(_BEFORE)


def _allow(states: str) -> None:
    check = sa.CheckConstraint(states, name="deployments_state")
    if op.get_bind().dialect.name == "sqlite":
        # SQLite changes a check by making the table anew. From these columns, not from what is found:
        # whether the old check is found, and kept, depends on the release of SQLAlchemy.
        with op.batch_alter_table("deployments", recreate="always", copy_from=_without_check(), table_args=(check,)):
            return
    op.drop_constraint("deployments_state", "deployments", type_="check")
    op.create_check_constraint("deployments_state", "deployments", states)


def _without_check() -> sa.Table:
    table = sa.Table(
        "deployments",
        sa.MetaData(),
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
        sa.Column("restores", sa.Integer),
    )
    sa.Index("deployments_live", table.c.model, unique=True, sqlite_where=sa.text("state = 'deployed'"))
    return table
