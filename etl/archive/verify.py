"""Hold the derived tables against the payloads they came from."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import tzinfo
from itertools import groupby

from sqlalchemy import (
    Connection,
    Engine,
    Table,
    and_,
    func,
    select,
)
from sqlalchemy.exc import DataError, DBAPIError

from etl.answers.rows import COUNTERS
from etl.archive.differences import (
    Checked,
    Difference,
    compare_shared,
    describe_unreadable,
    place_in_run,
    row_problem,
    rows_by_key,
)
from etl.archive.history import Row
from etl.archive.payload_batches import (
    NAMES,
    TABLES,
    PayloadBatch,
    expected_rows,
    payload_batches,
    read_rows,
)
from etl.config.settings import DEFAULT_RULES, Rules
from etl.db import bulk
from etl.db.database import reading
from etl.db.schema import (
    labels,
    payloads,
    rejects,
    tracked_runs,
)
from etl.derived import aggregates


def verify_archive(engine: Engine, zone: tzinfo, rules: Rules = DEFAULT_RULES) -> Iterator[Checked]:
    """Check all runs, a batch at a time, then what is counted of each plan, then loose ends."""
    for run_ids in payload_batches(engine):
        with _snapshot(engine) as connection:
            batch = expected_rows(connection, run_ids, zone)
            differing = [*compare_runs(connection, batch), *compare_names(connection, batch)]
        mismatches = _mismatches(batch.rows["counts"])
        yield Checked(len(run_ids), batch.damage, differing, mismatches)
    for plan_id in all_plan_ids(engine):
        with _snapshot(engine) as connection:
            try:
                differing = compare_plan(connection, plan_id, rules)
            except (ArithmeticError, LookupError, TypeError, ValueError, DataError):
                # Which cell it is was told with its run.
                differing = [Difference("outcomes", "", f"plan_id {plan_id}", "cannot be counted")]
        yield Checked(0, [], differing, [])
    yield loose_ends(engine)


def all_plan_ids(engine: Engine) -> list[str]:
    """Return all plans, in the order of their ids."""
    with reading(engine) as connection:
        return aggregates.list_plan_ids(connection)


def compare_plan(connection: Connection, plan_id: str, rules: Rules) -> list[Difference]:
    """Hold what is counted of a plan against its outcomes."""
    uncounted = aggregates.read_dirty_variants(connection, plan_id)
    expected = aggregates.compute_plan_rows(connection, plan_id, rules)
    differing: list[Difference] = []
    for table in aggregates.AGGREGATES:
        wanted = bulk.storable(connection, table.columns, expected[table.name])
        try:
            found = aggregates.read_plan_rows(connection, plan_id, table)
        except DBAPIError as error:
            place = f"plan_id {plan_id}"
            differing.append(Difference(table.name, "", place, describe_unreadable(error)))
            continue
        if "variant_id" in table.c:
            # A pass was interrupted before it counted these: the next one does.
            wanted, found = (
                [row for row in rows if row[0] not in uncounted] for rows in (wanted, found)
            )
        differing += compare_shared(table, rows_by_key(table, wanted), rows_by_key(table, found))
    return differing


def compare_names(connection: Connection, batch: PayloadBatch) -> list[Difference]:
    """Hold the plans and lists of tests that outcomes refer to against what answers say."""
    return [
        difference
        for table in NAMES
        for difference in compare_shared(
            table, batch.names[table.name], stored_names(connection, table, batch)
        )
    ]


def stored_names(connection: Connection, table: Table, batch: PayloadBatch) -> dict[Row, Row]:
    """Return those rows of one of the tables NAMES that a batch refers to, by key."""
    [column] = table.primary_key.columns
    keys = [key for [key] in batch.names[table.name]]
    return rows_by_key(table, bulk.read(connection, table, keys, column.name))


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    """Give a connection that sees the archive as it is now, whoever writes to it meanwhile."""
    with reading(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        yield connection


def compare_runs(connection: Connection, batch: PayloadBatch) -> list[Difference]:
    """Compare the derived rows of whole runs, cell by cell, as the driver sees them."""
    differences: list[Difference] = []
    lost: set[str] = set()
    for table in TABLES:
        rows, unreadable = read_rows(connection, table, batch.whole)
        differences += unreadable
        untold = lost | {difference.run_id for difference in unreadable}
        wanted = rows_by_key(
            table, bulk.storable(connection, table.columns, batch.rows[table.name])
        )
        found = rows_by_key(table, rows)
        for key in sorted(wanted.keys() | found.keys(), key=repr):
            problem = row_problem(table, wanted.get(key), found.get(key))
            if problem and key[0] not in untold:
                differences.append(
                    Difference(table.name, key[0], place_in_run(table, key), problem)
                )
        if table.name == "runs":
            # Of a run that is missing, its other rows need not be told one by one.
            lost = {key[0] for key in wanted.keys() - found.keys()}
    return differences


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


def loose_ends(engine: Engine) -> Checked:
    """Find what no payload or no ledger row stands behind."""
    with _snapshot(engine) as connection:
        found = [*_strays(connection), *_orphans(connection), *_ledger_faults(connection)]
    return Checked(0, found, [], [])


def _strays(connection: Connection) -> Iterator[Difference]:
    """Find rows of runs that have no payload."""
    archived = select(payloads.c.run_id)
    for table in TABLES:
        query = select(table.c.run_id).where(table.c.run_id.not_in(archived)).distinct()
        for run_id in connection.scalars(query.order_by(table.c.run_id)):
            yield Difference(table.name, str(run_id), "", "has no payload")


def _orphans(connection: Connection) -> Iterator[Difference]:
    """Find rows of runs that the ledger does not have, as no foreign key would let them be."""
    tracked = select(tracked_runs.c.run_id)
    for table in (labels, payloads, rejects):
        query = select(table.c.run_id).where(table.c.run_id.not_in(tracked)).distinct()
        for run_id in connection.scalars(query.order_by(table.c.run_id)):
            yield Difference(table.name, str(run_id), "", "is of a run that is not tracked")


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
