"""Measure the archive at the end of a pass, for the table `health`.

Reads partial indexes with few rows: a pass without changes stays cheap, however many runs are
archived.
"""

from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Connection, Select, and_, exists, func, select

from etl.db.bulk import upsert_into
from etl.db.schema import (
    HAS_FAILED,
    IS_OPEN,
    drift,
    health,
    ingests,
    outcomes,
    plan_variants,
    revisions,
    runs,
    seconds_between,
    tracked_runs,
)
from etl.derived.metrics import MILLISECOND, rank
from etl.secrets.keys import DEFAULT_SOURCE

GAPS_OF = timedelta(days=30)
NEW_FIELDS_OF = timedelta(days=7)
BEGINNING = datetime.min.replace(tzinfo=UTC)
"""Earlier than any due_at: SQLite uses the index for a comparison, but not for IS NOT NULL."""


def record_health(connection: Connection, pass_id: int, now: datetime) -> None:
    """Write the rows of a pass that is ending, one for each account.

    The pass's row in `ingests` is complete already.
    """
    waiting = _measure_waiting(connection)
    is_to_come = (tracked_runs.c.due_at > BEGINNING) & tracked_runs.c.last_fetched_at.is_(None)
    never_fetched = _count_by_source(connection, is_to_come)
    failed = _count_by_source(connection, HAS_FAILED)
    gone = _count_by_source(connection, tracked_runs.c.gone_at.is_not(None))
    archived = connection.scalars(select(plan_variants.c.source).distinct())
    sources = never_fetched.keys() | failed.keys() | gone.keys() | set(archived)
    successful = select(ingests.c.finished_at).where(ingests.c.exit_code == 0)
    of_all = {
        "pass_id": pass_id,
        "measured_at": now,
        "new_fields_7_days": _count(connection, drift.c.first_seen_at > now - NEW_FIELDS_OF),
        "last_success_at": connection.scalar(successful.order_by(ingests.c.id.desc()).limit(1)),
    }
    seen_changed = revisions.c.superseded_at > now - GAPS_OF
    rows = []
    for source in sorted(sources or {DEFAULT_SOURCE}):
        is_of_source = exists().where(runs.c.run_id == revisions.c.run_id, runs.c.source == source)
        changes = seen_changed if len(sources) < 2 else and_(seen_changed, is_of_source)
        open_runs, open_tests, oldest_open_at = waiting.get(source, (0, 0, None))
        own = {
            "source": source,
            "open_runs": open_runs,
            "open_tests": open_tests,
            "oldest_open_at": oldest_open_at,
            "never_fetched": never_fetched.get(source, 0),
            "failed": failed.get(source, 0),
            "gone": gone.get(source, 0),
            "poll_gap_p95_ms": _poll_gap_p95_ms(connection, changes),
        }
        rows.append(of_all | own)
    # Idempotent: after a lost commit acknowledgement the pass records its health again.
    connection.execute(upsert_into(connection, health).on_conflict_do_nothing(), rows)


def _measure_waiting(connection: Connection) -> dict[str, tuple[int, int, datetime]]:
    """Return by account the open runs and tests, and since when the oldest run waits."""
    waiting = (
        select(
            plan_variants.c.source,
            func.count(),
            func.sum(outcomes.c.tests_unresolved),
            func.min(outcomes.c.opened_at, type_=outcomes.c.opened_at.type),
        )
        .join(plan_variants, plan_variants.c.variant_id == outcomes.c.variant_id)
        .where(IS_OPEN)
        .group_by(plan_variants.c.source)
    )
    return {
        source: (open_runs, int(open_tests), oldest_open_at)
        for source, open_runs, open_tests, oldest_open_at in connection.execute(waiting)
    }


def _count_by_source(connection: Connection, condition: ColumnElement[bool]) -> dict[str, int]:
    counted: Select[str, int] = select(tracked_runs.c.source, func.count()).where(condition)
    return dict(connection.execute(counted.group_by(tracked_runs.c.source)).all())


def _count(connection: Connection, condition: ColumnElement[bool]) -> int:
    return connection.scalar(select(func.count()).where(condition)) or 0


def _poll_gap_p95_ms(connection: Connection, seen_changed: ColumnElement[bool]) -> int | None:
    """Return the 95th percentile (nearest rank) of the gaps between the polls around a change."""
    changes = _count(connection, seen_changed)
    if not changes:
        return None
    gap = seconds_between(revisions.c.last_seen_at, revisions.c.superseded_at)
    query: Select[datetime, datetime] = (
        select(revisions.c.last_seen_at, revisions.c.superseded_at)
        .where(seen_changed)
        .order_by(gap)
        .limit(1)
        .offset(rank(changes, 95) - 1)
    )
    last_seen_at, superseded_at = connection.execute(query).one()
    milliseconds: int = (superseded_at - last_seen_at) // MILLISECOND
    return milliseconds
