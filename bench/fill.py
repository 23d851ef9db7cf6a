"""Fill an archive with many runs, in a fraction of the time that it takes to fetch them.

The rows are those of an ingest soon after each run was over: made by the same functions, but
written without a look at what is there, and counted for reports once, at the end.
"""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Engine

from bench.contenders.limit import RUNS_A_TRANSACTION, merged, prepared, tables_of, write
from bench.content import Offer, run_id
from etl.config.settings import DEFAULT_RULES
from etl.db.database import reading, writing
from etl.derived import aggregates
from etl.derived.identity_rules import read_id_keyed

SEEN_AFTER = timedelta(hours=2)


def fill(engine: Engine, offer: Offer) -> None:
    """Add runs that are not there yet. The plans' own names and keys are as a pass left them."""
    indexes = offer.indexes()
    for start in range(0, len(indexes), RUNS_A_TRANSACTION):
        _add(engine, offer, indexes[start : start + RUNS_A_TRANSACTION])
    with reading(engine) as connection:
        plan_ids = aggregates.list_plan_ids(connection)
    for plan_id in plan_ids:
        with writing(engine) as connection:
            rows = aggregates.compute_plan_rows(connection, plan_id, DEFAULT_RULES)
            aggregates.replace_plan_rows(connection, plan_id, rows)


def _add(engine: Engine, offer: Offer, indexes: Sequence[int]) -> None:
    with writing(engine) as connection:
        id_keyed = read_id_keyed(connection)
        made = [
            tables_of(
                run_id(index),
                offer.answer(index),
                offer.history.started_at(index) + SEEN_AFTER,
                id_keyed,
            )
            for index in indexes
        ]
        write(connection, prepared(connection, merged(made)))
