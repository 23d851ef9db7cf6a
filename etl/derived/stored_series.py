"""The stored series: each has a row in `series`, but those of a variant's only run have none.

These follow from the rows of the run's tests, its letters, and the keys in `variant_rosters`. With
names that are new in each run, to write a row for each test would take as long as the rest.
"""

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    Text,
    and_,
    cast,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    type_coerce,
    update,
)

from etl.db import bulk
from etl.db.schema import (
    HAS_METRICS,
    IS_CURRENT,
    among,
    outcomes,
    plan_variants,
    series,
    series_id_of_test,
    series_metrics,
    tests,
    variant_rosters,
)
from etl.derived.outcome_reader import NEWEST_FIRST, OLDEST_FIRST


class SeriesColumns(NamedTuple):
    """The tables of stored series, with their plans and metrics, and the columns of a series."""

    tables: FromClause
    series_id: ColumnElement[str]
    test: ColumnElement[str | None]
    type: ColumnElement[str | None]
    test_id: ColumnElement[str | None]


_EMPTY_TEXT = literal_column("''", Text)
_WITH_ROWS = SeriesColumns(
    plan_variants.join(series, series.c.variant_id == plan_variants.c.variant_id).join(
        series_metrics, HAS_METRICS
    ),
    series.c.series_id,
    series.c.test,
    series.c.type,
    series.c.test_id,
)
_HAS_ITS_LETTER = and_(
    series_metrics.c.variant_id == variant_rosters.c.variant_id,
    series_metrics.c.recent == func.substr(outcomes.c.outcomes, cast(tests.c.position, Integer), 1),
)
# As text, in which SQLite finds no index: it would read all outcomes of a variant for one of them.
IS_ONLY_RUN = and_(
    outcomes.c.run_id == variant_rosters.c.only_run_id,
    outcomes.c.variant_id + _EMPTY_TEXT == variant_rosters.c.variant_id,
    outcomes.c.roster_id + _EMPTY_TEXT == variant_rosters.c.roster_id,
    IS_CURRENT,
)
"""The outcome is that of a run whose tests have no rows in `series`."""
_OF_ONLY_RUNS = SeriesColumns(
    plan_variants.join(variant_rosters, variant_rosters.c.variant_id == plan_variants.c.variant_id)
    .join(outcomes, IS_ONLY_RUN)
    .join(tests, tests.c.run_id == variant_rosters.c.only_run_id)
    .join(series_metrics, _HAS_ITS_LETTER),
    series_id_of_test(),
    tests.c.name,
    tests.c.type,
    type_coerce(null(), Text),
)
STORED_SERIES = (_WITH_ROWS, _OF_ONLY_RUNS)
"""All stored series, of which none is in both: those with rows, those of only runs."""


def find_plans_of_only_runs(connection: Connection, variant_ids: Collection[str]) -> list[str]:
    """Return the ids of the plans of those variants that have one run.

    Also of those in whose rows a concurrent refresh may be about to say so.
    """
    if not variant_ids:
        return []
    has_only_run = exists().where(
        variant_rosters.c.variant_id == plan_variants.c.variant_id,
        variant_rosters.c.only_run_id.is_not(None),
    )
    first, last = (
        select(outcomes.c.run_id)
        .where(
            outcomes.c.variant_id == plan_variants.c.variant_id,
            outcomes.c.started_at.is_not(None),
            IS_CURRENT,
        )
        .order_by(*order)
        .limit(1)
        .correlate(plan_variants)
        .scalar_subquery()
        for order in (NEWEST_FIRST, OLDEST_FIRST)
    )
    query = select(plan_variants.c.plan_id).where(
        among(plan_variants.c.variant_id, variant_ids), or_(has_only_run, first == last)
    )
    return list(connection.scalars(query))


def write_rows_of_only_runs(connection: Connection, variant_ids: Collection[str]) -> None:
    """Write the rows of the series of variants' only runs, before one of these is changed.

    The caller has locked the plans (`marks.lock_plans`).
    """
    if not variant_ids:
        return
    is_chosen = among(variant_rosters.c.variant_id, variant_ids)
    had_one = and_(is_chosen, variant_rosters.c.only_run_id.is_not(None))
    of = _OF_ONLY_RUNS
    columns = (variant_rosters.c.variant_id, of.series_id, of.test, of.type, of.test_id)
    rows = select(*columns, series_metrics.c.metrics_id).select_from(of.tables).where(had_one)
    insert = bulk.upsert_into(connection, series).from_select(series.columns.keys(), rows)
    connection.execute(insert.on_conflict_do_nothing())
    connection.execute(update(variant_rosters).where(had_one).values(only_run_id=None))
