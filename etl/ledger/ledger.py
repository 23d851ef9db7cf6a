"""The ledger: which runs are tracked, which are due, who holds them, and how they stand.

Every function works in the caller's transaction, so that a run's rows and its ledger row
change together. The rules of what is due when are `lifecycle`'s.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    text,
    update,
)

from etl.db import bulk
from etl.db.bulk import upsert_into
from etl.db.schema import Timestamp, among, labels, seconds_between, tracked_runs
from etl.ledger.lifecycle import DENIED, Seen, Standing, State, requeued


class Entry(NamedTuple):
    """A run to be tracked. `read_token` is encrypted already."""

    run_id: str
    source: str | None
    read_token: str | None
    labels: Mapping[str, str]


class Tracked(NamedTuple):
    """How many of the runs given to `track` were new, and how many were known."""

    new: int
    known: int


class Claim(NamedTuple):
    """A due run that is ours until its lease runs out.

    `gone_at` is when the API first denied having it. `seen` is what its newest answer said and
    `fingerprint` the sha256 of that one's payload, as far as the claimer looked them up.
    """

    run_id: str
    source: str
    read_token: str | None
    first_tracked_at: datetime
    last_fetched_at: datetime | None
    fetches: int
    standing: Standing
    gone_at: datetime | None = None
    seen: Seen | None = None
    fingerprint: str | None = None


class Recorded(NamedTuple):
    """What a fetch made of a run. `fetched_at` is None when no answer of its was accepted."""

    run_id: str
    standing: Standing
    fetched_at: datetime | None


def track(connection: Connection, entries: Sequence[Entry], now: datetime) -> Tracked:
    """Add `entries`, due now; of runs known already, take over a new token, source or label.

    Of two entries for one run the last counts.
    """
    # In one order, as others lock them: they would else wait for each other's rows for ever.
    by_id = {entry.run_id: entry for entry in sorted(entries, key=lambda entry: entry.run_id)}
    new = set(_unknown_until_the_commit(connection, list(by_id)))
    rows = [_tracked_row(entry, now) for entry in by_id.values() if entry.run_id in new]
    bulk.insert(connection, tracked_runs, rows)
    _take_over(connection, [entry for entry in by_id.values() if entry.run_id not in new])
    _put_labels(connection, by_id.values())
    return Tracked(len(new), len(by_id) - len(new))


def _unknown_until_the_commit(connection: Connection, run_ids: Sequence[str]) -> list[str]:
    """Return those that are not tracked, and have nobody else track them meanwhile.

    COPY, which is to add them, takes no row that is there already.
    """
    new = unknown(connection, run_ids)
    if not new or connection.dialect.name == "sqlite":  # which has one writer at a time
        return new
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('track', 0))"))
    return unknown(connection, new)


_NOTHING_YET = dict.fromkeys(column.name for column in tracked_runs.columns)


def _tracked_row(entry: Entry, now: datetime) -> bulk.Row:
    known = {
        "run_id": entry.run_id,
        "source": entry.source or "default",
        "state": State.QUEUED.value,
        "due_at": now,
        "attempts": 0,
        "first_tracked_at": now,
        "fetches": 0,
        "read_token": entry.read_token,
    }
    return tuple((_NOTHING_YET | known).values())


def _take_over(connection: Connection, entries: Iterable[Entry]) -> None:
    """Take over what `entries` say of known runs: of most of them a list says nothing more."""
    told = [
        {"known": entry.run_id, "given_source": entry.source, "given_token": entry.read_token}
        for entry in entries
        if entry.source or entry.read_token
    ]
    if told:
        connection.execute(_taking_over(), told)


def _taking_over() -> Any:
    table = tracked_runs
    source: ColumnElement[str | None] = bindparam("given_source", type_=Text)
    token: ColumnElement[str | None] = bindparam("given_token", type_=Text)
    wants_token = and_(
        token.is_not(None),
        # Encrypted anew, the same token looks new each time: one that has worked stays.
        or_(
            table.c.read_token.is_(None),
            table.c.last_fetched_at.is_(None),
            table.c.state == State.FAILED,
            table.c.state == State.RETRYING,
        ),
    )
    # Once a run is archived, its account is known to be the right one.
    wants_source = and_(source.is_not(None), table.c.last_fetched_at.is_(None))
    return (
        update(table)
        .where(
            table.c.run_id == bindparam("known", type_=Text),
            or_(wants_token, and_(wants_source, source != table.c.source)),
        )
        .values(
            source=case((wants_source, source), else_=table.c.source),
            read_token=case((wants_token, token), else_=table.c.read_token),
        )
    )


def _put_labels(connection: Connection, entries: Iterable[Entry]) -> None:
    rows = [
        {"run_id": entry.run_id, "name": name, "value": value}
        for entry in entries
        for name, value in sorted(entry.labels.items())
    ]
    if rows:
        insert = upsert_into(connection, labels)
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=[labels.c.run_id, labels.c.name],
                set_={"value": insert.excluded.value},
                where=labels.c.value != insert.excluded.value,
            ),
            rows,
        )


class Lease(NamedTuple):
    """Who takes runs, and from when until when they are theirs."""

    owner: str
    since: datetime
    until: datetime


def claim(
    connection: Connection, lease: Lease, due: ColumnElement[bool], limit: int
) -> list[Claim]:
    """Take up to `limit` runs for which `due` holds, in one statement, first things first."""
    table = tracked_runs
    chosen = select(table.c.run_id).where(due).order_by(*_urgency(lease.since)).limit(limit)
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
            table.c.last_error,
            table.c.gone_at,
        )
    )
    return sorted((_claim(row) for row in rows.all()), key=lambda each: each.run_id)


def due(by: datetime, now: datetime) -> ColumnElement[bool]:
    """Say which runs are due `by` a time and not held by anybody `now`."""
    return and_(tracked_runs.c.due_at <= by, _is_free(now))


def due_or_stray(by: datetime, lease: Lease, in_hand: Collection[str]) -> ColumnElement[bool]:
    """Say which runs are `due`, or the owner's without being in hand.

    Those were claimed by a statement whose answer was lost.
    """
    is_stray = and_(
        tracked_runs.c.lease_owner == lease.owner, ~among(tracked_runs.c.run_id, in_hand)
    )
    return and_(tracked_runs.c.due_at <= by, or_(_is_free(lease.since), is_stray))


def _is_free(now: datetime) -> ColumnElement[bool]:
    return or_(tracked_runs.c.lease_until.is_(None), tracked_runs.c.lease_until <= now)


def _urgency(now: datetime) -> Sequence[ColumnElement[Any]]:
    """Order by state, then by how likely a change has come since the last look.

    New runs and those still going come first. Among the others the likelihood grows with the
    time since the last look as a share of the run's own interval, which `lifecycle` makes the
    longer, the longer a run is quiet.
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
    standing = Standing(State(row.state), row.due_at, row.attempts, row.last_error)
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


