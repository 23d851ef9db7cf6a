"""How long the runs of a plan take under one set of environments.

Pure: takes the outcomes of a plan's runs and returns rows. The definitions are in docs/REPORTS.md.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from etl.config.settings import Rules
from etl.derived.metrics import percentile
from etl.derived.plans import PlanRun

MEASURED_STATUSES = frozenset({"passed", "failed", "unresolved"})
"""Only such runs were over by themselves, so that their durations mean something."""
RECENT = timedelta(days=7)
BEFORE = timedelta(days=28)
LEAST_MEASURED = 5
"""So many durations have to be there before one can be called slow."""


class Durations(NamedTuple):
    """How long the runs of a variant take, counted back from its last measured run.

    Milliseconds; percentiles are by nearest rank. `change` is p50 of the last 7 days / p50 of
    the 28 days before - 1. `is_slow`: the last run took longer than the p95 of those of the
    `Rules.window_days` before it, with 5 of them or more.
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


def durations_of(runs: Iterable[PlanRun], rules: Rules) -> Durations | None:
    """Return the durations of one variant, None where no run of it was measured.

    `runs` are those of the variant, the newest (by started_at, then run_id) first; older ones
    are only read as far as they matter.
    """
    measured = _measured(runs, max(RECENT + BEFORE, timedelta(days=rules.window_days)))
    if not measured:
        return None
    month = timedelta(days=rules.window_days)
    windowed = [run for run in measured if run.age < month]
    durations = [run.duration_ms for run in windowed]
    before = [run.duration_ms for run in measured if RECENT <= run.age < RECENT + BEFORE]
    p50_recent = percentile([run.duration_ms for run in measured if run.age < RECENT], 50)
    p50_before = percentile(before, 50) if before else None
    per_test = [run.duration_ms // run.tests for run in windowed if run.tests]
    last, *others = durations
    p95_before_last = percentile(others, 95) if len(others) >= LEAST_MEASURED else None
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


class _Measured(NamedTuple):
    """A run with a duration that means something; `age` is that at the start of the last one."""

    run_id: str
    started_at: datetime
    age: timedelta
    duration_ms: int
    tests: int


def _measured(runs: Iterable[PlanRun], oldest: timedelta) -> list[_Measured]:
    """Return the runs that were measured, up to so much older than the newest of them."""
    found: list[_Measured] = []
    for run in runs:
        if run.status not in MEASURED_STATUSES or run.duration_ms is None:
            continue
        age = found[0].started_at - run.started_at if found else timedelta(0)
        if age > oldest:
            break
        found.append(_Measured(run.run_id, run.started_at, age, run.duration_ms, len(run.outcomes)))
    return found
