"""The summary of each plan: its first and newest run, and what is open, flaky or slow in it."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, ScalarSelect, func, select

from etl.answers.rows import Row
from etl.config.settings import Rules
from etl.db import bulk
from etl.db.schema import (
    HAS_METRICS,
    IS_CURRENT,
    IS_OPEN,
    among,
    outcomes,
    plan_summaries,
    plan_variants,
    series,
    series_metrics,
)
from etl.derived.duration_metrics import MEASURED_STATUSES
from etl.derived.metrics import compute_rates, count_letters, percentile
from etl.derived.plans import Plan, PlanRun

SEEN_SPAN = timedelta(days=90)
"""A flaky test counts while it was seen within this time (docs/REPORTS.md)."""
_EARLIEST = datetime.min.replace(tzinfo=UTC)


class _EndRun(NamedTuple):
    """The first or the newest run of a plan; all None if no run of it has a start."""

    started_at: datetime | None = None
    run_id: str | None = None
    started_on: date | None = None
    status: str | None = None
    pass_rate: float | None = None


class _Ends(NamedTuple):
    first: _EndRun
    newest: _EndRun


class _Figures(NamedTuple):
    open_runs: int
    open_tests: int
    flaky_tests: int
    p50_ms: int | None


def refresh_plan_summaries(connection: Connection, plans: Collection[Plan], rules: Rules) -> None:
    """Recompute the summaries of plans whose series are up to date. The caller has locked them."""
    plan_ids = [plan.plan_id for plan in plans]
    flaky = (
        select(plan_variants.c.plan_id, series_metrics.c.last_started_at)
        .select_from(plan_variants)
        .join(series_metrics, series_metrics.c.variant_id == plan_variants.c.variant_id)
        .join(series, HAS_METRICS)
        .where(among(plan_variants.c.plan_id, plan_ids), series_metrics.c.is_flaky)
    )
    seen_at: defaultdict[str, list[datetime]] = defaultdict(list)
    for plan_id, last_started_at in connection.execute(flaky):
        seen_at[plan_id].append(last_started_at)
    rows = compute_plan_summaries(connection, plans, seen_at, rules)
    bulk.delete(connection, plan_summaries, [(plan_id,) for plan_id in plan_ids])
    bulk.insert(connection, plan_summaries, rows)


def compute_plan_summaries(
    connection: Connection,
    plans: Collection[Plan],
    flaky_seen_at: Mapping[str, Sequence[datetime]],
    rules: Rules,
) -> list[Row]:
    """Return the rows of `plan_summaries`; none for a plan that no run is of now.

    `flaky_seen_at` has the start of the newest run of each flaky series, by plan ID.
    """
    plan_ids = [plan.plan_id for plan in plans]
    ends = _read_ends(connection, plan_ids)
    waiting = _read_open(connection, plan_ids)
    newest = {each: ends[each].newest.started_at for each in ends}
    started = {each: moment for each, moment in newest.items() if moment}
    medians = _read_medians(connection, started, timedelta(days=rules.window_days))
    rows: list[Row] = []
    for plan in plans:
        plan_id = plan.plan_id
        if plan_id in ends:
            flaky = sum(
                started[plan_id] - seen_at < SEEN_SPAN for seen_at in flaky_seen_at.get(plan_id, ())
            )
            open_runs, open_tests = waiting.get(plan_id, (0, 0))
            figures = _Figures(open_runs, open_tests, flaky, medians.get(plan_id))
            rows.append(_build_row(plan, ends[plan_id], figures))
    return rows


def build_first_summary(plan: Plan, run: PlanRun) -> Row:
    """Return the row of a plan that has one run, in which no test can be flaky."""
    counts = count_letters(run.outcomes)
    rate = compute_rates(counts).pass_rate
    end = _EndRun(run.started_at, run.run_id, run.started_on, run.status, rate)
    p50_ms = run.duration_ms if run.status in MEASURED_STATUSES else None
    figures = _Figures(int(counts.unresolved > 0), counts.unresolved, 0, p50_ms)
    return _build_row(plan, _Ends(end, end), figures)


def _build_row(plan: Plan, ends: _Ends, figures: _Figures) -> Row:
    first, newest = ends
    return (
        plan.plan_id,
        *plan,
        newest.started_at,
        newest.run_id,
        newest.started_on,
        newest.started_on.isoformat() if newest.started_on else None,
        newest.status,
        newest.pass_rate,
        first.started_at,
        first.run_id,
        first.status,
        first.pass_rate,
        *figures,
    )


def _read_ends(connection: Connection, plan_ids: Sequence[str]) -> dict[str, _Ends]:
    """Return the first and the newest run of each plan that has a run now."""
    start = outcomes.c.started_at
    has_start = start.is_not(None)
    query = select(
        plan_variants.c.plan_id,
        _select_run_id(IS_CURRENT),
        _select_run_id(has_start, start, outcomes.c.run_id),
        _select_run_id(has_start, start.desc(), outcomes.c.run_id.desc()),
    ).where(among(plan_variants.c.plan_id, plan_ids))
    chosen: defaultdict[str, set[str]] = defaultdict(set)
    for plan_id, any_run, *run_ids in connection.execute(query):
        if any_run:
            chosen[plan_id].update(filter(None, run_ids))
    columns = [outcomes.c[name] for name in _EndRun._fields]
    # Not `among`: a damaged ID is no text.
    wanted = select(*columns).where(IS_CURRENT, outcomes.c.run_id.in_(chain(*chosen.values())))
    runs = {row.run_id: _EndRun(*row) for row in connection.execute(wanted)}
    ends = {}
    for plan_id, its_runs in chosen.items():
        # One may have lost its start by now; the refresh of that change follows.
        started = [run for run_id in its_runs if (run := runs.get(run_id)) and run.started_at]
        ordered = sorted(started, key=lambda run: run[:2])
        ends[plan_id] = _Ends(ordered[0], ordered[-1]) if ordered else _Ends(_EndRun(), _EndRun())
    return ends


def _select_run_id(condition: ColumnElement[bool], *order: ColumnElement[Any]) -> ScalarSelect[str]:
    """Return the query for the first run of a variant that matches, in this order."""
    is_of_variant = outcomes.c.variant_id == plan_variants.c.variant_id
    query = select(outcomes.c.run_id).where(is_of_variant, IS_CURRENT, condition)
    return query.order_by(*order).limit(1).correlate(plan_variants).scalar_subquery()


def _read_open(connection: Connection, plan_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the number of runs that wait for a decision, and of their unresolved tests."""
    query = (
        select(plan_variants.c.plan_id, func.count(), func.sum(outcomes.c.tests_unresolved))
        .join(outcomes, outcomes.c.variant_id == plan_variants.c.variant_id)
        .where(IS_OPEN, among(plan_variants.c.plan_id, plan_ids))
        .group_by(plan_variants.c.plan_id)
    )
    return {plan_id: (runs, int(tests)) for plan_id, runs, tests in connection.execute(query)}


