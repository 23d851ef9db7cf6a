"""The tables of the archive (described in docs/TABLES.md) and their column types.

Only declarations: `migrations/` alone creates and alters tables, and a test proves that both
agree. Partial indexes are in `indexes`. Times are UTC: aware in Python, refused when naive,
stored in milliseconds.
`sqlite_with_rowid=False` stores a table's rows in key order, without a second copy.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Date,
    DateTime,
    Dialect,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    and_,
    literal,
    literal_column,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from etl.answers.rows import COUNTERS

VERSION_TABLE = "result_archiver_version"
"""Alembic's table, which tells the revision of all others."""


class SqliteDateTime(UserDefinedType[str]):
    """Text in a column declared DATETIME, which BI clients expect on SQLite."""

    cache_ok = True

    def get_col_spec(self, **_kw: Any) -> str:
        """Return the declared type."""
        return "DATETIME"


def to_milliseconds(moment: datetime) -> datetime:
    """Return `moment` in UTC, cut to milliseconds, the precision of every database here."""
    moment = _in_utc(moment)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def to_text(moment: datetime) -> str:
    """Return the text of `moment` on SQLite: "2023-10-24 13:00:12.463", in UTC.

    With a space and three digits: BI clients misread a T or microseconds.
    """
    return _in_utc(moment).isoformat(" ", "milliseconds").removesuffix("+00:00")


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is UTC:
        return moment
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone; archive times are aware")
    return moment.astimezone(UTC)


def day_to_text(day: date) -> str:
    """Return the text of `day` on SQLite: its midnight, since BI clients read a DATE a day off."""
    return f"{day.isoformat()} 00:00:00.000"


class Timestamp(TypeDecorator[datetime]):
    """A moment: `timestamptz` on PostgreSQL, DATETIME text on SQLite. Raises on naive times."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column's type."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(SqliteDateTime())
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Convert a moment to a raw driver value."""
        if value is None:
            return None
        return to_text(value) if dialect.name == "sqlite" else to_milliseconds(value)

    def result_processor(self, dialect: Dialect, _coltype: object) -> Any:
        """Return the function that converts raw driver values to moments in UTC."""
        return _from_text if dialect.name == "sqlite" else _from_moment


