"""Events that wait are found by their model, however many there are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_WAITS = sa.text("outcome IS NULL")


def upgrade() -> None:
    """Replace the index of what waits by one that has the model in it, and add one of what came of a model's events."""
    op.drop_index("events_unfinished", "events")
    op.create_index(
        "events_waiting", "events", ["subject", "seq"], sqlite_where=_WAITS, postgresql_where=_WAITS
    )
    op.create_index("events_of_subject", "events", ["subject", "outcome", "seq"])


def downgrade() -> None:
    """Put the old index back."""
    op.drop_index("events_of_subject", "events")
    op.drop_index("events_waiting", "events")
    op.create_index("events_unfinished", "events", ["seq"], sqlite_where=_WAITS, postgresql_where=_WAITS)
