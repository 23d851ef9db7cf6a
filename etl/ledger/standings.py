"""How the tracked runs stand: what people and metrics are shown of the ledger."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, Select, and_, case, func, select

from etl.answers.outcome import Reason, Target
from etl.db.schema import HAS_FAILED, among, tracked_runs
from etl.ledger import leases, source_limits
from etl.ledger.lifecycle import State


def states(connection: Connection, run_ids: Sequence[str] | None) -> dict[str, str]:
    """Return the state of runs (None: all that are tracked) by run ID."""
    query = select(tracked_runs.c.run_id, tracked_runs.c.state).order_by(tracked_runs.c.run_id)
    if run_ids is not None:
        query = query.where(among(tracked_runs.c.run_id, run_ids))
    return dict(connection.execute(query).all())


def due_runs(connection: Connection, now: datetime) -> dict[str, str]:
    """Return the state of each run that is due and free, by run ID."""
    query = (
        select(tracked_runs.c.run_id, tracked_runs.c.state)
        .where(leases.due(now, now))
        .order_by(*leases.urgency(now))
    )
    return dict(connection.execute(query).all())


def next_going(connection: Connection) -> datetime | None:
    """Return when the next queued, running or retrying run is due and free."""
    table = tracked_runs
    going = table.c.state.in_([State.QUEUED, State.RUNNING, State.RETRYING])
    # A run that another process holds is free when its lease expires.
    free_at = case(
        (table.c.lease_until > table.c.due_at, table.c.lease_until), else_=table.c.due_at
    )
    due_at: datetime | None = connection.scalar(select(func.min(free_at)).where(going))
    return due_at


def sources_without_permission(connection: Connection) -> set[str]:
    """Return the sources whose key was denied a run without a read token, and never read one."""
    table = tracked_runs
    without_token = select(table.c.source).where(table.c.read_token.is_(None)).distinct()
    denied = without_token.where(table.c.reason == Reason.DENIED)
    read = without_token.where(table.c.last_fetched_at.is_not(None))
    return set(connection.scalars(denied)) - set(connection.scalars(read))


def has_open_tokens(connection: Connection) -> bool:
    """Tell whether a run that will be fetched has a read token."""
    has_token = and_(tracked_runs.c.read_token.is_not(None), tracked_runs.c.due_at.is_not(None))
    return connection.scalar(select(tracked_runs.c.run_id).where(has_token).limit(1)) is not None


def control_of(connection: Connection, source: str) -> Target | None:
    """Return a settled run of a source, which tells an API that is down from runs that fail."""
    table = tracked_runs
    query = select(table.c.run_id, table.c.read_token).where(
        table.c.source == source, table.c.state == State.SETTLED, table.c.gone_at.is_(None)
    )
    row = connection.execute(query.limit(1)).one_or_none()
    return Target(row.run_id, source, row.read_token, None) if row else None


class FailedRun(NamedTuple):
    """A run that was given up. `since` is its first failed fetch since the last answer."""

    run_id: str
    source: str
    reason: str
    last_error: str | None
    since: datetime


def read_failed(connection: Connection) -> list[FailedRun]:
    """Return all failed runs by source and reason."""
    table = tracked_runs
    query = (
        select(
            table.c.run_id,
            table.c.source,
            table.c.reason,
            table.c.last_error,
            table.c.failing_since,
        )
        .where(HAS_FAILED)
        .order_by(table.c.source, table.c.reason, table.c.run_id)
    )
    return [FailedRun._make(row) for row in connection.execute(query).all()]


class FailedCount(NamedTuple):
    """The number of failed runs of one source and reason."""

    source: str
    reason: str
    runs: int


def count_failed(connection: Connection) -> list[FailedCount]:
    """Count the failed runs by source and reason."""
    table = tracked_runs
    query = (
        select(table.c.source, table.c.reason, func.count())
        .where(HAS_FAILED)
        .group_by(table.c.source, table.c.reason)
        .order_by(table.c.source, table.c.reason)
    )
    return [
        FailedCount(source, reason or "", runs)
        for source, reason, runs in connection.execute(query).all()
    ]


class HeldElsewhere(NamedTuple):
    """Due runs that other processes have leased, and when the last of those leases expires."""

    runs: int
    until: datetime


def find_held_elsewhere(connection: Connection, now: datetime) -> HeldElsewhere | None:
    """Return the due runs under a lease now, unless their owner is alive; None without any."""
    table = tracked_runs
    query = select(func.count(), func.max(table.c.lease_until)).where(
        table.c.lease_until > now,
        table.c.due_at <= now,
        ~source_limits.is_alive(table.c.lease_owner),
    )
    runs, until = connection.execute(query).one()
    return HeldElsewhere(runs, until) if runs else None


class Standings(NamedTuple):
    """The ledger at a glance."""

    by_state: Mapping[str, int]
    by_source: Mapping[str, Mapping[str, int]]
    failed: Sequence[FailedCount]
    due: int
    overdue: int
    leased: int
    oldest_due_at: datetime | None
    next_due_at: datetime | None


OVERDUE_AFTER = timedelta(hours=1)
"""A run that has been due for longer waits for a pass that does not come."""


def standings(connection: Connection, now: datetime) -> Standings:
    """Count the runs by state and source, and those that are due."""
    table = tracked_runs
    by_state = dict.fromkeys((state.value for state in State), 0)
    by_source: dict[str, dict[str, int]] = {}
    counted: Select[str, str, int] = select(table.c.source, table.c.state, func.count())
    grouped = counted.group_by(table.c.source, table.c.state).order_by(table.c.source)
    for source, state, runs in connection.execute(grouped).all():
        by_state[state] += runs
        by_source.setdefault(source, {})[state] = runs
    row = connection.execute(
        select(
            func.count().filter(table.c.due_at <= now),
            func.count().filter(table.c.due_at <= now - OVERDUE_AFTER),
            func.count().filter(table.c.lease_until > now),
            func.min(table.c.due_at).filter(table.c.due_at <= now),
            func.min(table.c.due_at).filter(table.c.due_at > now),
        )
    ).one()
    return Standings(by_state, by_source, count_failed(connection), *row)
