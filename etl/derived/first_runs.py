"""The aggregates of plans that have one run: written with the run, from the answer in memory.

So the first runs of many plans need no refresh, which would read them back one by one.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, select

from etl.config.settings import Rules
from etl.db import bulk
from etl.db.schema import (
    among,
    daily_results,
    durations,
    plan_summaries,
    plan_variants,
    roster_series,
    series,
    weekly_results,
)
from etl.derived.aggregates import (
    add_first_days,
    build_period_row,
    build_roster_series,
    compute_variant_rows,
)
from etl.derived.marks import lock_plans
from etl.derived.period_metrics import sum_days, sum_weeks
from etl.derived.plan_summaries import build_first_summary
from etl.derived.plans import Plan, PlanRun


class FirstRun(NamedTuple):
    """The only run of a plan."""

    plan: Plan
    run: PlanRun


def lock_new_plans(connection: Connection, plans: Collection[Plan]) -> set[Plan]:
    """Return those of `plans` that have no run, and lock them until commit (`lock_plans`).

    Checks again after waiting for the lock: a concurrent commit may have stored a run.
    """
    new = _find_new(connection, plans)
    lock_plans(connection, [plan.plan_id for plan in new])
    return _find_new(connection, new)


def _find_new(connection: Connection, plans: Collection[Plan]) -> set[Plan]:
    by_id = {plan.plan_id: plan for plan in plans}
    query = select(plan_variants.c.plan_id).where(among(plan_variants.c.plan_id, by_id))
    known = set(connection.scalars(query)) if by_id else set()
    return {plan for plan_id, plan in by_id.items() if plan_id not in known}


def insert_aggregates(connection: Connection, first_runs: Sequence[FirstRun], rules: Rules) -> None:
    """Insert the aggregates of plans that `lock_new_plans` found to be new."""
    computed = [compute_variant_rows(each.run.variant_id, [each.run], rules) for each in first_runs]
    runs = [each.run for each in first_runs]
    places = [build_roster_series(run.variant_id, run.roster) for run in runs]
    bulk.insert(connection, roster_series, [row for rows in places for row in rows])
    first_days = {
        row[-1]: run.started_on
        for run, rows in zip(runs, places, strict=True)
        for row in rows
        if run.started_on
    }
    series_rows = [row for each in computed for row in each.series]
    bulk.insert(connection, series, add_first_days(series_rows, first_days))
    summaries = [
        build_first_summary(*each, rows.series)
        for each, rows in zip(first_runs, computed, strict=True)
    ]
    bulk.insert(connection, plan_summaries, summaries)
    bulk.insert(connection, durations, [row for each in computed for row in each.durations])
    days = [(each.plan, day) for each in first_runs for day in sum_days([each.run])]
    weeks = [(plan, week) for plan, day in days for week in sum_weeks([day])]
    bulk.insert(connection, daily_results, [build_period_row(*each) for each in days])
    bulk.insert(connection, weekly_results, [build_period_row(*each) for each in weeks])
