"""Give reports a place of their own: the schema `reporting` on PostgreSQL.

A role may then be let read reports and neither payloads nor the ledger. The views themselves are
in `migrations/views/`, and stand only at the newest revision: env.py takes them down before
migrating, so that no migration has to know them.
"""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("CREATE SCHEMA reporting")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP SCHEMA reporting")