def _read_medians(
    connection: Connection, newest: Mapping[str, datetime], window: timedelta
) -> dict[str, int]:
    """Return the median duration of each plan's measured runs in the window before its newest.

    Plans whose newest runs are a window apart are read apart, so that a plan that ended long ago
    makes nobody read old runs of the others.
    """
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for plan_id, newest_at in newest.items():
        groups[newest_at.toordinal() // max(window.days, 1)].append(plan_id)
    durations: defaultdict[str, list[int]] = defaultdict(list)
    for plan_ids in groups.values():
        since = max(min(newest[plan_id] for plan_id in plan_ids), _EARLIEST + window) - window
        query = (
            select(plan_variants.c.plan_id, outcomes.c.started_at, outcomes.c.duration_ms)
            .join(outcomes, outcomes.c.variant_id == plan_variants.c.variant_id)
            .where(
                among(plan_variants.c.plan_id, plan_ids),
                IS_CURRENT,
                outcomes.c.started_at >= since,
                outcomes.c.status.in_(sorted(MEASURED_STATUSES)),
                outcomes.c.duration_ms.is_not(None),
            )
        )
        for plan_id, started_at, duration_ms in connection.execute(query):
            if newest[plan_id] - started_at < window:
                durations[plan_id].append(duration_ms)
    return {plan_id: percentile(found, 50) for plan_id, found in durations.items()}
