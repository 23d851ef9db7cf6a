"""Find what waits, failed, is gone or has changed, without reading all runs.

For the views `unresolved_backlog` and `status_history`, and for the row of `health` that each pass
writes. All but the last have only the few rows that they are asked for, so that a run that is
archived and never changes costs nothing here.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

PARTIAL = (
    (
        "outcomes",
        ("variant_id", "opened_at", "tests_unresolved", "superseded_at"),
        "superseded_at IS NULL AND tests_unresolved > 0",
    ),
    ("revisions", ("superseded_at",), "superseded_at IS NOT NULL"),
    ("tracked_runs", ("state",), "state = 'failed'"),
    ("tracked_runs", ("gone_at",), "gone_at IS NOT NULL"),
)

QUEUED = {
    "ix_tracked_runs_queued_with_token": "state = 'queued' AND read_token IS NOT NULL",
    "ix_tracked_runs_queued_without_token": "state = 'queued' AND read_token IS NULL",
}
"""In the order of claiming, so that a claim sorts no queue."""


def upgrade() -> None:
    for name, condition in QUEUED.items():
        op.create_index(
            name,
            "tracked_runs",
            ["due_at", "run_id"],
            unique=False,
            sqlite_where=sa.text(condition),
            postgresql_where=sa.text(condition),
        )
    for table, columns, condition in PARTIAL:
        op.create_index(
            "_".join(("ix", table, *columns)),
            table,
            list(columns),
            unique=False,
            sqlite_where=sa.text(condition),
            postgresql_where=sa.text(condition),
        )
    op.create_index("ix_status_changes_changed_by", "status_changes", ["changed_by"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_status_changes_changed_by", "status_changes")
    for table, columns, _ in reversed(PARTIAL):
        op.drop_index("_".join(("ix", table, *columns)), table)
    for name in QUEUED:
        op.drop_index(name, "tracked_runs")
