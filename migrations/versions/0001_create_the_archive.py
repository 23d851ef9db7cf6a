"""Create the archive: its identity, the ledger, the runs with their rows, the intake's records.

On SQLite the tables keyed by run_id are stored in the order of that key (WITHOUT ROWID), except
those whose rows can be huge, which a foreign key would have to read its way past.
"""

import uuid

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

# Moments are declared DATETIME on SQLite, days too: BI clients read DATE a day off there.
TIMESTAMP = sa.DateTime(timezone=True)
DAY = sa.Date().with_variant(sa.DateTime(), "sqlite")
# Keys sort by code point everywhere: by the rules of a language, ties would differ.
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
# SQLite counts up only what is declared INTEGER.
IDENTIFIER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision = "0001"
down_revision = None


TABLES = (
    "warnings",
    "test_revisions",
    "tests",
    "revisions",
    "environments",
    "counts",
    "runs",
    "rejects",
    "payloads",
    "labels",
    "tracked_runs",
    "workers",
    "source_limits",
    "pass_workers",
    "ingests",
    "drift",
    "archive_settings",
)


def upgrade() -> None:
    settings = op.create_table(
        "archive_settings",
        sa.Column("name", KEY, nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_archive_settings"),
        sqlite_with_rowid=False,
    )
    identity = {
        "name": "archive_id",
        "value": str(uuid.uuid4()),
        "description": "Identity of this archive, generated when it was created",
    }
    op.bulk_insert(settings, [identity])
    op.create_table(
        "drift",
        sa.Column("path", KEY, nullable=False),
        sa.Column("json_type", KEY, nullable=False),
        sa.Column("first_run_id", sa.Text(), nullable=False),
        sa.Column("first_seen_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("path", "json_type", name="pk_drift"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ingests",
        sa.Column("id", IDENTIFIER, autoincrement=True, nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("started_at", TIMESTAMP, nullable=False),
        sa.Column("finished_at", TIMESTAMP, nullable=True),
        sa.Column("new", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("changed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("unchanged", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("gone", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("waiting", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("rejected", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("requests", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("max_requests", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("exit_code", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_ingests"),
    )
    op.create_table(
        "pass_workers",
        sa.Column("worker", KEY, nullable=False),
        sa.Column("pass_id", sa.BigInteger(), nullable=False),
        sa.Column("started_at", TIMESTAMP, nullable=False),
        sa.Column("finished_at", TIMESTAMP, nullable=True),
        sa.Column("new", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("changed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("unchanged", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("gone", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("waiting", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("rejected", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("deferred", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("to_retry", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("requests", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("allowed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("halt", sa.Text(), nullable=True),
        sa.Column("halt_reason", sa.Text(), nullable=True),
        sa.Column("exit_code", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("worker", name="pk_pass_workers"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_pass_workers_pass_id", "pass_workers", ["pass_id"], unique=False)
    op.create_table(
        "source_limits",
        sa.Column("source", KEY, nullable=False),
        sa.Column("next_slot_at", TIMESTAMP, nullable=False),
        sa.Column("asked_until", TIMESTAMP, nullable=True),
        sa.Column("halt", sa.Text(), nullable=True),
        sa.Column("halt_reason", sa.Text(), nullable=True),
        sa.Column("halted_at", TIMESTAMP, nullable=True),
        sa.Column("halted_pass", sa.BigInteger(), nullable=True),
        sa.Column("answered_at", TIMESTAMP, nullable=True),
        sa.Column("prober", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("source", name="pk_source_limits"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "workers",
        sa.Column("worker", KEY, nullable=False),
        sa.Column("source", KEY, nullable=False),
        sa.Column("pass_id", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", TIMESTAMP, nullable=False),
        sa.Column("connections", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("worker", "source", name="pk_workers"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tracked_runs",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("due_at", TIMESTAMP, nullable=True),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("failing_since", TIMESTAMP, nullable=True),
        sa.Column("first_tracked_at", TIMESTAMP, nullable=False),
        sa.Column("last_fetched_at", TIMESTAMP, nullable=True),
        sa.Column("fetches", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", TIMESTAMP, nullable=True),
        sa.Column("read_token", sa.Text(), nullable=True),
        sa.Column("gone_at", TIMESTAMP, nullable=True),
        sa.Column("context_changed_at", TIMESTAMP, nullable=True),
        sa.CheckConstraint(
            "state IN"
            " ('queued', 'running', 'watching', 'settled', 'retrying', 'failed', 'dropped')",
            name=op.f("ck_tracked_runs_state"),
        ),
        sa.CheckConstraint(
            "(lease_owner IS NULL) = (lease_until IS NULL)", name=op.f("ck_tracked_runs_lease")
        ),
        sa.PrimaryKeyConstraint("run_id", name="pk_tracked_runs"),
    )
    op.create_index("ix_tracked_runs_due_at", "tracked_runs", ["due_at"], unique=False)
    op.create_table(
        "labels",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("name", KEY, nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["tracked_runs.run_id"], name="fk_labels_tracked_runs", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "name", name="pk_labels"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_labels_name_value", "labels", ["name", "value"], unique=False)
    op.create_table(
        "payloads",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("encoding", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("fetched_at", TIMESTAMP, nullable=False),
        sa.Column("last_seen_at", TIMESTAMP, nullable=True),
        sa.ForeignKeyConstraint(
            ["run_id"], ["tracked_runs.run_id"], name="fk_payloads_tracked_runs", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "revision", name="pk_payloads"),
    )
    op.create_table(
        "rejects",
        sa.Column("id", KEY, nullable=False),
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("fetched_at", TIMESTAMP, nullable=False),
        sa.Column("http_status", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["tracked_runs.run_id"], name="fk_rejects_tracked_runs", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_rejects"),
    )
    op.create_index("ix_rejects_run_id", "rejects", ["run_id"], unique=False)
    op.create_table(
        "runs",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("result_id", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("application", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=True),
        sa.Column("started_at", TIMESTAMP, nullable=True),
        sa.Column("started_on", DAY, nullable=True),
        sa.Column("iso_date", KEY, nullable=True),
        sa.Column("started_hour", sa.BigInteger(), nullable=True),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", TIMESTAMP, nullable=True),
        sa.Column("environment_count", sa.BigInteger(), nullable=False),
        sa.Column("test_count", sa.BigInteger(), nullable=False),
        sa.Column("environment_signature", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("content_hash", sa.Text(), nullable=False),
        sa.Column("archived_at", TIMESTAMP, nullable=False),
        sa.Column("changed_at", TIMESTAMP, nullable=False),
        sa.Column("row_changed_at", TIMESTAMP, nullable=False),
        sa.Column("gone_at", TIMESTAMP, nullable=True),
        sa.Column("extra", sa.JSON(), nullable=True),
        sa.CheckConstraint("revision >= 1", name=op.f("ck_runs_revision")),
        sa.ForeignKeyConstraint(
            ["run_id"], ["tracked_runs.run_id"], name="fk_runs_tracked_runs", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", name="pk_runs"),
    )
    op.create_index("ix_runs_row_changed_at", "runs", ["row_changed_at"], unique=False)
    op.create_index("ix_runs_started_at", "runs", ["started_at"], unique=False)
    op.create_index("ix_runs_started_on", "runs", ["started_on"], unique=False)
    op.create_index("ix_runs_iso_date", "runs", ["iso_date"], unique=False)
    op.create_table(
        "counts",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("test_position", sa.BigInteger(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=True),
        sa.Column("passed", sa.BigInteger(), nullable=True),
        sa.Column("aborted", sa.BigInteger(), nullable=True),
        sa.Column("pending", sa.BigInteger(), nullable=True),
        sa.Column("unresolved", sa.BigInteger(), nullable=True),
        sa.Column("other", sa.JSON(), nullable=True),
        sa.Column("total", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "(test_position = 0 AND scope = 'run') OR (test_position > 0 AND scope = 'test')",
            name=op.f("ck_counts_scope"),
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.run_id"], name="fk_counts_runs", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "test_position", name="pk_counts"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "environments",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("os", sa.Text(), nullable=True),
        sa.Column("viewport", sa.Text(), nullable=True),
        sa.Column("viewport_width", sa.BigInteger(), nullable=True),
        sa.Column("viewport_height", sa.BigInteger(), nullable=True),
        sa.Column("device", sa.Text(), nullable=True),
        sa.Column("browser", sa.Text(), nullable=True),
        sa.Column("extra", sa.JSON(), nullable=True),
        sa.CheckConstraint("position >= 1", name=op.f("ck_environments_position")),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.run_id"], name="fk_environments_runs", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "position", name="pk_environments"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "revisions",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("observed_at", TIMESTAMP, nullable=False),
        sa.Column("last_seen_at", TIMESTAMP, nullable=True),
        sa.Column("superseded_at", TIMESTAMP, nullable=True),
        sa.Column("status", sa.Text(), nullable=True),
        sa.Column("started_at", TIMESTAMP, nullable=True),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True),
        sa.Column("failed", sa.BigInteger(), nullable=True),
        sa.Column("passed", sa.BigInteger(), nullable=True),
        sa.Column("aborted", sa.BigInteger(), nullable=True),
        sa.Column("pending", sa.BigInteger(), nullable=True),
        sa.Column("unresolved", sa.BigInteger(), nullable=True),
        sa.Column("total", sa.BigInteger(), nullable=True),
        sa.Column("content_hash", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "(last_seen_at IS NULL) = (superseded_at IS NULL)", name=op.f("ck_revisions_stretch")
        ),
        sa.CheckConstraint("revision >= 1", name=op.f("ck_revisions_revision")),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.run_id"], name="fk_revisions_runs", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "revision", name="pk_revisions"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tests",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("test_id", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=True),
        sa.Column("type", sa.Text(), nullable=True),
        sa.Column("sitemap", sa.Text(), nullable=True),
        sa.Column("results_url", sa.Text(), nullable=True),
        sa.Column("extra", sa.JSON(), nullable=True),
        sa.CheckConstraint("position >= 1", name=op.f("ck_tests_position")),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.run_id"], name="fk_tests_runs", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "position", name="pk_tests"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "test_revisions",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("test_id", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=True),
        sa.Column("failed", sa.BigInteger(), nullable=True),
        sa.Column("passed", sa.BigInteger(), nullable=True),
        sa.Column("aborted", sa.BigInteger(), nullable=True),
        sa.Column("pending", sa.BigInteger(), nullable=True),
        sa.Column("unresolved", sa.BigInteger(), nullable=True),
        sa.Column("absent", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "revision"],
            ["revisions.run_id", "revisions.revision"],
            name="fk_test_revisions_revisions",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "revision", "position", name="pk_test_revisions"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "warnings",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("path", KEY, nullable=False),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "revision"],
            ["revisions.run_id", "revisions.revision"],
            name="fk_warnings_revisions",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "revision", "path", name="pk_warnings"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    if op.get_bind().scalar(sa.text("SELECT count(*) FROM tracked_runs")):
        raise CommandError(
            "downgrading to base would delete the archive, and it is not empty; if that is what"
            " you want, drop the database itself"
        )
    for name in TABLES:
        op.drop_table(name)
