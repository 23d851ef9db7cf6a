"""Write what depends on how tests are known, after that has changed for an application."""

from collections.abc import Sequence
from datetime import tzinfo

from sqlalchemy import (
    Engine,
    Select,
    select,
)

from etl.archive.payload_batches import expected_rows, payload_batches
from etl.archive.replay import lock_runs, put_names
from etl.db import bulk
from etl.db.database import reading, writing
from etl.db.schema import (
    outcomes,
    payloads,
    plan_variants,
)
from etl.derived import aggregates, refresh

REKEYED = ("roster_id", "outcomes")
"""The columns of `outcomes` that depend on how tests are known."""


def rekey_application(engine: Engine, application: str, zone: tzinfo) -> None:
    """Name the tests of an application's runs anew, which are known by other keys than before.

    Its series are marked to be counted anew.
    """
    with reading(engine) as connection:
        plans = aggregates.list_plan_ids_of(connection, application)
    for plan_id in plans:
        for run_ids in payload_batches(engine, payloads.c.run_id.in_(_runs_of_plan(plan_id))):
            _rekey_runs(engine, run_ids, zone)
        with writing(engine) as connection:
            refresh.mark_plan_dirty(connection, plan_id)


def _rekey_runs(engine: Engine, run_ids: Sequence[str], zone: tzinfo) -> None:
    """Write what the keys of tests decide: lists of tests, and the order of outcomes in them."""
    with writing(engine) as connection:
        lock_runs(connection, run_ids)
        batch = expected_rows(connection, run_ids, zone)
        put_names(connection, batch)
        given = [*REKEYED, *outcomes.primary_key.columns.keys()]
        places = [outcomes.columns.keys().index(name) for name in given]
        rows = [tuple(row[place] for place in places) for row in batch.rows[outcomes.name]]
        bulk.update(connection, outcomes, REKEYED, rows)


def _runs_of_plan(plan_id: str) -> Select[tuple[str]]:
    """Return the query for the runs that were ever of a plan."""
    return (
        select(outcomes.c.run_id)
        .join(plan_variants, plan_variants.c.variant_id == outcomes.c.variant_id)
        .where(plan_variants.c.plan_id == plan_id)
    )
