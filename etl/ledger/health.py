"""Measure the archive at the end of a pass, for the table `health`.

Reads partial indexes with few rows: a pass without changes stays cheap, however many runs are
archived.
"""

from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Connection, Select, func, select

from etl.db.bulk import upsert_into
from etl.db.schema import (
    HAS_FAILED,
    IS_OPEN,
    drift,
    health,
    ingests,
    outcomes,
    revisions,
    seconds_between,
    tracked_runs,
)
from etl.derived.metrics import MILLISECOND, rank

GAPS_OF = timedelta(days=30)
NEW_FIELDS_OF = timedelta(days=7)
BEGINNING = datetime.min.replace(tzinfo=UTC)
"""Earlier than any due_at: SQLite uses the index for a comparison, but not for IS NOT NULL."""


def record_health(connection: Connection, pass_id: int, now: datetime) -> None:
    """Write the row of a pass that is ending; its row in `ingests` is complete already."""
    opened_at = func.coalesce(outcomes.c.ended_at, outcomes.c.observed_at)
    waiting = select(
        func.count(),
        func.coalesce(func.sum(outcomes.c.tests_unresolved), 0),
        func.min(opened_at, type_=outcomes.c.ended_at.type),
    )
    open_runs, open_tests, oldest_open_at = connection.execute(waiting.where(IS_OPEN)).one()
    is_to_come = (tracked_runs.c.due_at > BEGINNING) & tracked_runs.c.last_fetched_at.is_(None)
    successful = select(ingests.c.finished_at).where(ingests.c.exit_code == 0)
    # Idempotent: after a lost commit acknowledgement the pass records its health again.
    connection.execute(
        upsert_into(connection, health)
        .on_conflict_do_nothing()
        .values(
            pass_id=pass_id,
            measured_at=now,
            open_runs=open_runs,
            open_tests=open_tests,
            oldest_open_at=oldest_open_at,
            never_fetched=_count(connection, is_to_come),
            failed=_count(connection, HAS_FAILED),
            gone=_count(connection, tracked_runs.c.gone_at.is_not(None)),
            poll_gap_p95_ms=_poll_gap_p95_ms(connection, now - GAPS_OF),
            new_fields_7_days=_count(connection, drift.c.first_seen_at > now - NEW_FIELDS_OF),
            last_success_at=connection.scalar(successful.order_by(ingests.c.id.desc()).limit(1)),
        )
    )


def _count(connection: Connection, condition: ColumnElement[bool]) -> int:
    return connection.scalar(select(func.count()).where(condition)) or 0


def _poll_gap_p95_ms(connection: Connection, since: datetime) -> int | None:
    """Return the 95th percentile (nearest rank) of the gaps between the polls around a change."""
    seen_changed = revisions.c.superseded_at > since
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