def held(connection: Connection, owner: str, run_ids: Sequence[str]) -> set[str]:
    """Return those of `run_ids` whose lease is still `owner`'s, locked until the commit.

    What was fetched under a lease that somebody else has by now is older than what they will
    fetch: it must not be stored.
    """
    query = (
        select(tracked_runs.c.run_id)
        .where(among(tracked_runs.c.run_id, run_ids), tracked_runs.c.lease_owner == owner)
        .order_by(tracked_runs.c.run_id)
        .with_for_update()
    )
    return set(connection.scalars(query).all())


def record(connection: Connection, recorded: Sequence[Recorded]) -> None:
    """Write down how runs stand after a fetch, and give them free."""
    answered = [each for each in recorded if each.fetched_at is not None]
    others = [each for each in recorded if each.fetched_at is None]
    names = ["state", "due_at", "attempts", "last_error"]
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


def _standing_row(standing: Standing) -> tuple[Any, ...]:
    return (standing.state.value, standing.due_at, standing.attempts, standing.last_error)


def mark_gone(connection: Connection, run_ids: Sequence[str], now: datetime) -> None:
    """Note when the API first denied having these runs."""
    connection.execute(
        update(tracked_runs)
        .where(among(tracked_runs.c.run_id, run_ids), tracked_runs.c.gone_at.is_(None))
        .values(gone_at=now)
    )


def unmark_gone(connection: Connection, run_ids: Sequence[str]) -> None:
    """Take the note back for runs that the API has again."""
    connection.execute(
        update(tracked_runs)
        .where(among(tracked_runs.c.run_id, run_ids), tracked_runs.c.gone_at.is_not(None))
        .values(gone_at=None)
    )


def renew(connection: Connection, lease: Lease) -> None:
    """Keep all runs that the owner holds until the lease's new end.

    They are locked in the order of `held`, so that the two never wait for each other.
    """
    table = tracked_runs
    held = select(table.c.run_id).where(table.c.lease_owner == lease.owner)
    in_order = held.order_by(table.c.run_id).with_for_update()
    connection.execute(
        update(table).where(table.c.run_id.in_(in_order)).values(lease_until=lease.until)
    )


