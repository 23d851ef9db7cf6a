"""Keep what reports count: strips of outcomes, series, durations, and results by day and week.

All of it but `aliases` follows from the payloads: an archive that has runs is incomplete after this
migration until `db upgrade` has derived all rows. A downgrade is refused while there are aliases to
lose. `dates` is a calendar for BI tools, from 2010 to 2039; `age_buckets` has the ages of the
backlog.
"""

from collections.abc import Callable
from datetime import date
from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

TIMESTAMP = sa.DateTime(timezone=True)
DAY = sa.Date().with_variant(sa.DateTime(), "sqlite")
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

revision = "0003"
down_revision = "0002"

TABLES = (
    "health",
    "data_dictionary",
    "aliases",
    "identities",
    "identity_decisions",
    "age_buckets",
    "dates",
    "weekly_results",
    "daily_results",
    "plan_summaries",
    "durations",
    "dirty_marks",
    "variant_rosters",
    "series_metrics",
    "series",
    "status_changes",
    "outcomes",
    "rosters",
    "environment_combinations",
    "plan_variants",
)


def _rates() -> list[sa.Column[float]]:
    names = ("pass_rate", "pass_rate_strict", "decided_share", "pass_rate_low", "pass_rate_high")
    return [sa.Column(name, sa.Double()) for name in names]


def _counts(prefix: str = "") -> list[sa.Column[int]]:
    names = ("failed", "passed", "aborted", "pending", "unresolved")
    return [sa.Column(f"{prefix}{name}", sa.BigInteger(), nullable=False) for name in names]


def upgrade() -> None:
    _create_facts()
    _create_aggregates()
    _create_dates()
    _create_age_buckets()
    _create_rest()


