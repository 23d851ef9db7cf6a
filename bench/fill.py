"""Fill an archive with many runs, in a fraction of the time of an ingest.

The same functions make the same rows as an ingest soon after each run's end. But nothing reads
existing rows first, and the derived tables are computed once, at the end.
"""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Engine

from bench.contenders.limit import (
    RUNS_A_TRANSACTION,
    make_tables,
    merge_tables,
    prepare_values,
    write,
)
from bench.content import Offer, run_id
from etl.config.settings import DEFAULT_RULES
from etl.db.database import reading, writing
from etl.derived import aggregates
from etl.derived.identity_rules import read_ids_until

SEEN_AFTER = timedelta(hours=2)


def fill(engine: Engine, offer: Offer) -> None:
    """Add new runs. A pass has decided the names and test keys of the plans before."""
    indexes = offer.indexes()
    for start in range(0, len(indexes), RUNS_A_TRANSACTION):
        _add(engine, offer, indexes[start : start + RUNS_A_TRANSACTION])
    with reading(engine) as connection:
        plan_ids = aggregates.list_plan_ids(connection)
    for plan_id in plan_ids:
        with writing(engine) as connection:
            aggregates.recompute_plan(connection, plan_id, DEFAULT_RULES)


def _add(engine: Engine, offer: Offer, indexes: Sequence[int]) -> None:
    with writing(engine) as connection:
        ids_until = read_ids_until(connection)
        made = [
            make_tables(
                run_id(index),
                offer.answer(index),
                offer.history.started_at(index) + SEEN_AFTER,
                ids_until,
            )
            for index in indexes
        ]
        write(connection, prepare_values(connection, merge_tables(made)))
