"""Hold the derived tables against the payloads they came from, and make them anew.

Works through the archive in batches of runs, each in a transaction of its own: memory stays
bounded, and whatever interrupts it, the next call goes on, since what agrees is left alone.
"""

import hashlib
from collections.abc import Iterator, Sequence
from datetime import tzinfo
from itertools import groupby
from typing import Any, NamedTuple

import zstandard
from sqlalchemy import Connection, Engine, Table, and_, delete, func, select

from etl import bulk, store
from etl.database import reading, writing
from etl.history import DERIVED, Owner, Row, Stretch, derived
from etl.normalize import ECHO_WARNING, normalize
from etl.payload import COUNTERS, decode
from etl.schema import metadata, payloads, tracked_runs

BATCH_RUNS = 50

TABLES = [metadata.tables[name] for name in DERIVED]


class Difference(NamedTuple):
    """A place where the archive is not what its payloads say; `row` is the rest of its key."""

    table: str
    run_id: str
    row: str
    problem: str

    def __str__(self) -> str:
        where = f"run {self.run_id}, {self.row}" if self.row else f"run {self.run_id}"
        return f"{self.table} ({where}): {self.problem}"


class Checked(NamedTuple):
    """What was found in a batch of runs.

    `damage` are payloads that are not what was received; `differing` are derived rows that are
    not what their payloads say; `mismatches` are the vendor's own: a run's counters that are not
    the sum of its tests'.
    """

    runs: int
    damage: list[Difference]
    differing: list[Difference]
    mismatches: list[Difference]

    def plus(self, other: "Checked") -> "Checked":
        """Return both together."""
        return Checked(
            self.runs + other.runs,
            self.damage + other.damage,
            self.differing + other.differing,
            self.mismatches + other.mismatches,
        )


class _Batch(NamedTuple):
    """What the payloads of some runs say: derived rows by table, of the runs that are whole."""

    whole: list[str]
    rows: dict[str, list[Row]]
    damage: list[Difference]


def verify(engine: Engine, zone: tzinfo) -> Iterator[Checked]:
    """Check all runs, a batch at a time; the last batch is about what belongs to no payload."""
    for run_ids in _batches(engine):
        with reading(engine) as connection:
            batch = _expected(connection, run_ids, zone)
            differing = _compare(connection, batch)
        mismatches = _mismatches(batch.rows["counts"])
        yield Checked(len(run_ids), batch.damage, differing, mismatches)
    with reading(engine) as connection:
        yield Checked(0, [*_strays(connection), *_ledger_faults(connection)], [], [])


def replay(engine: Engine, zone: tzinfo) -> Iterator[Checked]:
    """Rebuild the runs that differ from their payloads, a batch at a time; tell what differed.

    Runs whose payloads are damaged are left as they are.
    """
    for run_ids in _batches(engine):
        with writing(engine) as connection:
            batch = _expected(connection, run_ids, zone)
            differing = _compare(connection, batch)
            _replace(connection, batch, {difference.run_id for difference in differing})
        yield Checked(len(run_ids), batch.damage, differing, [])


def _batches(engine: Engine) -> Iterator[list[str]]:
    """Yield the archived runs in the order of their IDs."""
    last = ""
    query = select(payloads.c.run_id).distinct().order_by(payloads.c.run_id).limit(BATCH_RUNS)
    while True:
        with reading(engine) as connection:
            run_ids = list(connection.scalars(query.where(payloads.c.run_id > last)))
        if not run_ids:
            return
        yield run_ids
        last = run_ids[-1]


def _expected(connection: Connection, run_ids: Sequence[str], zone: tzinfo) -> _Batch:
    """Return what the payloads of `run_ids` and their ledger rows make of them."""
    ledger = select(tracked_runs.c.run_id, tracked_runs.c.source, tracked_runs.c.gone_at)
    owners = {
        row.run_id: Owner(row.run_id, row.source, row.gone_at)
        for row in connection.execute(ledger.where(tracked_runs.c.run_id.in_(run_ids)))
    }
    kept = (
        select(payloads)
        .where(payloads.c.run_id.in_(run_ids))
        .order_by(payloads.c.run_id, payloads.c.revision)
    )
    batch = _Batch([], {table.name: [] for table in TABLES}, [])
    for run_id, group in groupby(connection.execute(kept), key=lambda row: row.run_id):
        stretches, damage = _stretches(list(group), zone)
        batch.damage.extend(damage)
        if not damage:
            batch.whole.append(run_id)
            for name, rows in derived(owners[run_id], stretches).items():
                batch.rows[name] += rows
    return batch


def _stretches(kept: Sequence[Any], zone: tzinfo) -> tuple[list[Stretch], list[Difference]]:
    """Return a run's contents in their order, and what is wrong with its payloads."""
    stretches: list[Stretch] = []
    damage: list[Difference] = []
    for number, row in enumerate(kept, start=1):
        try:
            stretches.append(_stretch(row, zone))
        except (ValueError, zstandard.ZstdError) as error:
            damage.append(_in_payload(row, str(error)))
        if row.revision != number:
            damage.append(_in_payload(row, f"revision {number} is missing before it"))
        if (row.last_seen_at is None) != (number == len(kept)):
            damage.append(_in_payload(row, "last_seen_at does not fit its place in the history"))
    return stretches, damage


