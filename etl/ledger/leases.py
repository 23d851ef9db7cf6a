"""Leases of due runs: claim, renew, release, and record how a fetch ended.

Every function works in the caller's transaction, so that a run's rows and its ledger row
change together. Rows are locked in the order of run IDs.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    case,
    func,
    literal,
    or_,
    select,
    update,
)

from etl.answers.outcome import Reason
from etl.db import bulk
from etl.db.database_clock import Clock
from etl.db.schema import IS_QUEUED, QUEUED, Timestamp, among, runs, seconds_between, tracked_runs
from etl.ledger.lifecycle import Standing, State
from etl.ledger.run_context import record_context_changes
from etl.ledger.verdicts import Claim, Recorded


class Lease(NamedTuple):
    """The owner of claimed runs, and the time from `since` to `until` for which it owns them."""

    owner: str
    since: datetime
    until: datetime


def claim(
    connection: Connection, lease: Lease, due: ColumnElement[bool], limit: int
) -> list[Claim]:
    """Lease up to `limit` runs for which `due` holds, the most urgent first.

    Queued runs come through partial indexes that have them in order, the others by a top-N sort
    of the overdue. Rows that a concurrent claim has locked are skipped. The claims are in the order
    of run IDs.
    """
    claims: list[Claim] = []
    for is_queued in QUEUED:
        if left := limit - len(claims):
            chosen = select(tracked_runs.c.run_id).where(is_queued, due)
            in_order = chosen.order_by(tracked_runs.c.due_at, tracked_runs.c.run_id).limit(left)
            claims += _lease(connection, lease, in_order)
    if left := limit - len(claims):
        claims += _claim_overdue(connection, lease, and_(due, ~IS_QUEUED), left)
    return sorted(claims, key=lambda each: each.run_id)


def _claim_overdue(
    connection: Connection, lease: Lease, due: ColumnElement[bool], limit: int
) -> list[Claim]:
    """Lease the most urgent of the runs that are not queued.

    They are chosen without a lock and locked by key: PostgreSQL would sort all rows on disk to
    lock some in order. Only where a concurrent claim has all chosen ones, it does.
    """
    urgent = select(tracked_runs.c.run_id).where(due).order_by(*urgency(lease.since)).limit(limit)
    if connection.dialect.name == "sqlite":  # which has one writer at a time
        return _lease(connection, lease, urgent)
    chosen = connection.scalars(urgent).all()
    by_key = select(tracked_runs.c.run_id).where(among(tracked_runs.c.run_id, chosen), due)
    claims = _lease(connection, lease, by_key) if chosen else []
    return claims or (_lease(connection, lease, urgent) if chosen else [])


def _lease(connection: Connection, lease: Lease, chosen: Select[tuple[str]]) -> list[Claim]:
    """Lease the chosen runs that no concurrent claim has locked."""
    table = tracked_runs
    if connection.dialect.name == "postgresql":
        chosen = chosen.with_for_update(skip_locked=True)
    # As a CTE it runs once: a subquery with a LIMIT may be run again for each row.
    taken = chosen.cte("taken")
    rows = connection.execute(
        update(table)
        .where(table.c.run_id.in_(select(taken.c.run_id)))
        .values(lease_owner=lease.owner, lease_until=lease.until)
        .returning(
            table.c.run_id,
            table.c.source,
            table.c.read_token,
            table.c.first_tracked_at,
            table.c.last_fetched_at,
            table.c.fetches,
            table.c.state,
            table.c.due_at,
            table.c.attempts,
            table.c.reason,
            table.c.last_error,
            table.c.failing_since,
            table.c.gone_at,
        )
    )
    return [_claim(row) for row in rows.all()]


class DueRuns(NamedTuple):
    """The number of due runs, and whether other transactions have locked all of them."""

    number: int
    are_locked: bool


def read_due(connection: Connection, due: ColumnElement[bool]) -> DueRuns:
    """Count the runs for which `due` holds, and find out whether one of them can be claimed."""
    query = select(func.count()).select_from(tracked_runs).where(due)
    number = connection.scalars(query).one()
    if not number or connection.dialect.name == "sqlite":  # which has one writer at a time
        return DueRuns(number, are_locked=False)
    free = select(tracked_runs.c.run_id).where(due).limit(1).with_for_update(skip_locked=True)
    return DueRuns(number, are_locked=connection.scalar(free) is None)


def due(by: datetime, now: datetime) -> ColumnElement[bool]:
    """Select the runs that are due `by` a time and leased to nobody `now`."""
    return and_(tracked_runs.c.due_at <= by, _is_free(now))


def due_to_owner(by: datetime, lease: Lease, in_hand: Collection[str]) -> ColumnElement[bool]:
    """Select the runs that the owner may claim: free ones, and its own that it does not know of.

    The latter were claimed by a commit whose acknowledgement got lost. Runs `in_hand` are never
    claimed again, even where their lease expired while the machine was suspended.
    """
    table = tracked_runs
    is_ours = table.c.lease_owner == lease.owner
    is_unknown = and_(is_ours, ~among(table.c.run_id, in_hand))
    is_others = and_(_is_free(lease.since), or_(table.c.lease_owner.is_(None), ~is_ours))
    return and_(table.c.due_at <= by, or_(is_others, is_unknown))


def _is_free(now: datetime) -> ColumnElement[bool]:
    return or_(tracked_runs.c.lease_until.is_(None), tracked_runs.c.lease_until <= now)


def urgency(now: datetime) -> Sequence[ColumnElement[Any]]:
    """Order by state, then by the likelihood of a change since the last fetch.

    New and running runs come first. Among the others the likelihood grows with the time since
    the last fetch as a share of the run's own interval; `lifecycle` lengthens that interval while
    a run does not change.
    """
    table = tracked_runs
    order = {State.QUEUED: 0, State.RUNNING: 1, State.RETRYING: 2}
    ranks = {state.value: rank for state, rank in order.items()}
    interval = seconds_between(table.c.last_fetched_at, table.c.due_at)
    overdue = seconds_between(table.c.due_at, literal(now, Timestamp)) / func.nullif(interval, 0)
    return (
        case(ranks, value=table.c.state, else_=3),
        case((table.c.read_token.is_(None), 1), else_=0),
        func.coalesce(overdue, 0).desc(),
        table.c.due_at,
        table.c.run_id,
    )


def _claim(row: Any) -> Claim:
    reason = Reason(row.reason) if row.reason else None
    standing = Standing(
        State(row.state), row.due_at, row.attempts, reason, row.last_error, row.failing_since
    )
    return Claim(
        row.run_id,
        row.source,
        row.read_token,
        row.first_tracked_at,
        row.last_fetched_at,
        row.fetches,
        standing,
        row.gone_at,
    )


def lock_held(connection: Connection, owner: str, run_ids: Sequence[str], now: Clock) -> set[str]:
    """Return the members of `run_ids` still leased to `owner`, their rows locked until commit.

    An answer fetched under a lease that has expired must not be stored: another owner's may be
    newer. The time counts once the rows are locked. They are locked in the order of run IDs.
    """
    query = (
        select(tracked_runs.c.run_id, tracked_runs.c.lease_until)
        .where(among(tracked_runs.c.run_id, run_ids), tracked_runs.c.lease_owner == owner)
        .order_by(tracked_runs.c.run_id)
        .with_for_update()
    )
    until = dict(connection.execute(query).all())
    locked_at = now()
    return {run_id for run_id, lease_until in until.items() if lease_until > locked_at}


def record(connection: Connection, recorded: Sequence[Recorded]) -> None:
    """Write how runs stand after a fetch, and release them."""
    answered = [each for each in recorded if each.fetched_at is not None]
    others = [each for each in recorded if each.fetched_at is None]
    names = ["state", "due_at", "attempts", "reason", "last_error", "failing_since"]
    also = "fetches = tracked_runs.fetches + 1, lease_owner = NULL, lease_until = NULL"
    bulk.update(
        connection,
        tracked_runs,
        [*names, "last_fetched_at"],
        [(*_standing_row(each.standing), each.fetched_at, each.run_id) for each in answered],
        also,
    )
    bulk.update(
        connection,
        tracked_runs,
        names,
        [(*_standing_row(each.standing), each.run_id) for each in others],
        also,
    )


def record_without_fetch(connection: Connection, recorded: Recorded) -> None:
    """Write how a run stands after an answer fetched earlier was accepted, and release it."""
    connection.execute(
        update(tracked_runs)
        .where(tracked_runs.c.run_id == recorded.run_id)
        .values(
            **recorded.standing._asdict(),
            last_fetched_at=recorded.fetched_at,
            lease_owner=None,
            lease_until=None,
        )
    )


def _standing_row(standing: Standing) -> tuple[Any, ...]:
    state, due_at, attempts, reason, *rest = standing
    return (state.value, due_at, attempts, reason.value if reason else None, *rest)


def mark_gone(connection: Connection, run_ids: Sequence[str], now: datetime) -> None:
    """Set gone_at, where it is not set, for runs that the API answers with 404.

    In the ledger, its source of truth, and in `runs`, which has a copy.
    """
    new: list[str] = []
    for table in (tracked_runs, runs):
        is_new = and_(among(table.c.run_id, run_ids), table.c.gone_at.is_(None))
        statement = update(table).where(is_new).values(gone_at=now)
        new += connection.scalars(statement.returning(table.c.run_id))
    record_context_changes(connection, dict.fromkeys(new, now))


def clear_gone(connection: Connection, found_at: Mapping[str, datetime]) -> None:
    """Clear gone_at of runs that the API has again, in the ledger and in `runs`.

    `found_at` has the time of the answer, by run ID.
    """
    if not found_at:
        return
    cleared: list[str] = []
    for table in (tracked_runs, runs):
        is_gone = and_(among(table.c.run_id, found_at), table.c.gone_at.is_not(None))
        statement = update(table).where(is_gone).values(gone_at=None)
        cleared += connection.scalars(statement.returning(table.c.run_id))
    record_context_changes(connection, {run_id: found_at[run_id] for run_id in cleared})


def renew(connection: Connection, lease: Lease) -> None:
    """Extend the leases of all runs that the owner holds; one that has expired stays so.

    Rows are locked in the order of `lock_held`, so that the two cannot deadlock.
    """
    table = tracked_runs
    is_held = and_(table.c.lease_owner == lease.owner, table.c.lease_until > lease.since)
    held = select(table.c.run_id).where(is_held)
    in_order = held.order_by(table.c.run_id).with_for_update()
    connection.execute(
        update(table).where(table.c.run_id.in_(in_order)).values(lease_until=lease.until)
    )


def end_waits(connection: Connection, lease: Lease) -> None:
    """Make all waiting runs due, and free leases that end later than `lease` would.

    Called when a clock was ahead: the times that it gave mean nothing.
    """
    table = tracked_runs
    connection.execute(update(table).where(table.c.due_at > lease.since).values(due_at=lease.since))
    connection.execute(
        update(table)
        .where(table.c.lease_until > lease.until)
        .values(lease_owner=None, lease_until=None)
    )


def release(connection: Connection, owner: str) -> int:
    """Release all runs of an owner; return their number. Their due_at stays."""
    return connection.execute(
        update(tracked_runs)
        .where(tracked_runs.c.lease_owner == owner)
        .values(lease_owner=None, lease_until=None)
    ).rowcount
