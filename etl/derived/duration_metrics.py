"""Durations of a plan's runs under one set of environments. Definitions: docs/REPORTS.md."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from etl.config.settings import Rules
from etl.derived.metrics import percentile
from etl.derived.plans import PlanRun

MEASURED_STATUSES = frozenset({"passed", "failed", "unresolved", "completed"})
"""Runs with these statuses ended by themselves; other durations mean nothing."""
RECENT_SPAN = timedelta(days=7)
BASELINE_SPAN = timedelta(days=28)
MIN_MEASURED = 5
"""The fewest durations against which one can be called slow."""


class Durations(NamedTuple):
    """The durations of a variant's runs, counted back from its last measured run.

    In milliseconds; percentiles by nearest rank. `change` is p50 of the last 7 days / p50 of the
    28 days before - 1. `is_slow`: the last run took longer than the p95 of the `MIN_MEASURED` or
    more runs within the `Rules.window_days` before it.
    """

    measured: int
    p50_ms: int
    p95_ms: int
    p50_per_test_ms: int | None
    p50_last_7_days_ms: int
    p50_28_days_before_ms: int | None
    change: float | None
    last_run_id: str
    last_started_at: datetime
    last_duration_ms: int
    p95_before_last_ms: int | None
    is_slow: bool


def compute_durations(runs: Iterable[PlanRun], rules: Rules) -> Durations | None:
    """Return the durations of one variant, None if no run of it was measured.

    `runs` are those of the variant, newest (by started_at, then run_id) first; stops reading
    them where older ones no longer matter.
    """
    measured = _select_measured(
        runs, max(RECENT_SPAN + BASELINE_SPAN, timedelta(days=rules.window_days))
    )
    if not measured:
        return None
    month = timedelta(days=rules.window_days)
    windowed = [run for run in measured if run.age < month]
    durations = [run.duration_ms for run in windowed]
    before = [
        run.duration_ms for run in measured if RECENT_SPAN <= run.age < RECENT_SPAN + BASELINE_SPAN
    ]
    p50_recent = percentile([run.duration_ms for run in measured if run.age < RECENT_SPAN], 50)
    p50_before = percentile(before, 50) if before else None
    per_test = [run.duration_ms // run.tests for run in windowed if run.tests]
    last, *others = durations
    p95_before_last = percentile(others, 95) if len(others) >= MIN_MEASURED else None
    return Durations(
        len(windowed),
        percentile(durations, 50),
        percentile(durations, 95),
        percentile(per_test, 50) if per_test else None,
        p50_recent,
        p50_before,
        p50_recent / p50_before - 1 if p50_before else None,
        measured[0].run_id,
        measured[0].started_at,
        last,
        p95_before_last,
        is_slow=p95_before_last is not None and last > p95_before_last,
    )


class _MeasuredRun(NamedTuple):
    """A measured run; `age` is its age when the newest measured run started."""

    run_id: str
    started_at: datetime
    age: timedelta
    duration_ms: int
    tests: int


def _select_measured(runs: Iterable[PlanRun], oldest: timedelta) -> list[_MeasuredRun]:
    """Return the measured runs that are at most `oldest` older than the newest of them."""
    found: list[_MeasuredRun] = []
    for run in runs:
        if run.status not in MEASURED_STATUSES or run.duration_ms is None:
            continue
        age = found[0].started_at - run.started_at if found else timedelta(0)
        if age > oldest:
            break
        found.append(
            _MeasuredRun(run.run_id, run.started_at, age, run.duration_ms, len(run.outcomes))
        )
    return found
