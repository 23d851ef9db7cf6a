"""The rows of the aggregates, the tables that reports and BI tools read, and their recomputation.

They follow from `outcomes` by the rules of the metrics. `refresh` keeps them up to date; `verify`
and `replay` recompute those of a whole plan here, and compare.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Select, Table, delete, select

from etl.answers.rows import Row
from etl.config.settings import Rules
from etl.db import bulk
from etl.db.schema import (
    PLAN_NAMES,
    daily_results,
    durations,
    plan_variants,
    series,
    uncounted,
    weekly_results,
)
from etl.derived.duration_metrics import compute_durations
from etl.derived.identity_rules import IdentityRules, of_application
from etl.derived.metrics import compute_rates
from etl.derived.outcome_reader import NewestRuns, RosterCache
from etl.derived.period_metrics import Period, sum_days, sum_periods, sum_weeks
from etl.derived.plans import Application, Plan, hash_text
from etl.derived.series_metrics import Series, compute_series

AGGREGATES = (series, durations, daily_results, weekly_results)
KEYED_BY_PLAN = (plan_variants, daily_results, weekly_results)
KEYS_AT_ONCE = 500


def build_series_id(variant_id: str, test_key: str) -> str:
    """Return the key of a series."""
    return hash_text(f"{variant_id}{test_key}")


def build_series_row(variant_id: str, computed: Series) -> Row:
    """Return the row of `series`."""
    return (
        variant_id,
        build_series_id(variant_id, computed.test_key),
        computed.test_key,
        *computed.test,
        computed.counts.decided,
        *computed.counts.in_column_order,
        *compute_rates(computed.counts),
        computed.flips,
        computed.flip_rate,
        computed.health,
        computed.is_flaky,
        computed.is_confirmed_flaky,
        computed.is_regression,
        computed.is_new_failure,
        computed.is_always_failing,
        computed.is_recovered,
        computed.fail_streak,
        computed.streak_since,
        computed.recent,
        computed.last_status,
        computed.last_run_id,
        computed.last_started_at,
        computed.window_starts_at,
    )


def build_period_row(plan: Plan, period: Period) -> Row:
    """Return the row of `daily_results` or `weekly_results`."""
    return (
        plan.plan_id,
        period.first_day,
        period.first_day.isoformat(),
        plan.source,
        plan.application,
        plan.plan,
        period.runs,
        period.tests,
        *period.counts.in_column_order,
        period.unknown,
        *compute_rates(period.counts),
        *period.checks.in_column_order,
        compute_rates(period.checks).pass_rate,
    )


def list_plan_ids(connection: Connection) -> list[str]:
    """Return the ids of all plans that occur in any table here, sorted."""
    queries = [select(table.c.plan_id) for table in KEYED_BY_PLAN]
    ids = {plan_id for query in queries for plan_id in connection.scalars(query.distinct())}
    return sorted(ids, key=str)  # a damaged SQLite cell can have another type, which verify reports


def list_plan_ids_of(connection: Connection, application: Application) -> list[str]:
    """Return the ids of an application's plans, sorted."""
    query = select(plan_variants.c.plan_id).distinct().order_by(plan_variants.c.plan_id)
    return list(connection.scalars(query.where(of_application(plan_variants, application))))


def compute_plan_rows(connection: Connection, plan_id: str, rules: Rules) -> dict[str, list[Row]]:
    """Return the rows that each aggregate should have of a plan, by table."""
    rows: dict[str, list[Row]] = {table.name: [] for table in AGGREGATES}
    names = select(*PLAN_NAMES)
    stored = connection.execute(names.where(plan_variants.c.plan_id == plan_id)).first()
    if stored is None:
        return rows
    plan = Plan(*stored)
    cache = RosterCache(connection, IdentityRules(connection).for_plan(plan))
    periods: list[Period] = []
    for variant_id in read_variant_ids(connection, plan_id):
        newest_runs = NewestRuns(connection, variant_id, cache)
        computed = compute_series(newest_runs, rules)
        rows["series"] += [build_series_row(variant_id, each) for each in computed]
        measured = compute_durations(newest_runs, rules)
        rows["durations"] += [(variant_id, *measured)] if measured else []
        periods += sum_days(newest_runs)
    rows["daily_results"] = [build_period_row(plan, each) for each in sum_periods(periods)]
    rows["weekly_results"] = [build_period_row(plan, each) for each in sum_weeks(periods)]
    return rows


def read_dirty_variants(connection: Connection, plan_id: str) -> set[str]:
    """Return the variants of a plan with a dirty mark."""
    is_in_plan = uncounted.c.variant_id.in_(select_variant_ids(plan_id))
    return set(connection.scalars(select(uncounted.c.variant_id).where(is_in_plan)))


def read_plan_rows(connection: Connection, plan_id: str, table: Table) -> list[Row]:
    """Return the stored rows of a plan in one of the aggregates, as raw driver values."""
    if table in KEYED_BY_PLAN:
        return bulk.read(connection, table, [plan_id], "plan_id")
    ids = read_variant_ids(connection, plan_id)
    return [
        row
        for start in range(0, len(ids), KEYS_AT_ONCE)
        for row in bulk.read(connection, table, ids[start : start + KEYS_AT_ONCE], "variant_id")
    ]


def replace_plan_rows(
    connection: Connection, plan_id: str, rows: Mapping[str, Sequence[Row]]
) -> None:
    """Replace the stored rows of a plan in all aggregates, and delete its dirty marks."""
    for table in (uncounted, series, durations):
        connection.execute(delete(table).where(table.c.variant_id.in_(select_variant_ids(plan_id))))
    for table in (daily_results, weekly_results):
        connection.execute(delete(table).where(table.c.plan_id == plan_id))
    for table in AGGREGATES:
        bulk.insert(connection, table, rows[table.name])


def read_variant_ids(connection: Connection, plan_id: str) -> list[str]:
    """Return the ids of a plan's variants, sorted."""
    query = select_variant_ids(plan_id).order_by(plan_variants.c.variant_id)
    return list(connection.scalars(query))


def select_variant_ids(plan_id: str) -> Select[tuple[str]]:
    """Return the query for the ids of a plan's variants."""
    return select(plan_variants.c.variant_id).where(plan_variants.c.plan_id == plan_id)