def end_waits(connection: Connection, lease: Lease) -> None:
    """Make due what is waiting, and free what was leased for longer than `lease` would be.

    For when a clock was ahead: nobody knows what is really meant by the times it gave.
    """
    table = tracked_runs
    connection.execute(update(table).where(table.c.due_at > lease.since).values(due_at=lease.since))
    connection.execute(
        update(table)
        .where(table.c.lease_until > lease.until)
        .values(lease_owner=None, lease_until=None)
    )


def release(connection: Connection, owner: str) -> None:
    """Give all runs free that `owner` holds; they stay as due as they were."""
    connection.execute(
        update(tracked_runs)
        .where(tracked_runs.c.lease_owner == owner)
        .values(lease_owner=None, lease_until=None)
    )


def make_due(connection: Connection, run_ids: Sequence[str] | None, now: datetime) -> int:
    """Make runs due now, whatever their state (None: all but the failed); return how many."""
    statement = update(tracked_runs).values(due_at=now)
    if run_ids is None:
        statement = statement.where(tracked_runs.c.state != State.FAILED)
    return connection.execute(_restricted(statement, run_ids)).rowcount


def retry(connection: Connection, run_ids: Sequence[str] | None, now: datetime) -> int:
    """Make failed runs (None: all of them) due again; return how many."""
    changed = 0
    for fetched in (0, 1):
        standing = requeued(fetched, now)
        was_fetched = tracked_runs.c.last_fetched_at.is_not(None)
        statement = (
            update(tracked_runs)
            .where(tracked_runs.c.state == State.FAILED, was_fetched if fetched else ~was_fetched)
            .values(state=standing.state, due_at=standing.due_at, attempts=0, last_error=None)
        )
        changed += connection.execute(_restricted(statement, run_ids)).rowcount
    return changed


def _restricted(statement: Any, run_ids: Sequence[str] | None) -> Any:
    if run_ids is None:
        return statement
    return statement.where(among(tracked_runs.c.run_id, run_ids))


def unknown(connection: Connection, run_ids: Sequence[str]) -> list[str]:
    """Return those of `run_ids` that are not tracked."""
    query = select(tracked_runs.c.run_id).where(among(tracked_runs.c.run_id, run_ids))
    known = set(connection.scalars(query).all())
    return [run_id for run_id in run_ids if run_id not in known]


def states(connection: Connection, run_ids: Sequence[str] | None) -> dict[str, str]:
    """Return the state of runs (None: all that are tracked) by run ID."""
    query = select(tracked_runs.c.run_id, tracked_runs.c.state).order_by(tracked_runs.c.run_id)
    return dict(connection.execute(_restricted(query, run_ids)).all())


def due_runs(connection: Connection, now: datetime) -> dict[str, str]:
    """Return the state of each run that is due and free, by run ID."""
    query = (
        select(tracked_runs.c.run_id, tracked_runs.c.state)
        .where(due(now, now))
        .order_by(*_urgency(now))
    )
    return dict(connection.execute(query).all())


def next_going(connection: Connection) -> datetime | None:
    """Return when the next run is due that is not over, or was not reached yet."""
    table = tracked_runs
    going = table.c.state.in_([State.QUEUED, State.RUNNING, State.RETRYING])
    # One that another process has in hand is free when its lease is over.
    free_at = case(
        (table.c.lease_until > table.c.due_at, table.c.lease_until), else_=table.c.due_at
    )
    due_at: datetime | None = connection.scalar(select(func.min(free_at)).where(going))
    return due_at


def sources_without_permission(connection: Connection) -> set[str]:
    """Return the sources whose key was denied a run that had no read token, and never read one."""
    table = tracked_runs
    without_token = select(table.c.source).where(table.c.read_token.is_(None)).distinct()
    denied = without_token.where(table.c.last_error.startswith(DENIED))
    read = without_token.where(table.c.last_fetched_at.is_not(None))
    return set(connection.scalars(denied)) - set(connection.scalars(read))


class Standings(NamedTuple):
    """The ledger at a glance."""

    by_state: Mapping[str, int]
    due: int
    leased: int
    oldest_due_at: datetime | None
    next_due_at: datetime | None


def standings(connection: Connection, now: datetime) -> Standings:
    """Count the runs by state, and those that are due."""
    table = tracked_runs
    by_state = dict.fromkeys((state.value for state in State), 0)
    counted: Select[str, int] = select(table.c.state, func.count()).group_by(table.c.state)
    by_state.update(dict(connection.execute(counted).all()))
    row = connection.execute(
        select(
            func.count().filter(table.c.due_at <= now),
            func.count().filter(table.c.lease_until > now),
            func.min(table.c.due_at).filter(table.c.due_at <= now),
            func.min(table.c.due_at).filter(table.c.due_at > now),
        )
    ).one()
    return Standings(by_state, row[0], row[1], row[2], row[3])
