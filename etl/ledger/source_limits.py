"""The limits of requests to a source, shared by all processes that fetch from it.

A row a source has the next free slot, the wait that the API asks for, and why it is halted. The
database's clock decides, so that the clocks of hosts do not matter. A worker has a row a source
while it works, renewed by its heartbeat. All functions work in the caller's transaction.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    text,
    update,
)

from etl.db.bulk import upsert_into
from etl.db.database_clock import database_now, later
from etl.db.schema import among, ingests, source_limits, workers

ALIVE_MS = 5_000
"""A worker without a heartbeat for this long counts as dead."""
LONGEST_WAIT_MS = 86_400_000
"""A longer wait was written by a clock that was wrong."""
FARTHEST_SLOT_MS = 60_000
"""A slot farther ahead than this, and than the slots of 100 requests, too."""


class Worker(NamedTuple):
    """A process that fetches for a pass; `name` is also the owner of its leases."""

    name: str
    pass_id: int


class LimitState(NamedTuple):
    """The waits and the halt of a source, as its row has them now."""

    asked_wait_s: float
    halt: str | None
    halt_reason: str
    answered_s_ago: float | None


class Slot(NamedTuple):
    """The answer to a worker that wants to send requests.

    `begins_in_s` is None if it has to ask again later. `is_prober`: it alone may probe.
    """

    begins_in_s: float | None
    is_prober: bool
    state: LimitState


class Demand(NamedTuple):
    """A worker's demand: the time that its requests take, and whether it has to probe the API.

    `answered_ms_ago`: the age of its last result. `is_alone`: no other worker is alive.
    """

    length_ms: int
    probes: bool
    is_alone: bool
    answered_ms_ago: int | None


class Share(NamedTuple):
    """A worker's share of a source: the connections it may use, and the workers alive."""

    connections: int
    workers: int
    is_final: bool
    """Whether the worker has all the connections that it is due."""
    state: LimitState


def join(
    connection: Connection, worker: Worker, in_use: Mapping[str, int], most: int
) -> dict[str, Share]:
    """Register a worker with sources, and return its shares as `beat` does."""
    known = {row.source for row in _lock(connection, in_use)}
    for source in sorted(in_use.keys() - known):
        row = {"source": source, "next_slot_at": database_now()}
        insert = upsert_into(connection, source_limits).values(row)
        connection.execute(insert.on_conflict_do_nothing())
    return beat(connection, worker, in_use, most)


def leave(connection: Connection, name: str) -> None:
    """Remove a worker, since it has ended. Another one may probe in its place."""
    connection.execute(delete(workers).where(workers.c.worker == name))


def is_alive(name: ColumnElement[str | None]) -> ColumnElement[bool]:
    """Return the condition that the worker with this name is alive."""
    return exists().where(
        workers.c.worker == name, workers.c.seen_at > later(database_now(), -ALIVE_MS)
    )


def take_slot(connection: Connection, worker: Worker, source: str, demand: Demand) -> Slot:
    """Reserve the next `length_ms` of a source's requests, in one statement."""
    row, now = source_limits.c, database_now()
    halted = func.coalesce(row.halted_pass, 0) >= worker.pass_id
    is_ready = and_(~_is_asked_to_wait(), ~halted)
    if demand.probes:
        is_ready = and_(is_ready, _is_probe_free(worker))
    farthest = later(now, max(FARTHEST_SLOT_MS, 100 * demand.length_ms))
    begins_at = case(
        (and_(row.next_slot_at > now, row.next_slot_at <= farthest), row.next_slot_at), else_=now
    )
    prober = case((row.prober == worker.name, None), else_=row.prober)
    if demand.probes or demand.is_alone:
        prober = case((_is_probe_free(worker), worker.name), else_=row.prober)
    values: dict[str, Any] = {
        "next_slot_at": case(
            (is_ready, later(begins_at, demand.length_ms)), else_=row.next_slot_at
        ),
        "prober": prober,
    }
    if demand.answered_ms_ago is not None:
        answered_at = later(now, -demand.answered_ms_ago)
        is_newer = or_(row.answered_at.is_(None), row.answered_at < answered_at)
        values["answered_at"] = case((is_newer, answered_at), else_=row.answered_at)
    statement = update(source_limits).where(row.source == source).values(values)
    taken = connection.execute(statement.returning(source_limits, now.label("now"))).one()
    state = _read_state(taken, worker)
    is_prober = taken.prober == worker.name
    is_granted = not state.asked_wait_s and state.halt is None and (is_prober or not demand.probes)
    begins_in_s = (taken.next_slot_at - taken.now).total_seconds() - demand.length_ms / 1000
    return Slot(max(begins_in_s, 0.0) if is_granted else None, is_prober, state)


