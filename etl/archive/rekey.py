"""Rewrite the rows that depend on an application's test-identity rule, after it has changed."""

from collections.abc import Sequence
from datetime import tzinfo

from sqlalchemy import Engine, Select, select

from etl.archive.payload_batches import (
    DEFAULT_LIMITS,
    derive_batch_to_write,
    iterate_batches,
)
from etl.archive.replay import lock_runs, write_names
from etl.db import bulk
from etl.db.database import reading, writing
from etl.db.schema import outcomes, payloads, plan_variants
from etl.derived import aggregates
from etl.derived.marks import mark_plan_dirty
from etl.derived.plans import Application

REKEYED_COLUMNS = ("roster_id", "outcomes")
"""The columns of `outcomes` that depend on the keys of tests."""


def rekey_application(engine: Engine, application: Application, zone: tzinfo) -> None:
    """Rewrite rosters and outcomes of an application's runs, and mark its series as dirty."""
    with reading(engine) as connection:
        plan_ids = aggregates.list_plan_ids_of(connection, application)
    for plan_id in plan_ids:
        chosen = payloads.c.run_id.in_(_select_runs_of_plan(plan_id))
        for run_ids in iterate_batches(engine, DEFAULT_LIMITS, chosen):
            _rekey_runs(engine, run_ids, zone)
        with writing(engine) as connection:
            # A mark locks its run; a commit locks that first, and may wait for the plan.
            lock_runs(connection, _select_runs_of_plan(plan_id))
            mark_plan_dirty(connection, plan_id)


def _rekey_runs(engine: Engine, run_ids: Sequence[str], zone: tzinfo) -> None:
    """Rewrite rosters and outcomes of runs.

    Locks the runs (`lock_runs`), then the test-identity rules (`derive_batch_to_write`).
    """
    with writing(engine) as connection:
        lock_runs(connection, run_ids)
        batch = derive_batch_to_write(connection, run_ids, zone)
        write_names(connection, batch)
        given = [*REKEYED_COLUMNS, *outcomes.primary_key.columns.keys()]
        places = [outcomes.columns.keys().index(name) for name in given]
        rows = [tuple(row[place] for place in places) for row in batch.rows[outcomes.name]]
        bulk.update(connection, outcomes, REKEYED_COLUMNS, rows)


def _select_runs_of_plan(plan_id: str) -> Select[tuple[str]]:
    """Return the query for the runs that were ever of a plan."""
    return (
        select(outcomes.c.run_id)
        .join(plan_variants, plan_variants.c.variant_id == outcomes.c.variant_id)
        .where(plan_variants.c.plan_id == plan_id)
    )
