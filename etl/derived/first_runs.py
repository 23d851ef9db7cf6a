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
    weekly_results,
)
from etl.derived.aggregates import (
    add_first_days,
    build_period_row,
    build_roster_series,
    build_series_id,
    build_series_row,
)
from etl.derived.duration_metrics import compute_durations
from etl.derived.marks import lock_plans
from etl.derived.period_metrics import sum_days, sum_weeks
from etl.derived.plan_summaries import build_first_summary
from etl.derived.plans import Plan, PlanRun
from etl.derived.series_metrics import compute_series


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
    series_rows = [_build_series_rows(run, rules) for run in runs]
    bulk.insert(connection, series, [row for rows in series_rows for row in rows])
    summaries = [
        build_first_summary(*each, rows) for each, rows in zip(first_runs, series_rows, strict=True)
    ]
    bulk.insert(connection, plan_summaries, summaries)
    measured = [(run.variant_id, compute_durations([run], rules)) for run in runs]
    bulk.insert(connection, durations, [(key, *found) for key, found in measured if found])
    days = [(each.plan, day) for each in first_runs for day in sum_days([each.run])]
    weeks = [(plan, week) for plan, day in days for week in sum_weeks([day])]
    bulk.insert(connection, daily_results, [build_period_row(*each) for each in days])
    bulk.insert(connection, weekly_results, [build_period_row(*each) for each in weeks])


def _build_series_rows(run: PlanRun, rules: Rules) -> list[Row]:
    """Return the rows of `series` for the only run of a variant.

    Tests with the same results have the same row but for their names, so that one of them is
    computed: a large run has thousands of tests.
    """
    positions: dict[str, list[int]] = {}
    for position, key in enumerate(run.roster.keys):
        positions.setdefault(key, []).append(position)
    by_results: dict[str, Row] = {}
    rows: list[Row] = []
    for key, its in positions.items():
        letters = "".join([run.outcomes[position] for position in its])
        if letters not in by_results:
            by_results[letters] = _compute_row(run, its, rules)
        names = (
            run.variant_id,
            build_series_id(run.variant_id, key),
            key,
            *run.roster.tests[its[-1]],
        )
        rows.append(names + by_results[letters][len(names) :])
    return sorted(rows, key=itemgetter(1))


def _compute_row(run: PlanRun, positions: Sequence[int], rules: Rules) -> Row:
    """Return the row of `series` of the test at these positions of a run."""
    roster = run.roster
    alone = roster._replace(
        keys=tuple(roster.keys[position] for position in positions),
        tests=tuple(roster.tests[position] for position in positions),
    )
    letters = "".join([run.outcomes[position] for position in positions])
    [computed] = compute_series([run._replace(roster=alone, outcomes=letters)], rules)
    row = build_series_row(run.variant_id, computed)
    return add_first_days([row], {row[1]: run.started_on})[0]