def _is_asked_to_wait() -> ColumnElement[bool]:
    asked_until, now = source_limits.c.asked_until, database_now()
    is_ahead = and_(asked_until > now, asked_until <= later(now, LONGEST_WAIT_MS))
    return and_(asked_until.is_not(None), is_ahead)


def _is_probe_free(worker: Worker) -> ColumnElement[bool]:
    """Tell whether the worker may probe: nobody does, or only it, or one that died."""
    prober = source_limits.c.prober
    return or_(prober.is_(None), prober == worker.name, ~is_alive(prober))


def _read_state(row: Any, worker: Worker) -> LimitState:
    wait_s = _seconds_until(row.asked_until, row.now)
    is_halted = (row.halted_pass or 0) >= worker.pass_id
    answered_s_ago = (row.now - row.answered_at).total_seconds() if row.answered_at else None
    return LimitState(
        wait_s if wait_s <= LONGEST_WAIT_MS / 1000 else 0.0,
        row.halt if is_halted else None,
        (row.halt_reason or "") if is_halted else "",
        answered_s_ago,
    )


def _seconds_until(moment: datetime | None, now: datetime) -> float:
    return max(0.0, (moment - now).total_seconds()) if moment else 0.0


def report_wait(connection: Connection, source: str, wait_ms: int) -> None:
    """Make all workers of a source wait, as the API asks."""
    until = later(database_now(), wait_ms)
    is_later = or_(~_is_asked_to_wait(), source_limits.c.asked_until < until)
    statement = update(source_limits).where(source_limits.c.source == source, is_later)
    connection.execute(statement.values(asked_until=until))


def report_halt(connection: Connection, source: str, halt: str, reason: str) -> None:
    """Stop all passes that have begun; a later one asks the API again."""
    newest = select(func.max(ingests.c.id)).scalar_subquery()
    connection.execute(
        update(source_limits)
        .where(source_limits.c.source == source)
        .values(
            halt=halt, halt_reason=reason, halted_at=database_now(), halted_pass=newest, prober=None
        )
    )


def end_waits(connection: Connection) -> None:
    """Forget slots and waits, which a clock that was wrong has written."""
    connection.execute(update(source_limits).values(next_slot_at=database_now(), asked_until=None))


def beat(
    connection: Connection, worker: Worker, in_use: Mapping[str, int], most: int
) -> dict[str, Share]:
    """Show that a worker is alive, and return its share of the connections of each source.

    `in_use` has the connections that it uses, `most` is their number for all workers. A worker
    gets only connections that no other one has; it keeps those in use until they are free.
    """
    states = {row.source: _read_state(row, worker) for row in _lock(connection, in_use)}
    others: dict[str, dict[str, int]] = {source: {} for source in in_use}
    is_dead = (workers.c.seen_at <= later(database_now(), -ALIVE_MS)).label("is_dead")
    query = select(workers.c.source, workers.c.worker, workers.c.connections, is_dead)
    for row in connection.execute(query.where(among(workers.c.source, in_use))).all():
        if row.is_dead:
            leave(connection, row.worker)
        else:
            others[row.source][row.worker] = row.connections
    shares = {
        source: divide_connections(worker.name, others[source], used, most)
        for source, used in in_use.items()
    }
    held = {source: max(in_use[source], share.connections) for source, share in shares.items()}
    _beat(connection, worker, held)
    return {source: share._replace(state=states[source]) for source, share in shares.items()}


NO_STATE = LimitState(0.0, None, "", None)


def divide_connections(name: str, held: Mapping[str, int], in_use: int, most: int) -> Share:
    """Return a worker's share of `most` connections; `held` has those of each worker alive."""
    names = sorted({*held, name})
    due = most // len(names) + (names.index(name) < most % len(names))
    free = most - sum(count for other, count in held.items() if other != name)
    return Share(max(0, min(due, free)), len(names), free >= due and in_use <= due, NO_STATE)


def _lock(connection: Connection, sources: Collection[str]) -> Sequence[Any]:
    """Lock the rows of sources, so that one worker at a time takes connections; return them.

    A server ends the transaction of a worker that is frozen in it, or cut off: the others wait for
    three seconds at most. A busy machine can stop a healthy worker for one.
    """
    if connection.dialect.name != "sqlite":
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '3s'"))
    rows = select(source_limits, database_now().label("now"))
    of_sources = rows.where(among(source_limits.c.source, sources))
    return connection.execute(of_sources.order_by(source_limits.c.source).with_for_update()).all()


def _beat(connection: Connection, worker: Worker, held: Mapping[str, int]) -> None:
    for source, connections in held.items():
        row = {
            "worker": worker.name,
            "source": source,
            "pass_id": worker.pass_id,
            "seen_at": database_now(),
            "connections": connections,
        }
        insert = upsert_into(connection, workers).values(row)
        changes = {"seen_at": database_now(), "connections": connections}
        connection.execute(
            insert.on_conflict_do_update(index_elements=["worker", "source"], set_=changes)
        )