def _from_text(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(f"{value}+00:00")


def _from_moment(value: datetime | None) -> datetime | None:
    return None if value is None else value.astimezone(UTC)


class Day(TypeDecorator[date]):
    """A calendar day: `date` on PostgreSQL, midnight DATETIME text on SQLite."""

    impl = Date
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column's type."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(SqliteDateTime())
        return dialect.type_descriptor(Date())

    def process_bind_param(self, value: date | None, dialect: Dialect) -> Any:
        """Convert a day to a raw driver value."""
        if value is None or dialect.name != "sqlite":
            return value
        return day_to_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> date | None:
        """Convert a raw driver value to a day."""
        if value is None or dialect.name != "sqlite":
            return value  # type: ignore[no-any-return]  # psycopg returns a date
        return datetime.fromisoformat(value).date()


STATES = ("queued", "running", "watching", "settled", "retrying", "failed", "dropped")


class seconds_between(FunctionElement[float]):  # noqa: N801  a function of SQL
    """The seconds between two Timestamp columns, in the SQL of each database."""

    type = Double()
    inherit_cache = True


@compiles(seconds_between, "sqlite")
def _on_sqlite(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    earlier, later = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"((julianday({later}) - julianday({earlier})) * 86400.0)"


@compiles(seconds_between, "postgresql")
def _on_postgresql(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    earlier, later = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"extract(epoch FROM ({later} - {earlier}))"


class TextList(TypeDecorator[Sequence[str]]):
    """Texts as one value: an array on PostgreSQL, JSON on SQLite."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the value's type."""
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else ARRAY(Text()))

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> Any:
        """Convert texts to a raw driver value."""
        texts = list(value or ())
        return json.dumps(texts) if dialect.name == "sqlite" else texts


class _is_among(FunctionElement[Any]):  # noqa: N801  a function of SQL
    # Not declared a boolean: sqlalchemy would add "= 1" on SQLite, which then uses no index.
    inherit_cache = True


@compiles(_is_among, "sqlite")
def _among_on_sqlite(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    column, texts = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({column} IN (SELECT value FROM json_each({texts})))"  # noqa: S608  no values in it


@compiles(_is_among, "postgresql")
def _among_on_postgresql(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    column, texts = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({column} = ANY({texts}))"


def among(column: ColumnElement[str], texts: Iterable[str]) -> ColumnElement[bool]:
    """Return the condition that `column` is one of `texts`.

    Unlike `in_`, its statement does not depend on their number, which is not limited.
    """
    return _is_among(column, literal(list(texts), TextList))


OUTCOMES = ("new", "changed", "unchanged", "gone", "waiting", "failed", "rejected")

RATES = ("pass_rate", "pass_rate_strict", "decided_share", "pass_rate_low", "pass_rate_high")
SERIES_CLASSES = (
    "is_flaky",
    "is_confirmed_flaky",
    "is_regression",
    "is_new_failure",
    "is_always_failing",
    "is_recovered",
)

# SQLite increments an integer key by itself only if it is declared exactly like this.
Identifier = BigInteger().with_variant(Integer(), "sqlite")
# JSON, not JSONB, which would change numbers and the order of keys.
Json = JSON(none_as_null=True)

# Keys sort by code point on every database; a language's rules would order ties differently.
Key = Text().with_variant(Text(collation="C"), "postgresql")

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _run_id() -> Column[str]:
    return Column("run_id", Key, primary_key=True)


def _counters() -> list[Column[int]]:
    return [Column(name, BigInteger) for name in (*COUNTERS, "total")]


def _rates() -> list[Column[float]]:
    return [Column(name, Double) for name in RATES]


def _references_run(parent: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["run_id"], [f"{parent}.run_id"], ondelete="CASCADE")


tracked_runs = Table(
    "tracked_runs",
    metadata,
    _run_id(),
    Column("source", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("due_at", Timestamp),
    Column("attempts", BigInteger, nullable=False, server_default="0"),
    # A code of answers.outcome.Reason, for programs; last_error is for people.
    Column("reason", Text),
    Column("last_error", Text),
    Column("failing_since", Timestamp),
    Column("first_tracked_at", Timestamp, nullable=False),
    Column("last_fetched_at", Timestamp),
    Column("fetches", BigInteger, nullable=False, server_default="0"),
    Column("lease_owner", Text),
    Column("lease_until", Timestamp),
    Column("read_token", Text),
    # The source of truth of `runs.gone_at` and `runs.row_changed_at`, which no payload contains.
    Column("gone_at", Timestamp),
    Column("context_changed_at", Timestamp),
    CheckConstraint(f"state IN {STATES}", name="state"),
    CheckConstraint("(lease_owner IS NULL) = (lease_until IS NULL)", name="lease"),
)
Index("ix_tracked_runs_due_at", tracked_runs.c.due_at)
HAS_FAILED = tracked_runs.c.state == literal_column("'failed'")
"""The run was given up. A literal, since a parameter would not match the partial index."""
IS_QUEUED = tracked_runs.c.state == literal_column("'queued'")
QUEUED = (
    and_(IS_QUEUED, tracked_runs.c.read_token.is_not(None)),
    and_(IS_QUEUED, tracked_runs.c.read_token.is_(None)),
)
"""The queued runs in the order of claiming: first those with a token, which an API may need."""

# Outcomes: a row for each revision, valid from observed_at until superseded_at, for reports as of
# any moment. Names and environments are stored once, in plan_variants and rosters.
plan_variants = Table(
    "plan_variants",
    metadata,
    Column("variant_id", Key, primary_key=True),
    Column("plan_id", Key, nullable=False),
    Column("source", Text, nullable=False),
    Column("application", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("environment_signature", Text, nullable=False),
    sqlite_with_rowid=False,
)
Index("ix_plan_variants_plan_id", plan_variants.c.plan_id)
PLAN_NAMES = (plan_variants.c.source, plan_variants.c.application, plan_variants.c.plan)
"""The names of a plan, in the order of `Plan`."""

environment_combinations = Table(
    "environment_combinations",
    metadata,
    Column("environment_signature", Key, primary_key=True),
    Column("environments", Text, nullable=False),
    Column("environment_count", BigInteger, nullable=False),
    Column("os", Text),
    Column("browser", Text),
    Column("device", Text),
    Column("viewport", Text),
    sqlite_with_rowid=False,
)

rosters = Table(
    "rosters",
    metadata,
    Column("roster_id", Key, primary_key=True),
    Column("tests", Text, nullable=False),
)

labels = Table(
    "labels",
    metadata,
    _run_id(),
    Column("name", Key, primary_key=True),
    Column("value", Text, nullable=False),
    _references_run("tracked_runs"),
    sqlite_with_rowid=False,
)
Index("ix_labels_name_value", labels.c.name, labels.c.value)

runs = Table(
    "runs",
    metadata,
    _run_id(),
    Column("source", Text, nullable=False),
    Column("result_id", Text),
    Column("name", Text),
    Column("application", Text),
    Column("status", Text),
    Column("started_at", Timestamp),
    Column("started_on", Day),
    Column("iso_date", Key),
    Column("started_hour", BigInteger),
    Column("duration_ms", BigInteger),
    Column("ended_at", Timestamp),
    Column("environment_count", BigInteger, nullable=False),
    Column("test_count", BigInteger, nullable=False),
    Column("environment_signature", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("archived_at", Timestamp, nullable=False),
    Column("changed_at", Timestamp, nullable=False),
    Column("row_changed_at", Timestamp, nullable=False),
    Column("gone_at", Timestamp),
    Column("extra", Json),
    _references_run("tracked_runs"),
    CheckConstraint("revision >= 1", name="revision"),
)
Index("ix_runs_started_at", runs.c.started_at)
Index("ix_runs_started_on", runs.c.started_on)
Index("ix_runs_iso_date", runs.c.iso_date)
Index("ix_runs_row_changed_at", runs.c.row_changed_at)

environments = Table(
    "environments",
    metadata,
    _run_id(),
    Column("position", BigInteger, primary_key=True),
    Column("name", Text),
    Column("os", Text),
    Column("viewport", Text),
    Column("viewport_width", BigInteger),
    Column("viewport_height", BigInteger),
    Column("device", Text),
    Column("browser", Text),
    Column("extra", Json),
    _references_run("runs"),
    CheckConstraint("position >= 1", name="position"),
    sqlite_with_rowid=False,
)

tests = Table(
    "tests",
    metadata,
    _run_id(),
    Column("position", BigInteger, primary_key=True),
    Column("test_id", Text),
    Column("name", Text),
    Column("status", Text),
    Column("type", Text),
    Column("sitemap", Text),
    Column("results_url", Text),
    Column("extra", Json),
    _references_run("runs"),
    CheckConstraint("position >= 1", name="position"),
    sqlite_with_rowid=False,
)

counts = Table(
    "counts",
    metadata,
    _run_id(),
    Column("test_position", BigInteger, primary_key=True),
    Column("scope", Text, nullable=False),
    *[Column(name, BigInteger) for name in COUNTERS],
    Column("other", Json),
    Column("total", BigInteger),
    _references_run("runs"),
    CheckConstraint(
        "(test_position = 0 AND scope = 'run') OR (test_position > 0 AND scope = 'test')",
        name="scope",
    ),
    sqlite_with_rowid=False,
)

revisions = Table(
    "revisions",
    metadata,
    _run_id(),
    Column("revision", BigInteger, primary_key=True),
    Column("observed_at", Timestamp, nullable=False),
    Column("last_seen_at", Timestamp),
    Column("superseded_at", Timestamp),
    Column("status", Text),
    Column("started_at", Timestamp),
    Column("duration_ms", BigInteger),
    *_counters(),
    Column("content_hash", Text, nullable=False),
    _references_run("runs"),
    CheckConstraint("revision >= 1", name="revision"),
    CheckConstraint("(last_seen_at IS NULL) = (superseded_at IS NULL)", name="stretch"),
    sqlite_with_rowid=False,
)

test_revisions = Table(
    "test_revisions",
    metadata,
    _run_id(),
    Column("revision", BigInteger, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("test_id", Text),
    Column("name", Text),
    Column("status", Text),
    *[Column(name, BigInteger) for name in COUNTERS],
    Column("absent", Boolean, nullable=False),
    ForeignKeyConstraint(
        ["run_id", "revision"],
        ["revisions.run_id", "revisions.revision"],
        ondelete="CASCADE",
    ),
    sqlite_with_rowid=False,
)

outcomes = Table(
    "outcomes",
    metadata,
    _run_id(),
    Column("revision", BigInteger, primary_key=True),
    Column("observed_at", Timestamp, nullable=False),
    Column("superseded_at", Timestamp),
    Column("variant_id", Key, nullable=False),
    Column("roster_id", Key, nullable=False),
    Column("outcomes", Text, nullable=False),
    Column("status", Text),
    Column("started_at", Timestamp),
    Column("started_on", Day),
    Column("ended_at", Timestamp),
    Column("opened_at", Timestamp),
    Column("duration_ms", BigInteger),
    *[Column(f"checks_{name}", BigInteger, nullable=False) for name in COUNTERS],
    Column("check_pass_rate", Double),
    *[Column(f"tests_{name}", BigInteger, nullable=False) for name in (*COUNTERS, "unknown")],
    *_rates(),
    ForeignKeyConstraint(
        ["run_id", "revision"],
        ["revisions.run_id", "revisions.revision"],
        ondelete="CASCADE",
    ),
    ForeignKeyConstraint(["variant_id"], ["plan_variants.variant_id"]),
    ForeignKeyConstraint(["roster_id"], ["rosters.roster_id"]),
    sqlite_with_rowid=False,
)
IS_CURRENT = outcomes.c.superseded_at.is_(None)
"""The row of a run's current revision."""
IS_OPEN = and_(IS_CURRENT, outcomes.c.tests_unresolved > literal_column("0"))
"""The row of a run that waits for a person's decision now."""

status_changes = Table(
    "status_changes",
    metadata,
    _run_id(),
    Column("revision", BigInteger, primary_key=True),
    Column("change", Key, primary_key=True),
    # Of a test that left the one before, which another test may have now.
    Column("position", BigInteger, primary_key=True),
    Column("test", Text),
    Column("from_status", Text),
    Column("to_status", Text),
    Column("last_seen_at", Timestamp, nullable=False),
    Column("changed_by", Timestamp, nullable=False),
    Column("opened_at", Timestamp),
    Column("resolution_min_ms", BigInteger),
    Column("resolution_max_ms", BigInteger),
    ForeignKeyConstraint(
        ["run_id", "revision"],
        ["revisions.run_id", "revisions.revision"],
        ondelete="CASCADE",
    ),
    CheckConstraint("change IN ('changed', 'added', 'left')", name="change"),
    sqlite_with_rowid=False,
)

Index("ix_status_changes_changed_by", status_changes.c.changed_by)

payloads = Table(
    "payloads",
    metadata,
    _run_id(),
    Column("revision", BigInteger, primary_key=True),
    Column("body", LargeBinary, nullable=False),
    Column("encoding", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("fetched_at", Timestamp, nullable=False),
    # Stored here too, so that all of `revisions` follows from this table.
    Column("last_seen_at", Timestamp),
    _references_run("tracked_runs"),
)

warnings = Table(
    "warnings",
    metadata,
    _run_id(),
    Column("revision", BigInteger, primary_key=True),
    Column("path", Key, primary_key=True),
    Column("value", Text),
    Column("reason", Text, nullable=False),
    ForeignKeyConstraint(
        ["run_id", "revision"],
        ["revisions.run_id", "revisions.revision"],
        ondelete="CASCADE",
    ),
    sqlite_with_rowid=False,
)

drift = Table(
    "drift",
    metadata,
    Column("path", Key, primary_key=True),
    Column("json_type", Key, primary_key=True),
    Column("first_run_id", Text, nullable=False),
    Column("first_seen_at", Timestamp, nullable=False),
    sqlite_with_rowid=False,
)

series = Table(
    "series",
    metadata,
    # The variant first: its rows are written together, so they are stored together.
    Column("variant_id", Key, primary_key=True),
    Column("series_id", Key, primary_key=True),
    Column("test", Text),
    Column("type", Text),
    Column("test_id", Text),
    # No foreign keys: to check them for each test of a run would take longer than to insert it.
    Column("metrics_id", Key, nullable=False),
    sqlite_with_rowid=False,
)

# Series of a variant with the same metrics share a row: most tests of a run have the same results.
series_metrics = Table(
    "series_metrics",
    metadata,
    Column("variant_id", Key, primary_key=True),
    Column("metrics_id", Key, primary_key=True),
    Column("decided", BigInteger, nullable=False),
    *[Column(name, BigInteger, nullable=False) for name in COUNTERS],
    *_rates(),
    Column("flips", BigInteger),
    Column("flip_rate", Double),
    Column("health", Double),
    *[Column(name, Boolean, nullable=False) for name in SERIES_CLASSES],
    Column("fail_streak", BigInteger, nullable=False),
    Column("streak_since", Timestamp),
    Column("streak_since_run_id", Text),
    Column("last_flip_at", Timestamp),
    Column("last_flip_run_id", Text),
    Column("recent", Text, nullable=False),
    Column("last_status", Text),
    Column("last_run_id", Text, nullable=False),
    Column("last_started_at", Timestamp, nullable=False),
    Column("window_starts_at", Timestamp, nullable=False),
    Column("first_seen_on", Day),
    Column("iso_date", Key),
    ForeignKeyConstraint(["variant_id"], ["plan_variants.variant_id"]),
    sqlite_with_rowid=False,
)
HAS_METRICS = and_(
    series_metrics.c.variant_id == series.c.variant_id,
    series_metrics.c.metrics_id == series.c.metrics_id,
)
"""The metrics are those of the series."""

# The rosters of a variant's current outcomes, with the keys of their tests.
variant_rosters = Table(
    "variant_rosters",
    metadata,
    Column("variant_id", Key, primary_key=True),
    Column("roster_id", Key, primary_key=True),
    # 8 bytes for each test, in the order of the roster: a row for each would take as long to write
    # as the test itself.
    Column("test_keys", LargeBinary, nullable=False),
    # The variant's only run, whose tests then need no rows in `series`.
    Column("only_run_id", Key),
)

SERIES_ID = {
    "sqlite": (
        "substr(variant_rosters.variant_id, 1, 16)"
        " || lower(hex(substr(variant_rosters.test_keys, 8 * tests.position - 7, 8)))"
    ),
    "postgresql": (
        "substr(variant_rosters.variant_id, 1, 16)"
        " || encode(substr(variant_rosters.test_keys, (8 * tests.position - 7)::int, 8), 'hex')"
    ),
}
"""The series of a test in `tests`, from the keys in its roster, in the SQL of each database."""


class series_id_of_test(FunctionElement[str]):  # noqa: N801  a function of SQL
    """The series of a test in `tests`, from the row of its roster in `variant_rosters`."""

    type = Text()
    inherit_cache = True


@compiles(series_id_of_test)
def _series_id_of_test(_element: Any, compiler: SQLCompiler, **_kw: Any) -> str:
    return SERIES_ID[compiler.dialect.name]


# Dirty marks: series and durations of these are behind `outcomes`.
dirty_marks = Table(
    "dirty_marks",
    metadata,
    Column("variant_id", Key, primary_key=True),
    Column("run_id", Key, primary_key=True),
    Column("revision", BigInteger, primary_key=True),
    ForeignKeyConstraint(["variant_id"], ["plan_variants.variant_id"]),
    ForeignKeyConstraint(["run_id"], ["tracked_runs.run_id"], ondelete="CASCADE"),
    sqlite_with_rowid=False,
)

durations = Table(
    "durations",
    metadata,
    Column("variant_id", Key, primary_key=True),
    Column("measured", BigInteger, nullable=False),
    Column("p50_ms", BigInteger, nullable=False),
    Column("p95_ms", BigInteger, nullable=False),
    Column("p50_per_test_ms", BigInteger),
    Column("p50_last_7_days_ms", BigInteger, nullable=False),
    Column("p50_28_days_before_ms", BigInteger),
    Column("change", Double),
    Column("last_run_id", Text, nullable=False),
    Column("last_started_at", Timestamp, nullable=False),
    Column("last_duration_ms", BigInteger, nullable=False),
    Column("p95_before_last_ms", BigInteger),
    Column("is_slow", Boolean, nullable=False),
    ForeignKeyConstraint(["variant_id"], ["plan_variants.variant_id"]),
    sqlite_with_rowid=False,
)

plan_summaries = Table(
    "plan_summaries",
    metadata,
    Column("plan_id", Key, primary_key=True),
    Column("source", Text, nullable=False),
    Column("application", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("last_started_at", Timestamp),
    Column("last_run_id", Text),
    Column("last_started_on", Day),
    Column("iso_date", Key),
    Column("last_status", Text),
    Column("last_pass_rate", Double),
    Column("first_started_at", Timestamp),
    Column("first_run_id", Text),
    Column("first_status", Text),
    Column("first_pass_rate", Double),
    Column("open_runs", BigInteger, nullable=False),
    Column("open_tests", BigInteger, nullable=False),
    Column("flaky_tests", BigInteger, nullable=False),
    Column("p50_ms", BigInteger),
    sqlite_with_rowid=False,
)


def _results(name: str, first_day: str) -> Table:
    return Table(
        name,
        metadata,
        Column("plan_id", Key, primary_key=True),
        Column(first_day, Day, primary_key=True),
        Column("iso_date", Key, nullable=False),
        Column("source", Text, nullable=False),
        Column("application", Text, nullable=False),
        Column("plan", Text, nullable=False),
        Column("runs", BigInteger, nullable=False),
        Column("tests", BigInteger, nullable=False),
        *[Column(name, BigInteger, nullable=False) for name in (*COUNTERS, "unknown")],
        *_rates(),
        *[Column(f"checks_{name}", BigInteger, nullable=False) for name in COUNTERS],
        Column("check_pass_rate", Double),
        sqlite_with_rowid=False,
    )


daily_results = _results("daily_results", "day")
weekly_results = _results("weekly_results", "week_starts_on")
Index("ix_daily_results_day", daily_results.c.day)
Index("ix_weekly_results_week_starts_on", weekly_results.c.week_starts_on)
Index("ix_daily_results_iso_date", daily_results.c.iso_date)
Index("ix_weekly_results_iso_date", weekly_results.c.iso_date)

dates = Table(
    "dates",
    metadata,
    Column("day", Day, primary_key=True),
    Column("iso_date", Key, nullable=False),
    Column("year", BigInteger, nullable=False),
    Column("quarter", BigInteger, nullable=False),
    Column("month", BigInteger, nullable=False),
    Column("month_starts_on", Day, nullable=False),
    Column("day_of_month", BigInteger, nullable=False),
    Column("iso_year", BigInteger, nullable=False),
    Column("iso_week", BigInteger, nullable=False),
    Column("week_starts_on", Day, nullable=False),
    Column("iso_weekday", BigInteger, nullable=False),
    Column("is_weekend", Boolean, nullable=False),
    sqlite_with_rowid=False,
)

age_buckets = Table(
    "age_buckets",
    metadata,
    Column("name", Key, primary_key=True),
    Column("from_days", BigInteger),
    Column("until_days", BigInteger),
    sqlite_with_rowid=False,
)

identities = Table(
    "identities",
    metadata,
    Column("source", Key, primary_key=True),
    Column("application", Key, primary_key=True),
    Column("compared", BigInteger, nullable=False),
    Column("repeated", BigInteger, nullable=False),
    Column("repeat_share", Double),
    Column("key_kind", Text, nullable=False),
    Column("decided_at", Timestamp, nullable=False),
    Column("measured_at", Timestamp, nullable=False),
    Column("is_applied", Boolean, nullable=False),
    # Of this row and of the application's decisions, which nothing can derive again.
    Column("digest", Text, nullable=False),
    CheckConstraint("key_kind IN ('id', 'name')", name="key_kind"),
    sqlite_with_rowid=False,
)

identity_decisions = Table(
    "identity_decisions",
    metadata,
    Column("source", Key, primary_key=True),
    Column("application", Key, primary_key=True),
    Column("decided_at", Timestamp, primary_key=True),
    Column("key_kind", Text, nullable=False),
    CheckConstraint("key_kind IN ('id', 'name')", name="key_kind"),
    sqlite_with_rowid=False,
)

aliases = Table(
    "aliases",
    metadata,
    Column("source", Key, primary_key=True),
    Column("application", Key, primary_key=True),
    Column("plan", Key, primary_key=True),
    Column("old_name", Key, primary_key=True),
    Column("added_at", Timestamp, primary_key=True),
    Column("new_name", Text, nullable=False),
    Column("removed_at", Timestamp),
    sqlite_with_rowid=False,
)

archive_settings = Table(
    "archive_settings",
    metadata,
    Column("name", Key, primary_key=True),
    Column("value", Text, nullable=False),
    Column("description", Text, nullable=False),
    sqlite_with_rowid=False,
)

data_dictionary = Table(
    "data_dictionary",
    metadata,
    Column("object_name", Key, primary_key=True),
    Column("column_name", Key, primary_key=True),
    Column("description", Text, nullable=False),
    Column("type", Text),
    Column("kind", Text),
    Column("unit", Text),
    sqlite_with_rowid=False,
)

rejects = Table(
    "rejects",
    metadata,
    # A hash of run_id, sha256 and http_status, so that the same bad answer is stored once.
    Column("id", Key, primary_key=True),
    Column("run_id", Key, nullable=False),
    Column("fetched_at", Timestamp, nullable=False),
    Column("http_status", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("sha256", Text, nullable=False),
    _references_run("tracked_runs"),
)
Index("ix_rejects_run_id", rejects.c.run_id)

ingests = Table(
    "ingests",
    metadata,
    Column("id", Identifier, primary_key=True, autoincrement=True),
    Column("trigger", Text, nullable=False),
    Column("started_at", Timestamp, nullable=False),
    Column("finished_at", Timestamp),
    *[Column(name, BigInteger, nullable=False, server_default="0") for name in OUTCOMES],
    Column("requests", BigInteger, nullable=False, server_default="0"),
    Column("max_requests", BigInteger, nullable=False, server_default="0"),
    Column("exit_code", BigInteger),
)

pass_workers = Table(
    "pass_workers",
    metadata,
    Column("worker", Key, primary_key=True),
    Column("pass_id", BigInteger, nullable=False),
    Column("started_at", Timestamp, nullable=False),
    Column("finished_at", Timestamp),
    *[Column(name, BigInteger, nullable=False, server_default="0") for name in OUTCOMES],
    Column("deferred", BigInteger, nullable=False, server_default="0"),
    Column("to_retry", BigInteger, nullable=False, server_default="0"),
    Column("requests", BigInteger, nullable=False, server_default="0"),
    Column("allowed", BigInteger, nullable=False, server_default="0"),
    Column("halt", Text),
    Column("halt_reason", Text),
    Column("exit_code", BigInteger),
    sqlite_with_rowid=False,
)
Index("ix_pass_workers_pass_id", pass_workers.c.pass_id)

source_limits = Table(
    "source_limits",
    metadata,
    Column("source", Key, primary_key=True),
    Column("next_slot_at", Timestamp, nullable=False),
    Column("asked_until", Timestamp),
    Column("halt", Text),
    Column("halt_reason", Text),
    Column("halted_at", Timestamp),
    # This pass and those before it send nothing more.
    Column("halted_pass", BigInteger),
    Column("answered_at", Timestamp),
    Column("prober", Text),
    sqlite_with_rowid=False,
)

workers = Table(
    "workers",
    metadata,
    Column("worker", Key, primary_key=True),
    Column("source", Key, primary_key=True),
    Column("pass_id", BigInteger, nullable=False),
    Column("seen_at", Timestamp, nullable=False),
    Column("connections", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

health = Table(
    "health",
    metadata,
    Column("pass_id", BigInteger, primary_key=True, autoincrement=False),
    Column("source", Key, primary_key=True),
    Column("measured_at", Timestamp, nullable=False),
    Column("open_runs", BigInteger, nullable=False),
    Column("open_tests", BigInteger, nullable=False),
    Column("oldest_open_at", Timestamp),
    Column("never_fetched", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("gone", BigInteger, nullable=False),
    Column("poll_gap_p95_ms", BigInteger),
    Column("new_fields_7_days", BigInteger, nullable=False),
    Column("last_success_at", Timestamp),
    sqlite_with_rowid=False,
)

DAYS = frozenset(
    each.name
    for table in metadata.sorted_tables
    for each in table.columns
    if isinstance(each.type, Day)
)
"""The names of columns with days. On SQLite they are declared like moments."""
