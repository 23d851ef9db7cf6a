"""The aggregates of plans that have one run: written with the run, from the answer in memory.

So the first runs of many plans need no refresh, which would read them back one by one.
"""

from collections.abc import Collection, Sequence
from operator import itemgetter
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
    roster_series,
    series,
    series_metrics,
    weekly_results,
)
from etl.derived.aggregates import (
    SeriesRows,
    build_metrics_row,
    build_period_row,
    build_roster_series,
    build_series_id,
)
from etl.derived.duration_metrics import compute_durations
from etl.derived.marks import lock_plans
from etl.derived.period_metrics import sum_days, sum_weeks
from etl.derived.plan_summaries import build_first_summary
from etl.derived.plans import Plan, PlanRun
from etl.derived.series_metrics import compute_series

_FLAKY_PLACE = series_metrics.columns.keys().index("is_flaky")


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
    runs = [each.run for each in first_runs]
    places = [build_roster_series(run.variant_id, run.roster) for run in runs]
    bulk.insert(connection, roster_series, [row for rows in places for row in rows])
    found = [_build_series_rows(run, rules) for run in runs]
    bulk.insert(connection, series, [row for rows in found for row in rows.series])
    bulk.insert(connection, series_metrics, [row for rows in found for row in rows.metrics])
    summaries = [
        build_first_summary(*each, _count_flaky(rows))
        for each, rows in zip(first_runs, found, strict=True)
    ]
    bulk.insert(connection, plan_summaries, summaries)
    measured = [(run.variant_id, compute_durations([run], rules)) for run in runs]
    bulk.insert(connection, durations, [(key, *found) for key, found in measured if found])
    days = [(each.plan, day) for each in first_runs for day in sum_days([each.run])]
    weeks = [(plan, week) for plan, day in days for week in sum_weeks([day])]
    bulk.insert(connection, daily_results, [build_period_row(*each) for each in days])
    bulk.insert(connection, weekly_results, [build_period_row(*each) for each in weeks])


def _build_series_rows(run: PlanRun, rules: Rules) -> SeriesRows:
    """Return the rows of the series of a variant's only run.

    Computes metrics once for all tests with the same results: a large run has thousands of tests.
    """
    results: dict[str, str] = {}
    for key, letter in zip(run.roster.keys, run.outcomes, strict=True):
        results[key] = results.get(key, "") + letter
    metrics = {each: _compute_metrics(run, each, rules) for each in set(results.values())}
    named = dict(zip(run.roster.keys, run.roster.tests, strict=True))
    rows = [
        (
            run.variant_id,
            build_series_id(run.variant_id, key),
            *named[key],
            metrics[letters][1],
        )
        for key, letters in results.items()
    ]
    shared = {row[1]: row for row in metrics.values()}
    return SeriesRows(sorted(rows, key=itemgetter(1)), list(shared.values()))


def _count_flaky(rows: SeriesRows) -> int:
    """Return the number of flaky series."""
    flaky = {row[1] for row in rows.metrics if row[_FLAKY_PLACE]}
    return sum(row[-1] in flaky for row in rows.series)


def _compute_metrics(run: PlanRun, letters: str, rules: Rules) -> Row:
    """Return the row of `series_metrics` of a test with these results in its only run."""
    size = len(letters)
    alone = run.roster._replace(keys=("",) * size, tests=run.roster.tests[:1] * size)
    [computed] = compute_series([run._replace(roster=alone, outcomes=letters)], rules)
    return build_metrics_row(run.variant_id, computed, run.started_on)
