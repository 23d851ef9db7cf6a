"""Give reports a place of their own: the schema `reporting` on PostgreSQL.

A role may then be let read reports and neither payloads nor the ledger. The views themselves are
in `migrations/views/`, and stand only at the newest revision: env.py takes them down before
migrating, so that no migration has to know them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    bind = op.get_bind()
    # Who may not create a schema can have it created beforehand.
    if bind.dialect.name == "postgresql" and not sa.inspect(bind).has_schema("reporting"):
        op.execute("CREATE SCHEMA reporting")


def downgrade() -> None:
    bind = op.get_bind()
    if bind.dialect.name != "postgresql":
        return
    found = sa.inspect(bind)
    if not found.get_view_names("reporting") and not found.get_table_names("reporting"):
        op.execute("DROP SCHEMA reporting")
