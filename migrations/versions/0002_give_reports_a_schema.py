"""Give reports a place of their own: a schema on PostgreSQL, `reporting` unless configured.

A role may then be let read reports and neither payloads nor the ledger. The views themselves are
in `migrations/views/`, and stand only at the newest revision: env.py takes them down before
migrating, so that no migration has to know them. A schema that was there before stays.
"""

from alembic import context, op

from etl.db import ownership

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        ownership.create_schema(op.get_bind(), context.config.attributes["reporting_schema"])


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        ownership.drop_schema(op.get_bind(), context.config.attributes["reporting_schema"])
