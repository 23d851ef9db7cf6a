"""Judge a run by limits for its rates and counts, for a CI job that goes on or stops."""

from collections.abc import Iterator
from itertools import dropwhile, islice
from typing import NamedTuple

from sqlalchemy import Connection

from etl.db.schema import outcomes
from etl.derived.metrics import compute_rates, count_letters
from etl.derived.plans import RunResults
from etl.derived.series_metrics import compute_series
from etl.reports.model import ReportRequest
from etl.reports.selection import FoundRun, read_results


class GateLimits(NamedTuple):
    """The minimum shares and maximum counts of a run; None sets no limit."""

    min_pass_rate: float | None = None
    min_decided_share: float | None = None
    max_failed: int | None = None
    max_new_failures: int | None = None
    max_unresolved: int | None = None
    max_aborted: int | None = None


class GateFigures(NamedTuple):
    """The figures of a run that limits are compared with, in their order."""

    pass_rate: float | None
    decided_share: float | None
    failed: int
    new_failures: int
    unresolved: int
    aborted: int


def measure(connection: Connection, request: ReportRequest, run: FoundRun) -> GateFigures:
    """Return the figures of `run`."""
    counts = count_letters(run.outcomes)
    found = compute_rates(counts)
    return GateFigures(
        found.pass_rate,
        found.decided_share,
        counts.failed,
        _new_failures(connection, request, run),
        counts.unresolved,
        counts.aborted,
    )


def _new_failures(connection: Connection, request: ReportRequest, run: FoundRun) -> int:
    """Count the failed tests that passed in the decided result before, or have none before."""
    failed = [
        key for key, letter in zip(run.roster.keys, run.outcomes, strict=True) if letter == "F"
    ]
    if not failed or run.started_at is None:
        return len(failed)
    earlier = (
        outcomes.c.variant_id == run.variant_id,
        outcomes.c.started_at <= run.started_at,
    )
    failing = {
        series.test_key
        for _, runs in read_results(connection, request, *earlier)
        for series in compute_series(_before(runs, run), request.rules, frozenset(failed))
        if series.verdict.fail_streak
    }
    return sum(key not in failing for key in failed)


def _before(runs: Iterator[RunResults], run: FoundRun) -> Iterator[RunResults]:
    """Yield the runs that come after `run` in `runs`: those that started before it."""
    return islice(dropwhile(lambda each: each.run_id != run.run_id, runs), 1, None)


def broken(limits: GateLimits, measured: GateFigures) -> Iterator[str]:
    """Yield a line for each broken limit."""
    for name, limit, value in zip(GateLimits._fields, limits, measured, strict=True):
        if limit is None:
            continue
        figure = name.partition("_")[2].replace("_", " ")
        if value is None:
            yield f"{figure}: nothing is decided, and {limit:.2%} or more is wanted"
        elif name.startswith("min_") and value < limit:
            yield f"{figure}: {value:.2%}, and {limit:.2%} or more is wanted"
        elif name.startswith("max_") and value > limit:
            yield f"{figure}: {value}, and at most {limit} are allowed"