def _create_facts() -> None:
    op.create_table(
        "plan_variants",
        sa.Column("variant_id", KEY, nullable=False),
        sa.Column("plan_id", KEY, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("application", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("environment_signature", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("variant_id", name="pk_plan_variants"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_plan_variants_plan_id", "plan_variants", ["plan_id"], unique=False)
    op.create_table(
        "environment_combinations",
        sa.Column("environment_signature", KEY, nullable=False),
        sa.Column("environments", sa.Text(), nullable=False),
        sa.Column("environment_count", sa.BigInteger(), nullable=False),
        sa.Column("os", sa.Text()),
        sa.Column("browser", sa.Text()),
        sa.Column("device", sa.Text()),
        sa.Column("viewport", sa.Text()),
        sa.PrimaryKeyConstraint("environment_signature", name="pk_environment_combinations"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "rosters",
        sa.Column("roster_id", KEY, nullable=False),
        sa.Column("tests", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("roster_id", name="pk_rosters"),
    )
    op.create_table(
        "outcomes",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("observed_at", TIMESTAMP, nullable=False),
        sa.Column("superseded_at", TIMESTAMP),
        sa.Column("variant_id", KEY, nullable=False),
        sa.Column("roster_id", KEY, nullable=False),
        sa.Column("outcomes", sa.Text(), nullable=False),
        sa.Column("status", sa.Text()),
        sa.Column("started_at", TIMESTAMP),
        sa.Column("started_on", DAY),
        sa.Column("ended_at", TIMESTAMP),
        sa.Column("opened_at", TIMESTAMP),
        sa.Column("duration_ms", sa.BigInteger()),
        *_counts("checks_"),
        sa.Column("check_pass_rate", sa.Double()),
        *_counts("tests_"),
        sa.Column("tests_unknown", sa.BigInteger(), nullable=False),
        *_rates(),
        sa.ForeignKeyConstraint(["roster_id"], ["rosters.roster_id"], name="fk_outcomes_rosters"),
        sa.ForeignKeyConstraint(
            ["run_id", "revision"],
            ["revisions.run_id", "revisions.revision"],
            name="fk_outcomes_revisions",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["variant_id"], ["plan_variants.variant_id"], name="fk_outcomes_plan_variants"
        ),
        sa.PrimaryKeyConstraint("run_id", "revision", name="pk_outcomes"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_outcomes_variant_id_started_at_run_id",
        "outcomes",
        ["variant_id", "started_at", "run_id"],
        unique=False,
        sqlite_where=sa.text("superseded_at IS NULL"),
        postgresql_where=sa.text("superseded_at IS NULL"),
    )
    op.create_index(
        "ix_outcomes_variant_id_roster_id_started_on",
        "outcomes",
        ["variant_id", "roster_id", "started_on"],
        unique=False,
        sqlite_where=sa.text("superseded_at IS NULL"),
        postgresql_where=sa.text("superseded_at IS NULL"),
    )
    op.create_table(
        "status_changes",
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("change", KEY, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("test", sa.Text()),
        sa.Column("from_status", sa.Text()),
        sa.Column("to_status", sa.Text()),
        sa.Column("last_seen_at", TIMESTAMP, nullable=False),
        sa.Column("changed_by", TIMESTAMP, nullable=False),
        sa.Column("opened_at", TIMESTAMP),
        sa.Column("resolution_min_ms", sa.BigInteger()),
        sa.Column("resolution_max_ms", sa.BigInteger()),
        sa.ForeignKeyConstraint(
            ["run_id", "revision"],
            ["revisions.run_id", "revisions.revision"],
            name="fk_status_changes_revisions",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "run_id", "revision", "change", "position", name="pk_status_changes"
        ),
        sa.CheckConstraint(
            "change IN ('changed', 'added', 'left')", name=op.f("ck_status_changes_change")
        ),
        sqlite_with_rowid=False,
    )


def _create_aggregates() -> None:
    op.create_table(
        "series",
        sa.Column("variant_id", KEY, nullable=False),
        sa.Column("series_id", KEY, nullable=False),
        sa.Column("test", sa.Text()),
        sa.Column("type", sa.Text()),
        sa.Column("test_id", sa.Text()),
        sa.Column("metrics_id", KEY, nullable=False),
        sa.PrimaryKeyConstraint("variant_id", "series_id", name="pk_series"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "series_metrics",
        sa.Column("variant_id", KEY, nullable=False),
        sa.Column("metrics_id", KEY, nullable=False),
        sa.Column("decided", sa.BigInteger(), nullable=False),
        *_counts(),
        *_rates(),
        sa.Column("flips", sa.BigInteger()),
        sa.Column("flip_rate", sa.Double()),
        sa.Column("health", sa.Double()),
        sa.Column("is_flaky", sa.Boolean(), nullable=False),
        sa.Column("is_confirmed_flaky", sa.Boolean(), nullable=False),
        sa.Column("is_regression", sa.Boolean(), nullable=False),
        sa.Column("is_new_failure", sa.Boolean(), nullable=False),
        sa.Column("is_always_failing", sa.Boolean(), nullable=False),
        sa.Column("is_recovered", sa.Boolean(), nullable=False),
        sa.Column("fail_streak", sa.BigInteger(), nullable=False),
        sa.Column("streak_since", TIMESTAMP),
        sa.Column("streak_since_run_id", sa.Text()),
        sa.Column("last_flip_at", TIMESTAMP),
        sa.Column("last_flip_run_id", sa.Text()),
        sa.Column("recent", sa.Text(), nullable=False),
        sa.Column("last_status", sa.Text()),
        sa.Column("last_run_id", sa.Text(), nullable=False),
        sa.Column("last_started_at", TIMESTAMP, nullable=False),
        sa.Column("window_starts_at", TIMESTAMP, nullable=False),
        sa.Column("first_seen_on", DAY),
        sa.Column("iso_date", KEY),
        sa.ForeignKeyConstraint(
            ["variant_id"], ["plan_variants.variant_id"], name="fk_series_metrics_plan_variants"
        ),
        sa.PrimaryKeyConstraint("variant_id", "metrics_id", name="pk_series_metrics"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "variant_rosters",
        sa.Column("variant_id", KEY, nullable=False),
        sa.Column("roster_id", KEY, nullable=False),
        sa.Column("test_keys", sa.LargeBinary(), nullable=False),
        sa.Column("only_run_id", KEY),
        sa.PrimaryKeyConstraint("variant_id", "roster_id", name="pk_variant_rosters"),
    )
    op.create_table(
        "dirty_marks",
        sa.Column("variant_id", KEY, nullable=False),
        sa.Column("run_id", KEY, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["variant_id"], ["plan_variants.variant_id"], name="fk_dirty_marks_plan_variants"
        ),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["tracked_runs.run_id"],
            name="fk_dirty_marks_tracked_runs",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("variant_id", "run_id", "revision", name="pk_dirty_marks"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "durations",
        sa.Column("variant_id", KEY, nullable=False),
        sa.Column("measured", sa.BigInteger(), nullable=False),
        sa.Column("p50_ms", sa.BigInteger(), nullable=False),
        sa.Column("p95_ms", sa.BigInteger(), nullable=False),
        sa.Column("p50_per_test_ms", sa.BigInteger()),
        sa.Column("p50_last_7_days_ms", sa.BigInteger(), nullable=False),
        sa.Column("p50_28_days_before_ms", sa.BigInteger()),
        sa.Column("change", sa.Double()),
        sa.Column("last_run_id", sa.Text(), nullable=False),
        sa.Column("last_started_at", TIMESTAMP, nullable=False),
        sa.Column("last_duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("p95_before_last_ms", sa.BigInteger()),
        sa.Column("is_slow", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["variant_id"], ["plan_variants.variant_id"], name="fk_durations_plan_variants"
        ),
        sa.PrimaryKeyConstraint("variant_id", name="pk_durations"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "plan_summaries",
        sa.Column("plan_id", KEY, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("application", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("last_started_at", TIMESTAMP),
        sa.Column("last_run_id", sa.Text()),
        sa.Column("last_started_on", DAY),
        sa.Column("iso_date", KEY),
        sa.Column("last_status", sa.Text()),
        sa.Column("last_pass_rate", sa.Double()),
        sa.Column("first_started_at", TIMESTAMP),
        sa.Column("first_run_id", sa.Text()),
        sa.Column("first_status", sa.Text()),
        sa.Column("first_pass_rate", sa.Double()),
        sa.Column("open_runs", sa.BigInteger(), nullable=False),
        sa.Column("open_tests", sa.BigInteger(), nullable=False),
        sa.Column("flaky_tests", sa.BigInteger(), nullable=False),
        sa.Column("p50_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("plan_id", name="pk_plan_summaries"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "daily_results",
        sa.Column("plan_id", KEY, nullable=False),
        sa.Column("day", DAY, nullable=False),
        sa.Column("iso_date", KEY, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("application", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.Column("tests", sa.BigInteger(), nullable=False),
        *_counts(),
        sa.Column("unknown", sa.BigInteger(), nullable=False),
        *_rates(),
        *_counts("checks_"),
        sa.Column("check_pass_rate", sa.Double()),
        sa.PrimaryKeyConstraint("plan_id", "day", name="pk_daily_results"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_daily_results_day", "daily_results", ["day"], unique=False)
    op.create_index("ix_daily_results_iso_date", "daily_results", ["iso_date"], unique=False)
    op.create_table(
        "weekly_results",
        sa.Column("plan_id", KEY, nullable=False),
        sa.Column("week_starts_on", DAY, nullable=False),
        sa.Column("iso_date", KEY, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("application", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.Column("tests", sa.BigInteger(), nullable=False),
        *_counts(),
        sa.Column("unknown", sa.BigInteger(), nullable=False),
        *_rates(),
        *_counts("checks_"),
        sa.Column("check_pass_rate", sa.Double()),
        sa.PrimaryKeyConstraint("plan_id", "week_starts_on", name="pk_weekly_results"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_weekly_results_week_starts_on", "weekly_results", ["week_starts_on"], unique=False
    )
    op.create_index("ix_weekly_results_iso_date", "weekly_results", ["iso_date"], unique=False)


def _create_rest() -> None:
    op.create_table(
        "identities",
        sa.Column("source", KEY, nullable=False),
        sa.Column("application", KEY, nullable=False),
        sa.Column("compared", sa.BigInteger(), nullable=False),
        sa.Column("repeated", sa.BigInteger(), nullable=False),
        sa.Column("repeat_share", sa.Double()),
        sa.Column("key_kind", sa.Text(), nullable=False),
        sa.Column("decided_at", TIMESTAMP, nullable=False),
        sa.Column("measured_at", TIMESTAMP, nullable=False),
        sa.Column("is_applied", sa.Boolean(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.CheckConstraint("key_kind IN ('id', 'name')", name=op.f("ck_identities_key_kind")),
        sa.PrimaryKeyConstraint("source", "application", name="pk_identities"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "identity_decisions",
        sa.Column("source", KEY, nullable=False),
        sa.Column("application", KEY, nullable=False),
        sa.Column("decided_at", TIMESTAMP, nullable=False),
        sa.Column("key_kind", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "key_kind IN ('id', 'name')", name=op.f("ck_identity_decisions_key_kind")
        ),
        sa.PrimaryKeyConstraint(
            "source", "application", "decided_at", name="pk_identity_decisions"
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "aliases",
        sa.Column("source", KEY, nullable=False),
        sa.Column("application", KEY, nullable=False),
        sa.Column("plan", KEY, nullable=False),
        sa.Column("old_name", KEY, nullable=False),
        sa.Column("added_at", TIMESTAMP, nullable=False),
        sa.Column("new_name", sa.Text(), nullable=False),
        sa.Column("removed_at", TIMESTAMP),
        sa.PrimaryKeyConstraint(
            "source", "application", "plan", "old_name", "added_at", name="pk_aliases"
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "data_dictionary",
        sa.Column("object_name", KEY, nullable=False),
        sa.Column("column_name", KEY, nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("type", sa.Text()),
        sa.Column("kind", sa.Text()),
        sa.Column("unit", sa.Text()),
        sa.PrimaryKeyConstraint("object_name", "column_name", name="pk_data_dictionary"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "health",
        sa.Column("pass_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("source", KEY, nullable=False),
        sa.Column("measured_at", TIMESTAMP, nullable=False),
        sa.Column("open_runs", sa.BigInteger(), nullable=False),
        sa.Column("open_tests", sa.BigInteger(), nullable=False),
        sa.Column("oldest_open_at", TIMESTAMP),
        sa.Column("never_fetched", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("gone", sa.BigInteger(), nullable=False),
        sa.Column("poll_gap_p95_ms", sa.BigInteger()),
        sa.Column("new_fields_7_days", sa.BigInteger(), nullable=False),
        sa.Column("last_success_at", TIMESTAMP),
        sa.PrimaryKeyConstraint("pass_id", "source", name="pk_health"),
        sqlite_with_rowid=False,
    )


def _create_dates() -> None:
    op.create_table(
        "dates",
        sa.Column("day", DAY, nullable=False),
        sa.Column("iso_date", KEY, nullable=False),
        sa.Column("year", sa.BigInteger(), nullable=False),
        sa.Column("quarter", sa.BigInteger(), nullable=False),
        sa.Column("month", sa.BigInteger(), nullable=False),
        sa.Column("month_starts_on", DAY, nullable=False),
        sa.Column("day_of_month", sa.BigInteger(), nullable=False),
        sa.Column("iso_year", sa.BigInteger(), nullable=False),
        sa.Column("iso_week", sa.BigInteger(), nullable=False),
        sa.Column("week_starts_on", DAY, nullable=False),
        sa.Column("iso_weekday", sa.BigInteger(), nullable=False),
        sa.Column("is_weekend", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("day", name="pk_dates"),
        sqlite_with_rowid=False,
    )
    _fill_dates(op.get_bind())


def _create_age_buckets() -> None:
    op.create_table(
        "age_buckets",
        sa.Column("name", KEY, nullable=False),
        sa.Column("from_days", sa.BigInteger()),
        sa.Column("until_days", sa.BigInteger()),
        sa.PrimaryKeyConstraint("name", name="pk_age_buckets"),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO age_buckets VALUES ('0 to 1 days', NULL, 1), ('1 to 3 days', 1, 3),"
        " ('3 to 7 days', 3, 7), ('7 to 14 days', 7, 14), ('over 14 days', 14, NULL)"
    )


def _fill_dates(bind: sa.Connection) -> None:
    """Write the days of 2010 to 2039, by each database's fastest way: tests make many archives."""
    first, last = date(2010, 1, 1).toordinal(), date(2039, 12, 31).toordinal()
    if bind.dialect.name == "postgresql":
        driver: Any = bind.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy("COPY dates FROM STDIN") as copy:
            for number in range(first, last + 1):
                copy.write_row(_date_row(number, date.isoformat))
        return
    rows = [_date_row(number, _midnight) for number in range(first, last + 1)]
    bind.exec_driver_sql("INSERT INTO dates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _midnight(day: date) -> str:
    """Return a day as SQLite has it."""
    return f"{day} 00:00:00.000"


def _date_row(number: int, as_text: Callable[[date], str]) -> tuple[str | int, ...]:
    """Return the row of a day, which is the `number`th since the year 1."""
    day = date.fromordinal(number)
    year, month = day.year, day.month
    iso_year, iso_week, weekday = day.isocalendar()
    return (
        as_text(day),
        day.isoformat(),
        year,
        (month + 2) // 3,
        month,
        as_text(date(year, month, 1)),
        day.day,
        iso_year,
        iso_week,
        as_text(date.fromordinal(number - weekday + 1)),
        weekday,
        weekday > 5,
    )


def downgrade() -> None:
    if op.get_bind().scalar(sa.text("SELECT count(*) FROM aliases WHERE removed_at IS NULL")):
        raise CommandError(
            "this downgrade would delete the aliases of renamed tests; write down what"
            " `result-archiver alias list` says, and take them back first: alias remove"
        )
    op.execute("DELETE FROM archive_settings WHERE name = 'metric_version'")
    for name in TABLES:
        op.drop_table(name)
