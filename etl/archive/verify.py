"""Compare the archive with its payloads, and report every difference."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

from sqlalchemy import Connection, Engine, Table, and_, func, select
from sqlalchemy.exc import DataError, DBAPIError, StatementError

from etl.answers.rows import COUNTERS, Row
from etl.archive.differences import (
    BatchFindings,
    Difference,
    compare_rows,
    describe_place,
    describe_problem,
    describe_unreadable,
    key_rows,
)
from etl.archive.identity_records import find_identity_faults
from etl.archive.payload_batches import (
    DEFAULT_LIMITS,
    NAME_TABLES,
    RUN_TABLES,
    BatchLimits,
    PayloadBatch,
    derive_batch,
    iterate_batches,
    read_rows,
)
from etl.archive.processes import Spread, Task, in_turn
from etl.config.settings import Reporting, Rules
from etl.db import bulk
from etl.db.database import reading, snapshot
from etl.db.schema import labels, payloads, rejects, tracked_runs
from etl.derived import aggregates
from etl.derived.marks import read_dirty_variants


def verify_archive(
    engine: Engine,
    derived_with: Reporting,
    limits: BatchLimits = DEFAULT_LIMITS,
    spread: Spread | None = None,
) -> Iterator[BatchFindings]:
    """Check all runs, a batch at a time, then loose ends, then the aggregates of each plan.

    Rows are compared with those that the settings `derived_with` give. Each check reads one
    snapshot, and takes no lock.
    """
    spread = spread or in_turn(engine)
    yield from spread(_list_checks(engine, derived_with, limits))


def _list_checks(engine: Engine, derived_with: Reporting, limits: BatchLimits) -> Iterator[Task]:
    for run_ids in iterate_batches(engine, limits):
        yield partial(_verify_runs, derived_with, run_ids)
    yield find_loose_ends  # not last: it takes long, and nothing else would be done meanwhile
    for plan_id in read_plan_ids(engine):
        yield partial(_verify_plan, derived_with, plan_id)


def _verify_runs(derived_with: Reporting, run_ids: Sequence[str], engine: Engine) -> BatchFindings:
    with snapshot(engine) as connection:
        batch = derive_batch(connection, run_ids, derived_with.zone)
        differing = [*compare_runs(connection, batch), *compare_names(connection, batch)]
    mismatches = _find_mismatches(batch.rows["counts"])
    return BatchFindings(len(run_ids), batch.damage, differing, mismatches)


def _verify_plan(derived_with: Reporting, plan_id: str, engine: Engine) -> BatchFindings:
    with snapshot(engine) as connection:
        try:
            differing = compare_plan(connection, plan_id, derived_with.rules)
        except (ArithmeticError, LookupError, TypeError, ValueError, StatementError) as error:
            # A value that cannot be sent back is no DBAPIError: the database never saw it.
            if isinstance(error, DBAPIError) and not isinstance(error, DataError):
                raise
            # The damaged cell was reported with its run.
            differing = [Difference("outcomes", "", f"plan_id {plan_id}", "cannot be counted")]
    return BatchFindings(0, [], differing, [])


def read_plan_ids(engine: Engine) -> list[str]:
    """Return the ids of all plans, sorted."""
    with reading(engine) as connection:
        return aggregates.list_plan_ids(connection)


def compare_plan(connection: Connection, plan_id: str, rules: Rules) -> list[Difference]:
    """Compare the aggregates of a plan with its outcomes, except those with a dirty mark."""
    dirty = read_dirty_variants(connection, plan_id)
    computed = aggregates.compute_plan_rows(connection, plan_id, rules)
    differing: list[Difference] = []
    for table in aggregates.AGGREGATES:
        wanted = bulk.to_driver_values(connection, table.columns, computed[table.name])
        try:
            stored = aggregates.read_plan_rows(connection, plan_id, table)
        except DBAPIError as error:
            place = f"plan_id {plan_id}"
            differing.append(Difference(table.name, "", place, describe_unreadable(error)))
            continue
        # A pass was interrupted before it refreshed these: the next pass does.
        skipped = dirty if "variant_id" in table.c else {plan_id} if dirty else set()
        wanted, stored = (
            [row for row in rows if row[0] not in skipped] for rows in (wanted, stored)
        )
        differing += compare_rows(table, key_rows(table, wanted), key_rows(table, stored))
    return differing


def compare_names(connection: Connection, batch: PayloadBatch) -> list[Difference]:
    """Compare the plan variants and rosters of a batch with its answers."""
    return [
        difference
        for table in NAME_TABLES
        for difference in compare_rows(
            table, batch.names[table.name], read_names(connection, table, batch)
        )
    ]


def read_names(connection: Connection, table: Table, batch: PayloadBatch) -> dict[Row, Row]:
    """Return the stored rows of one of `NAME_TABLES` that a batch refers to, by key."""
    [column] = table.primary_key.columns
    keys = [key for [key] in batch.names[table.name]]
    return key_rows(table, bulk.read(connection, table, keys, column.name))


def compare_runs(connection: Connection, batch: PayloadBatch) -> list[Difference]:
    """Compare the derived rows of whole runs, cell by cell, as raw driver values."""
    differences: list[Difference] = []
    lost: set[str] = set()
    for table in RUN_TABLES:
        rows, unreadable = read_rows(connection, table, batch.whole)
        differences += unreadable
        skipped = lost | {difference.run_id for difference in unreadable}
        wanted = key_rows(
            table, bulk.to_driver_values(connection, table.columns, batch.rows[table.name])
        )
        stored = key_rows(table, rows)
        _, *names = [column.name for column in table.primary_key]
        for key in sorted(wanted.keys() | stored.keys(), key=repr):
            problem = describe_problem(table, wanted.get(key), stored.get(key))
            if problem and key[0] not in skipped:
                place = describe_place(names, key[1:])
                differences.append(Difference(table.name, key[0], place, problem))
        if table.name == "runs":
            # If the run itself is missing, do not report its other rows one by one.
            lost = {key[0] for key in wanted.keys() - stored.keys()}
    return differences


def _find_mismatches(count_rows: Sequence[Row]) -> list[Difference]:
    """Compare each run's own counters with the sums of its tests' counters."""
    mismatches = []
    for run_id, group in groupby(count_rows, key=lambda row: row[0]):
        own, *tests = group
        for index, name in enumerate(COUNTERS, start=3):
            values = [row[index] for row in tests]
            is_known = tests and own[index] is not None and None not in values
            if is_known and own[index] != sum(values):
                problem = f"{name} is {own[index]}, its tests have {sum(values)}"
                mismatches.append(Difference("counts", run_id, "", problem))
    return mismatches


def find_loose_ends(engine: Engine) -> BatchFindings:
    """Find rows without a payload or a ledger row, and contradictions with the ledger."""
    with snapshot(engine) as connection:
        damage = [
            *_find_rows_without_payload(connection),
            *_find_untracked_rows(connection),
            *_find_ledger_faults(connection),
        ]
        differing = list(find_identity_faults(connection))
    return BatchFindings(0, damage, differing, [])


def _find_rows_without_payload(connection: Connection) -> Iterator[Difference]:
    for table in RUN_TABLES:
        yield from _find_rows_outside(connection, table, payloads, "has no payload")


def _find_untracked_rows(connection: Connection) -> Iterator[Difference]:
    """Find rows of runs that the ledger does not have, although foreign keys forbid them."""
    for table in (labels, payloads, rejects):
        problem = "is of a run that is not tracked"
        yield from _find_rows_outside(connection, table, tracked_runs, problem)


def _find_rows_outside(
    connection: Connection, table: Table, parent: Table, problem: str
) -> Iterator[Difference]:
    """Find runs in `table` that `parent` does not have."""
    query = select(table.c.run_id).where(table.c.run_id.not_in(select(parent.c.run_id))).distinct()
    for run_id in connection.scalars(query.order_by(table.c.run_id)):
        yield Difference(table.name, str(run_id), "", problem)


def _find_ledger_faults(connection: Connection) -> Iterator[Difference]:
    """Find runs for which the ledger and the archive contradict each other."""
    newest = (
        select(payloads.c.run_id, func.max(payloads.c.fetched_at).label("at"))
        .group_by(payloads.c.run_id)
        .subquery()
    )
    fetched_at = tracked_runs.c.last_fetched_at
    faults = {
        "was fetched, yet is not archived": and_(newest.c.at.is_(None), fetched_at.is_not(None)),
        "is archived, yet was never fetched": and_(newest.c.at.is_not(None), fetched_at.is_(None)),
        "last_fetched_at is before its newest payload": fetched_at < newest.c.at,
    }
    joined = select(tracked_runs.c.run_id).outerjoin(
        newest, newest.c.run_id == tracked_runs.c.run_id
    )
    for problem, is_fault in faults.items():
        for run_id in connection.scalars(joined.where(is_fault).order_by(tracked_runs.c.run_id)):
            yield Difference("tracked_runs", run_id, "", problem)
