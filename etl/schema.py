"""The tables of the archive (described in docs/TABLES.md) and their column types.

Declares only: the tables are created and altered by `migrations/` alone, and a test proves
that both agree. Times are UTC: aware in Python, refused when naive, milliseconds at rest.
`sqlite_with_rowid=False` keeps a table's rows in the order of its key, with no second copy.
"""

from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
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
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType


class SqliteDateTime(UserDefinedType[str]):
    """Text in a column declared DATETIME, which is what BI clients look for on SQLite."""

    cache_ok = True

    def get_col_spec(self, **_kw: Any) -> str:
        """Return the declared type."""
        return "DATETIME"


def to_milliseconds(moment: datetime) -> datetime:
    """Return `moment` in UTC, cut to the milliseconds that every database here keeps."""
    moment = _in_utc(moment)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def to_text(moment: datetime) -> str:
    """Return how SQLite keeps `moment`: "2023-10-24 13:00:12.463", in UTC.

    A space and three digits: with a T, or with microseconds, BI clients misread the time.
    """
    return _in_utc(moment).isoformat(" ", "milliseconds").removesuffix("+00:00")


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is UTC:
        return moment
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone; archive times are aware")
    return moment.astimezone(UTC)


def day_to_text(day: date) -> str:
    """Return how SQLite keeps `day`: as its midnight, since BI clients read a DATE a day off."""
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
        """Turn a moment into what the driver stores."""
        if value is None:
            return None
        return to_text(value) if dialect.name == "sqlite" else to_milliseconds(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Turn what the driver returns into a moment in UTC."""
        if value is None:
            return None
        if dialect.name == "sqlite":
            return datetime.fromisoformat(f"{value}+00:00")
        moment: datetime = value
        return moment.astimezone(UTC)


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
        """Turn a day into what the driver stores."""
        if value is None or dialect.name != "sqlite":
            return value
        return day_to_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> date | None:
        """Turn what the driver returns into a day."""
        if value is None or dialect.name != "sqlite":
            return value  # type: ignore[no-any-return]  # psycopg returns a date
        return datetime.fromisoformat(value).date()


STATES = ("queued", "running", "watching", "settled", "retrying", "failed")


class seconds_between(FunctionElement[float]):  # noqa: N801  a function of SQL
    """How many seconds lie between two Timestamp columns, spelled as each database has it."""

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


OUTCOMES = ("new", "changed", "unchanged", "waiting", "failed", "rejected")
COUNTERS = ("failed", "passed", "aborted", "pending", "unresolved")

# An integer key that SQLite counts up by itself has to be declared exactly so there.
Identifier = BigInteger().with_variant(Integer(), "sqlite")
# JSON, not JSONB: it keeps numbers and the order of keys as they came.
Json = JSON(none_as_null=True)

# Keys sort by code point everywhere: by the rules of a language, ties would differ.
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


def _run_of(parent: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["run_id"], [f"{parent}.run_id"], ondelete="CASCADE")


tracked_runs = Table(
    "tracked_runs",
    metadata,
    _run_id(),
    Column("source", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("due_at", Timestamp),
    Column("attempts", BigInteger, nullable=False, server_default="0"),
    Column("last_error", Text),
    Column("first_tracked_at", Timestamp, nullable=False),
    Column("last_fetched_at", Timestamp),
    Column("fetches", BigInteger, nullable=False, server_default="0"),
    Column("lease_owner", Text),
    Column("lease_until", Timestamp),
    Column("read_token", Text),
    # Kept here as well, since no payload tells it.
    Column("gone_at", Timestamp),
    CheckConstraint(f"state IN {STATES}", name="state"),
    CheckConstraint("(lease_owner IS NULL) = (lease_until IS NULL)", name="lease"),
)
Index("ix_tracked_runs_due_at", tracked_runs.c.due_at)

labels = Table(
    "labels",
    metadata,
    _run_id(),
    Column("name", Key, primary_key=True),
    Column("value", Text, nullable=False),
    _run_of("tracked_runs"),
    sqlite_with_rowid=False,
)

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
    Column("duration_ms", BigInteger),
    Column("ended_at", Timestamp),
    Column("environment_count", BigInteger, nullable=False),
    Column("test_count", BigInteger, nullable=False),
    Column("environment_signature", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("archived_at", Timestamp, nullable=False),
    Column("changed_at", Timestamp, nullable=False),
    Column("gone_at", Timestamp),
    Column("extra", Json),
    _run_of("tracked_runs"),
    CheckConstraint("revision >= 1", name="revision"),
)
Index("ix_runs_started_at", runs.c.started_at)
Index("ix_runs_changed_at", runs.c.changed_at)

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
    _run_of("runs"),
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
    _run_of("runs"),
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
    _run_of("runs"),
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
    _run_of("runs"),
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
    # With it, all of `revisions` follows from this table.
    Column("last_seen_at", Timestamp),
    _run_of("tracked_runs"),
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

rejects = Table(
    "rejects",
    metadata,
    # Made from run_id and sha256, so that the same bad answer is kept once, by whoever saw it.
    Column("id", Key, primary_key=True),
    Column("run_id", Key, nullable=False),
    Column("fetched_at", Timestamp, nullable=False),
    Column("http_status", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("sha256", Text, nullable=False),
    _run_of("tracked_runs"),
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
    Column("exit_code", BigInteger),
    Column("wait_until", Timestamp),
)
