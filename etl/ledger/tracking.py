"""Which runs are tracked, with their tokens and labels, and which are asked for again.

Every function works in the caller's transaction.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    and_,
    bindparam,
    case,
    or_,
    select,
    text,
    update,
)

from etl.answers.outcome import Reason
from etl.answers.rows import Row
from etl.db import bulk
from etl.db.schema import among, labels, tracked_runs
from etl.ledger.lifecycle import State, requeue
from etl.ledger.run_context import record_context_changes


class Entry(NamedTuple):
    """A run to be tracked. `read_token` is encrypted already."""

    run_id: str
    source: str | None
    read_token: str | None
    labels: Mapping[str, str]


class Tracked(NamedTuple):
    """How many of the runs given to `track` were new, known, left out as dropped, taken back."""

    new: int = 0
    known: int = 0
    dropped: int = 0
    taken_back: int = 0


def track(connection: Connection, entries: Sequence[Entry], now: datetime) -> Tracked:
    """Add `entries`, due now; for runs known already, set a new token, source or label.

    The last of two entries for one run counts. Dropped runs are left out.
    """
    dropped = read_dropped(connection, [entry.run_id for entry in entries])
    # Lock in the order of run IDs, as others do: two lists would otherwise deadlock.
    by_id = {
        entry.run_id: entry
        for entry in sorted(entries, key=lambda entry: entry.run_id)
        if entry.run_id not in dropped
    }
    new = set(_lock_untracked(connection, list(by_id)))
    rows = [_tracked_row(entry, now) for entry in by_id.values() if entry.run_id in new]
    bulk.insert(connection, tracked_runs, rows)
    _update_known(connection, [entry for entry in by_id.values() if entry.run_id not in new])
    _insert_labels(connection, [entry for entry in by_id.values() if entry.run_id in new])
    _change_labels(connection, [entry for entry in by_id.values() if entry.run_id not in new], now)
    return Tracked(len(new), len(by_id) - len(new), len(dropped))


def _lock_untracked(connection: Connection, run_ids: Sequence[str]) -> list[str]:
    """Return the untracked ones of `run_ids`, under an advisory lock until the commit.

    The lock keeps a concurrent list from adding them: COPY, which inserts them, fails on an
    existing key. It is taken only where runs are new, and before any row lock.
    """
    new = unknown(connection, run_ids)
    if not new or connection.dialect.name == "sqlite":  # which has one writer at a time
        return new
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('track', 0))"))
    return unknown(connection, new)


_EMPTY_ROW = dict.fromkeys(column.name for column in tracked_runs.columns)


def _tracked_row(entry: Entry, now: datetime) -> Row:
    values = {
        "run_id": entry.run_id,
        "source": entry.source or "default",
        "state": State.QUEUED.value,
        "due_at": now,
        "attempts": 0,
        "first_tracked_at": now,
        "fetches": 0,
        "read_token": entry.read_token,
    }
    return tuple((_EMPTY_ROW | values).values())


def _update_known(connection: Connection, entries: Iterable[Entry]) -> None:
    """Set the tokens and sources that `entries` give for known runs; most give none."""
    given = [
        {"known": entry.run_id, "given_source": entry.source, "given_token": entry.read_token}
        for entry in entries
        if entry.source or entry.read_token
    ]
    if given:
        connection.execute(_update_of_known(), given)


def _update_of_known() -> Any:
    table = tracked_runs
    source: ColumnElement[str | None] = bindparam("given_source", type_=Text)
    token: ColumnElement[str | None] = bindparam("given_token", type_=Text)
    wants_token = and_(
        token.is_not(None),
        # The same token encrypts differently each time: keep one that has worked.
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
            table.c.state != State.DROPPED,
            or_(wants_token, and_(wants_source, source != table.c.source)),
        )
        .values(
            source=case((wants_source, source), else_=table.c.source),
            read_token=case((wants_token, token), else_=table.c.read_token),
        )
    )


def _insert_labels(connection: Connection, entries: Iterable[Entry]) -> None:
    """Insert the labels of runs that are new, and so have none."""
    bulk.insert(connection, labels, _list_labels(entries))


def _change_labels(connection: Connection, entries: Iterable[Entry], now: datetime) -> None:
    """Add new labels of known runs, and change those with another value."""
    given = _list_labels(entries)
    stored = bulk.find(connection, labels, ["value"], [row[:2] for row in given])
    changed = [row for row in given if stored.get(row[:2]) != row[2:]]
    record_context_changes(connection, {row[0]: now for row in changed})
    bulk.replace(connection, labels, changed)


def _list_labels(entries: Iterable[Entry]) -> list[Row]:
    """Return the rows of `labels`, in the order of their keys."""
    return [
        (entry.run_id, name, value)
        for entry in entries
        for name, value in sorted(entry.labels.items())
    ]


def forget_tokens(connection: Connection, run_ids: Sequence[str]) -> None:
    """Delete the read tokens of runs, which no key decrypts any more."""
    of_runs = among(tracked_runs.c.run_id, run_ids)
    connection.execute(update(tracked_runs).where(of_runs).values(read_token=None))


def make_due(connection: Connection, run_ids: Sequence[str] | None, now: datetime) -> int:
    """Make runs due now, unless dropped (None: all but the failed); return how many."""
    statement = update(tracked_runs).where(tracked_runs.c.state != State.DROPPED).values(due_at=now)
    if run_ids is None:
        statement = statement.where(tracked_runs.c.state != State.FAILED)
    return connection.execute(_restricted(statement, run_ids)).rowcount


def retry(
    connection: Connection,
    run_ids: Sequence[str] | None,
    now: datetime,
    reason: Reason | None = None,
) -> int:
    """Make failed runs (None: all of them) due now, or those of one reason; return how many."""
    changed = 0
    for fetched in (0, 1):
        standing = requeue(fetched, now)
        was_fetched = tracked_runs.c.last_fetched_at.is_not(None)
        statement = (
            update(tracked_runs)
            .where(tracked_runs.c.state == State.FAILED, was_fetched if fetched else ~was_fetched)
            .values(standing._asdict())
        )
        if reason is not None:
            statement = statement.where(tracked_runs.c.reason == reason)
        changed += connection.execute(_restricted(statement, run_ids)).rowcount
    return changed


def read_denied_tokens(connection: Connection, run_ids: Sequence[str]) -> dict[str, str | None]:
    """Return the stored token, encrypted, of the runs that failed as denied."""
    table = tracked_runs
    query = select(table.c.run_id, table.c.read_token).where(
        among(table.c.run_id, run_ids),
        table.c.state == State.FAILED,
        table.c.reason == Reason.DENIED,
    )
    return dict(connection.execute(query).all())


def leave_tombstones(connection: Connection, run_ids: Sequence[str]) -> None:
    """Make the ledger rows of runs tombstones, which have nothing but their names and sources."""
    connection.execute(
        update(tracked_runs)
        .where(among(tracked_runs.c.run_id, run_ids))
        .values(_UNTOUCHED | {"state": State.DROPPED, "due_at": None})
    )


def take_back(connection: Connection, run_ids: Sequence[str], now: datetime) -> int:
    """Track those of `run_ids` that were dropped as if they were new; return how many."""
    is_dropped = and_(among(tracked_runs.c.run_id, run_ids), tracked_runs.c.state == State.DROPPED)
    queued = {"state": State.QUEUED, "due_at": now, "first_tracked_at": now}
    return connection.execute(update(tracked_runs).where(is_dropped).values(queued)).rowcount


_UNTOUCHED = {
    "attempts": 0,
    "reason": None,
    "last_error": None,
    "failing_since": None,
    "last_fetched_at": None,
    "fetches": 0,
    "lease_owner": None,
    "lease_until": None,
    "read_token": None,
    "gone_at": None,
    "context_changed_at": None,
}


def read_dropped(connection: Connection, run_ids: Sequence[str]) -> set[str]:
    """Return those of `run_ids` that were dropped."""
    query = select(tracked_runs.c.run_id).where(
        among(tracked_runs.c.run_id, run_ids), tracked_runs.c.state == State.DROPPED
    )
    return set(connection.scalars(query))


def _restricted(statement: Any, run_ids: Sequence[str] | None) -> Any:
    if run_ids is None:
        return statement
    return statement.where(among(tracked_runs.c.run_id, run_ids))


def unknown(connection: Connection, run_ids: Sequence[str]) -> list[str]:
    """Return the members of `run_ids` that are not tracked."""
    query = select(tracked_runs.c.run_id).where(among(tracked_runs.c.run_id, run_ids))
    known = set(connection.scalars(query).all())
    return [run_id for run_id in run_ids if run_id not in known]


def read_accounts(connection: Connection, run_ids: Sequence[str]) -> dict[str, str]:
    """Return the source of each of `run_ids` whose source is certain.

    It is once the run is archived. A run of the default source that is not may have been listed
    without its source; one that failed or was dropped may have been listed with a wrong one.
    """
    table = tracked_runs
    uncertain = [State.FAILED, State.DROPPED]
    is_named = and_(table.c.source != "default", table.c.state.not_in(uncertain))
    query = select(table.c.run_id, table.c.source).where(
        among(table.c.run_id, run_ids), or_(table.c.last_fetched_at.is_not(None), is_named)
    )
    return dict(connection.execute(query).all())
