"""Make the derived tables anew from the payloads, where they differ.

Works in batches of runs, each in a transaction of its own: whatever interrupts it, the next call
goes on, since what agrees is left alone.
"""

from collections.abc import Iterator, Sequence
from datetime import tzinfo

from sqlalchemy import (
    Connection,
    Engine,
    delete,
    exists,
    select,
)

from etl.archive.differences import Checked
from etl.archive.payload_batches import NAMES, TABLES, PayloadBatch, expected_rows, payload_batches
from etl.archive.verify import (
    all_plan_ids,
    compare_names,
    compare_plan,
    compare_runs,
    loose_ends,
    stored_names,
)
from etl.config.settings import DEFAULT_RULES, Rules
from etl.db import bulk
from etl.db.database import reading, writing
from etl.db.schema import (
    IS_CURRENT,
    daily_results,
    outcomes,
    plan_variants,
    runs,
    tracked_runs,
)
from etl.derived import aggregates, refresh


def replay_archive(engine: Engine, zone: tzinfo, rules: Rules = DEFAULT_RULES) -> Iterator[Checked]:
    """Rebuild the runs that differ from their payloads, a batch at a time; tell what differed.

    Then the same with what is counted of each plan. What belongs to no payload, and runs whose
    payloads are damaged, are left as they are.
    """
    for run_ids in payload_batches(engine):
        yield _mend_runs(engine, run_ids, zone)
    for plan_id in all_plan_ids(engine):
        yield _mend_plan(engine, plan_id, rules)
    yield loose_ends(engine)


def lacks_counts(engine: Engine) -> bool:
    """Tell whether there are runs or plans that reports know nothing of.

    So there are in an archive from before they were counted, until a whole `replay` has come by.
    """
    is_kept = exists().where(outcomes.c.run_id == runs.c.run_id)
    dated = (
        select(plan_variants.c.plan_id)
        .join(outcomes, outcomes.c.variant_id == plan_variants.c.variant_id)
        .where(IS_CURRENT, outcomes.c.started_on.is_not(None))
        .where(plan_variants.c.plan_id.not_in(select(daily_results.c.plan_id)))
    )
    with reading(engine) as connection:
        return any(
            connection.execute(query.limit(1)).first()
            for query in (select(runs.c.run_id).where(~is_kept), dated)
        )


def _mend_runs(engine: Engine, run_ids: Sequence[str], zone: tzinfo) -> Checked:
    with writing(engine) as connection:
        lock_runs(connection, run_ids)
        batch = expected_rows(connection, run_ids, zone)
        misnamed = compare_names(connection, batch)
        put_names(connection, batch)
        differing = compare_runs(connection, batch)
        _replace(connection, batch, {difference.run_id for difference in differing})
    return Checked(len(run_ids), batch.damage, [*differing, *misnamed], [])


def _mend_plan(engine: Engine, plan_id: str, rules: Rules) -> Checked:
    with writing(engine) as connection:
        refresh.lock_plans(connection, [plan_id])
        differing = compare_plan(connection, plan_id, rules)
        if differing or aggregates.read_dirty_variants(connection, plan_id):
            wanted = aggregates.compute_plan_rows(connection, plan_id, rules)
            aggregates.replace_plan_rows(connection, plan_id, wanted)
    return Checked(0, [], differing, [])


def put_names(connection: Connection, batch: PayloadBatch) -> None:
    """Write those names that are missing or not as they should be."""
    for table in NAMES:
        stored = stored_names(connection, table, batch)
        columns = [column.name for column in table.columns]
        fresh = [
            dict(zip(columns, row, strict=True))
            for key, row in sorted(batch.names[table.name].items())
            if stored.get(key) != row
        ]
        if fresh:
            insert = bulk.upsert_into(connection, table)
            [key_column] = table.primary_key.columns
            changes = {name: insert.excluded[name] for name in columns if name != key_column.name}
            connection.execute(
                insert.on_conflict_do_update(index_elements=[key_column], set_=changes), fresh
            )


def lock_runs(connection: Connection, run_ids: Sequence[str]) -> None:
    """Let nobody else store answers of these runs until the commit: see `ledger.held`."""
    query = select(tracked_runs.c.run_id).where(tracked_runs.c.run_id.in_(run_ids))
    connection.execute(query.order_by(tracked_runs.c.run_id).with_for_update())


def _replace(connection: Connection, batch: PayloadBatch, run_ids: set[str]) -> None:
    for table in reversed(TABLES):
        connection.execute(delete(table).where(table.c.run_id.in_(run_ids)))
    for table in TABLES:
        rows = [row for row in batch.rows[table.name] if row[0] in run_ids]
        bulk.insert(connection, table, rows)
