"""Dirty marks: the revisions that the aggregates do not include yet.

A commit marks each variant that a new revision changes: its own, and the one of the revision
before. A mark is never written twice, since a revision is opened once, so a commit takes no lock
for it; a concurrent refresh neither sees nor deletes our uncommitted marks.
"""

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Connection, delete, func, select, text

from etl.db import bulk
from etl.db.schema import IS_CURRENT, dirty_marks, outcomes, series, series_metrics, variant_rosters
from etl.derived.aggregates import select_variant_ids


class DirtyMark(NamedTuple):
    """A variant that a revision of a run has changed."""

    variant_id: str
    run_id: str
    revision: int


def add_marks(connection: Connection, marks: Collection[DirtyMark]) -> None:
    """Mark the variants that revisions opened in this transaction change."""
    bulk.insert(connection, dirty_marks, sorted(marks))


def mark_plan_dirty(connection: Connection, plan_id: str) -> None:
    """Delete the series of a plan and mark all its runs, after its tests got other keys.

    The caller has locked the plan's runs. Locks the plan (`lock_plans`): older marks are replaced.
    Most commits take no lock, so that the mark of one may come after the deletion.
    """
    lock_plans(connection, [plan_id])
    for table in (series, series_metrics, variant_rosters, dirty_marks):
        connection.execute(delete(table).where(table.c.variant_id.in_(select_variant_ids(plan_id))))
    is_in_plan = outcomes.c.variant_id.in_(select_variant_ids(plan_id))
    current = select(outcomes.c.variant_id, outcomes.c.run_id, outcomes.c.revision)
    names = dirty_marks.columns.keys()
    insert = bulk.upsert_into(connection, dirty_marks)
    rows = insert.from_select(names, current.where(is_in_plan, IS_CURRENT))
    connection.execute(rows.on_conflict_do_nothing())


def has_dirty_marks(connection: Connection) -> bool:
    """Return whether any aggregate is not up to date."""
    return connection.execute(select(dirty_marks).limit(1)).first() is not None


def count_marked(connection: Connection) -> int:
    """Return the number of revisions that some aggregate does not include yet."""
    revisions = select(dirty_marks.c.run_id, dirty_marks.c.revision).distinct().subquery()
    return connection.scalar(select(func.count()).select_from(revisions)) or 0


def read_dirty_variants(connection: Connection, plan_id: str) -> set[str]:
    """Return the variants of a plan with a dirty mark."""
    is_in_plan = dirty_marks.c.variant_id.in_(select_variant_ids(plan_id))
    return set(connection.scalars(select(dirty_marks.c.variant_id).distinct().where(is_in_plan)))


def lock_plans(connection: Connection, plan_ids: Collection[str]) -> None:
    """Hold an exclusive lock on the aggregates of these plans until commit.

    Aggregates are computed from all runs of a plan, so that of two concurrent computations the
    one that began earlier could be written last. Taken after the runs' rows in the ledger and
    after test-identity locks, before rows of `plan_variants` and `rosters`; in the order of plan
    ids, so that two transactions never wait for each other.
    """
    if connection.dialect.name == "postgresql" and plan_ids:  # SQLite has one writer at a time
        connection.execute(_LOCK_PLANS, {"ids": sorted(plan_ids)})


_LOCK_PLANS = text(
    "SELECT pg_advisory_xact_lock(hashtextextended(id, 0)) FROM unnest(CAST(:ids AS text[])) AS id"
)
