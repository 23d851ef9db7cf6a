"""The workers of a pass, a row each in `pass_workers`, and their sum.

A worker counts each run in the transaction that stores it, so that the sum is right even if the
worker is killed.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Integer, and_, case, func, insert, or_, select, update

from etl.db.database_clock import database_now, later
from etl.db.schema import OUTCOMES, ingests, pass_workers
from etl.fetch.permits import Allowed, Halt, PermitAsk
from etl.fetch.rate_limit import RequestLimits
from etl.ingest.tally import RunEnd, Tally
from etl.ledger.source_limits import ALIVE_MS, Worker, is_alive

COUNTS = (*OUTCOMES, "deferred", "to_retry")
WORST_FIRST = (143, 130, 4, 3, 5, 2, 1)
"""The exit codes of workers, the worst first; it is that of the pass."""


def open_worker(connection: Connection, name: str, pass_id: int, now: datetime) -> None:
    """Register a worker with its pass."""
    row = {"worker": name, "pass_id": pass_id, "started_at": now}
    connection.execute(insert(pass_workers).values(row))


def count_ends(connection: Connection, name: str, ends: Sequence[RunEnd], requests: int) -> None:
    """Add the runs that a transaction stores to a worker's counts; it has sent `requests`."""
    tally = Tally()
    tally.add(ends)
    counts = {column: getattr(tally, column) for column in COUNTS}
    values = {column: pass_workers.c[column] + more for column, more in counts.items() if more}
    sent = pass_workers.c.requests
    values["requests"] = case((sent < requests, requests), else_=sent)
    connection.execute(update(pass_workers).where(pass_workers.c.worker == name).values(values))


def allow(
    connection: Connection, worker: Worker, limits: RequestLimits, demand: PermitAsk
) -> Allowed:
    """Allow a worker as many more of the pass's requests as it can send at once.

    An eighth of those left is allowed at a time, so that none of the workers gets all. Requests
    that a worker has not sent when it ends are free for the others.
    """
    of_pass = pass_workers.c.pass_id == worker.pass_id
    # Workers take turns; SQLite has one writer at a time.
    connection.execute(select(ingests.c.id).where(ingests.c.id == worker.pass_id).with_for_update())
    has_ended = pass_workers.c.finished_at.is_not(None)
    taken = case((has_ended, pass_workers.c.requests), else_=pass_workers.c.allowed)
    left = limits.max_requests - int(
        connection.scalar(select(func.coalesce(func.sum(taken), 0)).where(of_pass)) or 0
    )
    more = max(0, min(left, max(demand.room, left // 8)))
    is_worker = pass_workers.c.worker == worker.name
    added = update(pass_workers).where(is_worker).values(allowed=pass_workers.c.allowed + more)
    allowed = connection.execute(added.returning(pass_workers.c.allowed)).scalar_one()
    return Allowed(allowed, is_last=more == 0)


def close_worker(connection: Connection, name: str, tally: Tally, now: datetime) -> None:
    """Record how a worker ended."""
    connection.execute(
        update(pass_workers)
        .where(pass_workers.c.worker == name)
        .values(
            finished_at=now,
            requests=tally.requests,
            halt=tally.halt.value if tally.halt else None,
            halt_reason=tally.halt_reason,
            exit_code=tally.exit_code,
        )
    )


def sum_pass(connection: Connection, pass_id: int) -> Tally:
    """Return the counts of all workers of a pass, with the worst halt and exit code."""
    of_pass = pass_workers.c.pass_id == pass_id
    sums = [
        func.coalesce(func.sum(pass_workers.c[name]), 0, type_=Integer).label(name)
        for name in (*COUNTS, "requests")
    ]
    counted = connection.execute(select(*sums).where(of_pass)).one()
    tally = Tally(pass_id=pass_id)
    for name, value in counted._mapping.items():
        setattr(tally, name, int(value))
    ends = connection.execute(
        select(pass_workers.c.exit_code, pass_workers.c.halt, pass_workers.c.halt_reason)
        .where(of_pass, pass_workers.c.finished_at.is_not(None))
        .order_by(pass_workers.c.worker)
    ).all()
    if worst := min(ends, key=_rank, default=None):
        tally.exit_code = worst.exit_code
        tally.halt = Halt(worst.halt) if worst.halt else None
        tally.halt_reason = worst.halt_reason or ""
    return tally


def _rank(row: Any) -> tuple[int, bool]:
    return _rank_code(row.exit_code), row.halt is None


def _rank_code(code: int) -> int:
    return WORST_FIRST.index(code) if code in WORST_FIRST else len(WORST_FIRST)


def worst_of(codes: Sequence[int]) -> int:
    """Return the worst of exit codes."""
    return min(codes, key=_rank_code)


def find_workers(connection: Connection, pass_id: int, prefix: str) -> list[str]:
    """Return the workers of a pass whose names begin with `prefix`.

    A process has no other name before it works: containers may have the same host and process.
    """
    is_it = and_(
        pass_workers.c.pass_id == pass_id, pass_workers.c.worker.startswith(prefix, autoescape=True)
    )
    return list(connection.scalars(select(pass_workers.c.worker).where(is_it)))


class PassMark(NamedTuple):
    """The id of a pass and its time, which no other archive has together."""

    pass_id: int
    started_at: datetime


def read_newest_mark(connection: Connection) -> PassMark | None:
    """Return the mark of an archive's newest pass."""
    query = select(ingests.c.id, ingests.c.started_at).order_by(ingests.c.id.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return PassMark(*row) if row else None


def has_mark(connection: Connection, mark: PassMark) -> bool:
    """Tell whether an archive has this pass."""
    is_it = and_(ingests.c.id == mark.pass_id, ingests.c.started_at == mark.started_at)
    return connection.scalar(select(ingests.c.id).where(is_it)) is not None


class PassWorker(NamedTuple):
    """A worker of a pass, as its rows have it. `is_alive`: it works, or has just begun."""

    name: str
    has_ended: bool
    is_alive: bool


def read_workers(connection: Connection, pass_id: int) -> list[PassWorker]:
    """Return all workers that a pass has had."""
    has_heartbeat = is_alive(pass_workers.c.worker)
    is_new = pass_workers.c.started_at > later(database_now(), -ALIVE_MS)
    has_ended = pass_workers.c.finished_at.is_not(None)
    query = select(
        pass_workers.c.worker,
        has_ended.label("has_ended"),
        and_(~has_ended, or_(has_heartbeat, is_new)).label("is_alive"),
    )
    rows = connection.execute(query.where(pass_workers.c.pass_id == pass_id)).all()
    return [PassWorker(*row) for row in rows]
