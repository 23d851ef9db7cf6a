"""The aggregates of plans that have one run: written with the run, from the answer in memory.

So the first runs of many plans need no refresh, which would read them back one by one.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, select

from etl.answers.rows import Row
from etl.config.settings import Rules
from etl.db import bulk
from etl.db.schema import (
    among,
    daily_results,
    durations,
    plan_summaries,
    plan_variants,
    series_metrics,
    variant_rosters,
    weekly_results,
)
from etl.derived.aggregates import (
    build_metrics_row,
    build_period_row,
)
from etl.derived.duration_metrics import compute_durations
from etl.derived.marks import lock_plans
from etl.derived.period_metrics import sum_days, sum_weeks
from etl.derived.plan_summaries import build_first_summary
from etl.derived.plans import NamedTest, Plan, PlanRun, Roster
from etl.derived.series_metrics import compute_series

_ONE_TEST = Roster("", ("",), (NamedTest(None, None),))


class FirstRun(NamedTuple):
    """The only run of a plan; its roster is empty, `test_keys` has 8 bytes for each test."""

    plan: Plan
    run: PlanRun
    test_keys: bytes


def lock_new_plans(
    connection: Connection, plans: Collection[Plan], others: Collection[str]
) -> set[Plan]:
    """Return those of `plans` that have no run; lock them, and `others`, by id (`lock_plans`).

    Checks again after waiting for the lock: a concurrent commit may have stored a run.
    """
    new = _find_new(connection, plans)
    lock_plans(connection, {*others, *(plan.plan_id for plan in new)})
    return _find_new(connection, new)


def _find_new(connection: Connection, plans: Collection[Plan]) -> set[Plan]:
    by_id = {plan.plan_id: plan for plan in plans}
    query = select(plan_variants.c.plan_id).where(among(plan_variants.c.plan_id, by_id))
    known = set(connection.scalars(query)) if by_id else set()
    return {plan for plan_id, plan in by_id.items() if plan_id not in known}


def insert_aggregates(connection: Connection, first_runs: Sequence[FirstRun], rules: Rules) -> None:
    """Insert the aggregates of plans that `lock_new_plans` found to be new.

    The tests of each run need no rows in `series` (`aggregates.find_only_run`).
    """
    runs = [each.run for each in first_runs]
    places = [
        (run.variant_id, run.roster.roster_id, test_keys, run.run_id)
        for _, run, test_keys in first_runs
    ]
    bulk.insert(connection, variant_rosters, places)
    metrics = [
        _build_metrics_row(run, letter, rules) for run in runs for letter in set(run.outcomes)
    ]
    bulk.insert(connection, series_metrics, metrics)
    bulk.insert(
        connection,
        plan_summaries,
        [build_first_summary(each.plan, each.run) for each in first_runs],
    )
    measured = [(run.variant_id, compute_durations([run], rules)) for run in runs]
    bulk.insert(connection, durations, [(key, *found) for key, found in measured if found])
    days = [(each.plan, day) for each in first_runs for day in sum_days([each.run])]
    weeks = [(plan, week) for plan, day in days for week in sum_weeks([day])]
    bulk.insert(connection, daily_results, [build_period_row(*each) for each in days])
    bulk.insert(connection, weekly_results, [build_period_row(*each) for each in weeks])


def _build_metrics_row(run: PlanRun, letter: str, rules: Rules) -> Row:
    """Return the row of `series_metrics` of the tests with this result in their only run."""
    [computed] = compute_series([run._replace(roster=_ONE_TEST, outcomes=letter)], rules)
    return build_metrics_row(run.variant_id, computed, run.started_on)
