"""Rebuild the derived tables from the payloads, where they differ.

Each batch of runs has a transaction of its own. After an interruption the next call continues,
since rows that agree are not touched.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from sqlalchemy import Connection, Engine, Select, delete, select

from etl.archive.differences import BatchFindings, Difference
from etl.archive.payload_batches import (
    DEFAULT_LIMITS,
    NAME_TABLES,
    RUN_TABLES,
    BatchLimits,
    PayloadBatch,
    derive_batch_to_write,
    iterate_batches,
)
from etl.archive.processes import Spread, in_turn
from etl.archive.verify import (
    compare_names,
    compare_plan,
    compare_runs,
    find_loose_ends,
    read_names,
    read_plan_ids,
)
from etl.config.settings import Reporting
from etl.db import archive_settings, bulk
from etl.db.database import writing
from etl.db.schema import tracked_runs
from etl.derived import aggregates
from etl.derived.marks import lock_plans, read_dirty_variants

NAMES = {table.name for table in NAME_TABLES}


def replay_archive(
    engine: Engine,
    wanted: Reporting,
    limits: BatchLimits = DEFAULT_LIMITS,
    spread: Spread | None = None,
) -> Iterator[BatchFindings]:
    """Rebuild the runs that differ from their payloads, then the aggregates of each plan.

    All rows are derived with the settings `wanted`. If others are stored, or rows incomplete,
    nothing else derives rows until the end. Yields the differences of each batch after its
    commit. Does not touch runs with damaged payloads, nor rows without a payload.

    Raises:
        DatabaseError: another rebuild has begun, with other settings.
    """
    archive_settings.begin_rebuild(engine, wanted)
    spread = spread or in_turn(engine)
    misnamed: set[Difference] = set()
    batches = iterate_batches(engine, limits)
    for found in spread(partial(_repair_runs, wanted, run_ids) for run_ids in batches):
        of_names = {each for each in found.differing if each.table in NAMES}
        misnamed |= of_names
        yield found._replace(differing=[each for each in found.differing if each not in of_names])
    # Runs of several batches share these rows: any of the batches may have mended them.
    yield BatchFindings(0, [], sorted(misnamed), [])
    yield from spread(partial(_repair_plan, wanted, plan_id) for plan_id in read_plan_ids(engine))
    archive_settings.end_rebuild(engine, wanted)
    yield find_loose_ends(engine)


def _repair_runs(wanted: Reporting, run_ids: Sequence[str], engine: Engine) -> BatchFindings:
    """Rebuild those runs that differ, in one transaction.

    Locks the runs (`lock_runs`), then the test-identity rules (`derive_batch_to_write`).
    """
    with writing(engine) as connection:
        lock_runs(connection, run_ids)
        archive_settings.require_rebuild(connection, wanted)
        batch = derive_batch_to_write(connection, run_ids, wanted.zone)
        misnamed = compare_names(connection, batch)
        write_names(connection, batch)
        differing = compare_runs(connection, batch)
        _replace_rows(connection, batch, {difference.run_id for difference in differing})
    return BatchFindings(len(run_ids), batch.damage, [*differing, *misnamed], [])


def _repair_plan(wanted: Reporting, plan_id: str, engine: Engine) -> BatchFindings:
    """Recompute the aggregates of a plan, if they differ or are dirty. Locks the plan."""
    with writing(engine) as connection:
        lock_plans(connection, [plan_id])
        archive_settings.require_rebuild(connection, wanted)
        differing = compare_plan(connection, plan_id, wanted.rules)
        if differing or read_dirty_variants(connection, plan_id):
            aggregates.recompute_plan(connection, plan_id, wanted.rules)
    return BatchFindings(0, [], differing, [])


def write_names(connection: Connection, batch: PayloadBatch) -> None:
    """Write those plan variants and rosters of a batch that are missing or differ."""
    for table in NAME_TABLES:
        stored = read_names(connection, table, batch)
        columns = [column.name for column in table.columns]
        differing = [
            dict(zip(columns, row, strict=True))
            for key, row in sorted(batch.names[table.name].items())
            if stored.get(key) != row
        ]
        if differing:
            insert = bulk.upsert_into(connection, table)
            [key_column] = table.primary_key.columns
            changes = {name: insert.excluded[name] for name in columns if name != key_column.name}
            connection.execute(
                insert.on_conflict_do_update(index_elements=[key_column], set_=changes), differing
            )


def lock_runs(connection: Connection, run_ids: Sequence[str] | Select[tuple[str]]) -> None:
    """Lock the ledger rows of these runs until commit, so that nobody else stores their answers.

    In the order of run IDs, like `leases.lock_held`; before test-identity and plan locks.
    """
    query = select(tracked_runs.c.run_id).where(tracked_runs.c.run_id.in_(run_ids))
    connection.execute(query.order_by(tracked_runs.c.run_id).with_for_update())


def _replace_rows(connection: Connection, batch: PayloadBatch, run_ids: set[str]) -> None:
    for table in reversed(RUN_TABLES):
        connection.execute(delete(table).where(table.c.run_id.in_(run_ids)))
    for table in RUN_TABLES:
        rows = [row for row in batch.rows[table.name] if row[0] in run_ids]
        bulk.insert(connection, table, rows)
