"""Which older deployment a rollback brings back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; what was deployed before restores nothing."""
    op.add_column("deployments", sa.Column("restores", sa.Integer))


def downgrade() -> None:
    """Drop the column; the deployments stay."""
    op.drop_column("deployments", "restores")
