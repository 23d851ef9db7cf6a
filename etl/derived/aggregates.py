"""The tables that reports and BI tools read: the rows that they have of a plan, all computed anew.

They follow from `outcomes` by the rules of the metrics. `refresh` keeps them up to date;
`replay` and `verify` compute all anew here and hold it against what is stored.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import (
    Connection,
    Select,
    Table,
    delete,
    select,
)

from etl.config.settings import Rules
from etl.db import bulk
from etl.db.bulk import Row
from etl.db.schema import (
    daily_results,
    durations,
    plan_variants,
    series,
    uncounted,
    weekly_results,
)
from etl.derived.duration_metrics import durations_of
from etl.derived.identity_rules import Namings
from etl.derived.metrics import Counts, rates
from etl.derived.outcome_reader import NewestFirst, RosterBook, chunks
from etl.derived.period_metrics import Period, days_of, summed, weeks_of
from etl.derived.plans import Plan, short_hash
from etl.derived.series_metrics import Series, series_of

AGGREGATES = (series, durations, daily_results, weekly_results)
NAMED_BY_PLAN = (plan_variants, daily_results, weekly_results)


def series_id(variant_id: str, test_key: str) -> str:
    """Return the key of a series."""
    return short_hash(f"{variant_id}{test_key}")


def _in_columns(counts: Counts) -> tuple[int, ...]:
    """Return counts in the order of `schema.COUNTERS`."""
    return counts.failed, counts.passed, counts.aborted, counts.pending, counts.unresolved


def series_row(variant_id: str, found: Series) -> Row:
    """Return the row of `series`."""
    return (
        variant_id,
        series_id(variant_id, found.test_key),
        found.test_key,
        *found.test,
        found.counts.decided,
        *_in_columns(found.counts),
        *rates(found.counts),
        found.flips,
        found.flip_rate,
        found.health,
        found.is_flaky,
        found.is_confirmed_flaky,
        found.is_regression,
        found.is_new_failure,
        found.is_always_failing,
        found.is_recovered,
        found.fail_streak,
        found.streak_since,
        found.recent,
        found.last_status,
        found.last_run_id,
        found.last_started_at,
        found.window_starts_at,
    )


def period_row(plan: Plan, period: Period) -> Row:
    """Return the row of `daily_results` or `weekly_results`."""
    return (
        plan.plan_id,
        period.first_day,
        plan.application,
        plan.plan,
        period.runs,
        period.tests,
        *_in_columns(period.counts),
        period.unknown,
        *rates(period.counts),
        *_in_columns(period.checks),
        rates(period.checks).pass_rate,
    )


def plan_ids(connection: Connection) -> list[str]:
    """Return the plans that are named anywhere here, in the order of their ids."""
    queries = [select(table.c.plan_id) for table in NAMED_BY_PLAN]
    found = {plan_id for query in queries for plan_id in connection.scalars(query.distinct())}
    return sorted(found, key=str)  # SQLite may have been given something else, for verify to find


def plan_ids_of(connection: Connection, application: str) -> list[str]:
    """Return the plans of an application, in the order of their ids."""
    query = select(plan_variants.c.plan_id).distinct().order_by(plan_variants.c.plan_id)
    return list(connection.scalars(query.where(plan_variants.c.application == application)))


def expected(connection: Connection, plan_id: str, rules: Rules) -> dict[str, list[Row]]:
    """Return all rows that the aggregates should have of a plan, by table."""
    rows: dict[str, list[Row]] = {table.name: [] for table in AGGREGATES}
    names = select(plan_variants.c.application, plan_variants.c.plan)
    found = connection.execute(names.where(plan_variants.c.plan_id == plan_id)).first()
    if found is None:
        return rows
    plan = Plan(*found)
    book = RosterBook(connection, Namings(connection).of(plan))
    periods: list[Period] = []
    for variant_id in variant_ids_of(connection, plan_id):
        newest_first = NewestFirst(connection, variant_id, book)
        rows["series"] += [series_row(variant_id, each) for each in series_of(newest_first, rules)]
        measured = durations_of(newest_first, rules)
        rows["durations"] += [(variant_id, *measured)] if measured else []
        periods += days_of(newest_first)
    rows["daily_results"] = [period_row(plan, each) for each in summed(periods)]
    rows["weekly_results"] = [period_row(plan, each) for each in weeks_of(periods)]
    return rows


def uncounted_variants(connection: Connection, plan_id: str) -> set[str]:
    """Return the variants of a plan whose series are not up to date yet."""
    is_in_plan = uncounted.c.variant_id.in_(in_plan(plan_id))
    return set(connection.scalars(select(uncounted.c.variant_id).where(is_in_plan)))


def stored(connection: Connection, plan_id: str, table: Table) -> list[Row]:
    """Return the rows that one of the aggregates has of a plan, as the driver gives them."""
    if table in NAMED_BY_PLAN:
        return bulk.read(connection, table, [plan_id], "plan_id")
    return [
        row
        for chunk in chunks(variant_ids_of(connection, plan_id))
        for row in bulk.read(connection, table, chunk, "variant_id")
    ]


def replace(connection: Connection, plan_id: str, rows: Mapping[str, Sequence[Row]]) -> None:
    """Put `rows` in the place of all that the aggregates have of a plan."""
    connection.execute(delete(uncounted).where(uncounted.c.variant_id.in_(in_plan(plan_id))))
    for table in (series, durations):
        connection.execute(delete(table).where(table.c.variant_id.in_(in_plan(plan_id))))
    for table in (daily_results, weekly_results):
        connection.execute(delete(table).where(table.c.plan_id == plan_id))
    for table in AGGREGATES:
        bulk.insert(connection, table, rows[table.name])


def variant_ids_of(connection: Connection, plan_id: str) -> list[str]:
    """Return the variants of a plan, in the order of their ids."""
    return list(connection.scalars(in_plan(plan_id).order_by(plan_variants.c.variant_id)))


def in_plan(plan_id: str) -> Select[tuple[str]]:
    """Return the query for the variants of a plan."""
    return select(plan_variants.c.variant_id).where(plan_variants.c.plan_id == plan_id)