def _stretch(row: Any, zone: tzinfo) -> Stretch:
    """Return what a payload says. Raises ValueError: it is not what was kept, or not readable."""
    body = store.decompress(row.body, row.encoding)
    if len(body) != row.size:
        raise ValueError(f"its body has {len(body)} bytes, not the {row.size} that were kept")
    payload = decode(body)
    rows = normalize(row.run_id, payload, zone)
    if hashlib.sha256(body).hexdigest() != row.sha256:
        if b"***" not in body:
            raise ValueError("its body is not the one that was received: the hashes differ")
        rows.warnings.append(ECHO_WARNING)
    return Stretch(row.revision, row.fetched_at, row.last_seen_at, payload.content_hash, rows)


def _in_payload(row: Any, problem: str) -> Difference:
    return Difference("payloads", row.run_id, f"revision {row.revision}", problem)


def _compare(connection: Connection, batch: _Batch) -> list[Difference]:
    """Compare the derived rows of whole runs, cell by cell, as the driver sees them."""
    differences: list[Difference] = []
    lost: set[str] = set()
    for table in TABLES:
        wanted = _by_key(table, bulk.storable(connection, table, batch.rows[table.name]))
        found = _by_key(table, bulk.read(connection, table, batch.whole))
        for key in sorted(wanted.keys() | found.keys(), key=repr):
            problem = _row_problem(table, wanted.get(key), found.get(key))
            if problem and key[0] not in lost:
                rest = [column.name for column in table.primary_key][1:]
                place = ", ".join(
                    f"{name} {value}" for name, value in zip(rest, key[1:], strict=True)
                )
                differences.append(Difference(table.name, key[0], place, problem))
        if table.name == "runs":
            # Of a run that is missing, its other rows need not be told one by one.
            lost = {key[0] for key in wanted.keys() - found.keys()}
    return differences


def _by_key(table: Table, rows: Sequence[Row]) -> dict[Row, Row]:
    keys = [list(table.columns).index(column) for column in table.primary_key]
    return {tuple(row[index] for index in keys): row for row in rows}


def _row_problem(table: Table, wanted: Row | None, found: Row | None) -> str | None:
    if found is None:
        return "is missing"
    if wanted is None:
        return "is in no payload"
    for column, should_be, is_now in zip(table.columns, wanted, found, strict=True):
        if should_be != is_now:
            return f"{column.name} is {is_now!r}, by the payload {should_be!r}"
    return None


def _mismatches(count_rows: Sequence[Row]) -> list[Difference]:
    """Hold each run's own counters against the sum of its tests' counters."""
    found = []
    for run_id, group in groupby(count_rows, key=lambda row: row[0]):
        own, *tests = group
        for index, name in enumerate(COUNTERS, start=3):
            values = [row[index] for row in tests]
            is_known = tests and own[index] is not None and None not in values
            if is_known and own[index] != sum(values):
                problem = f"{name} is {own[index]}, its tests have {sum(values)}"
                found.append(Difference("counts", run_id, "", problem))
    return found


def _replace(connection: Connection, batch: _Batch, run_ids: set[str]) -> None:
    for table in reversed(TABLES):
        connection.execute(delete(table).where(table.c.run_id.in_(run_ids)))
    for table in TABLES:
        rows = [row for row in batch.rows[table.name] if row[0] in run_ids]
        bulk.insert(connection, table, rows)


def _strays(connection: Connection) -> Iterator[Difference]:
    """Find rows of runs that have no payload."""
    archived = select(payloads.c.run_id)
    for table in TABLES:
        query = select(table.c.run_id).where(table.c.run_id.not_in(archived)).distinct()
        for run_id in connection.scalars(query.order_by(table.c.run_id)):
            yield Difference(table.name, run_id, "", "has no payload")


def _ledger_faults(connection: Connection) -> Iterator[Difference]:
    """Find runs that the ledger and the archive tell different stories of."""
    newest = (
        select(payloads.c.run_id, func.max(payloads.c.fetched_at).label("at"))
        .group_by(payloads.c.run_id)
        .subquery()
    )
    fetched_at = tracked_runs.c.last_fetched_at
    stories = {
        "was fetched, yet is not archived": and_(newest.c.at.is_(None), fetched_at.is_not(None)),
        "is archived, yet was never fetched": and_(newest.c.at.is_not(None), fetched_at.is_(None)),
        "last_fetched_at is before its newest payload": fetched_at < newest.c.at,
    }
    joined = select(tracked_runs.c.run_id).outerjoin(
        newest, newest.c.run_id == tracked_runs.c.run_id
    )
    for problem, is_so in stories.items():
        for run_id in connection.scalars(joined.where(is_so).order_by(tracked_runs.c.run_id)):
            yield Difference("tracked_runs", run_id, "", problem)
