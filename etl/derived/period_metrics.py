"""Results by day and by week.

Pure: takes the outcomes of a plan's runs and returns rows. The definitions are in docs/REPORTS.md.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import NamedTuple

from etl.derived.metrics import Counts, count, total
from etl.derived.plans import PlanRun


class Period(NamedTuple):
    """The results of a plan's runs of a day or of a week; `first_day` is the day or its Monday."""

    first_day: date
    runs: int
    tests: int
    counts: Counts
    checks: Counts

    @property
    def unknown(self) -> int:
        """How many results have a word that is not documented."""
        return self.tests - sum(self.counts)


def as_period(day: date, outcomes: str, checks: Counts) -> Period:
    """Return what a run adds to its day."""
    return Period(day, 1, len(outcomes), count(outcomes), checks)


def weeks_of(days: Iterable[Period]) -> list[Period]:
    """Add up days by the week of ISO 8601 that they are in; its Monday stands for it."""
    return summed(day._replace(first_day=monday(day.first_day)) for day in days)


def monday(day: date) -> date:
    """Return the first day of the ISO 8601 week of `day`."""
    return day - timedelta(days=min(day.weekday(), day.toordinal() - 1))


def negative(period: Period) -> Period:
    """Return what takes `period` away when it is added."""
    return Period(
        period.first_day,
        -period.runs,
        -period.tests,
        Counts(*[-number for number in period.counts]),
        Counts(*[-number for number in period.checks]),
    )


def days_of(runs: Iterable[PlanRun]) -> list[Period]:
    """Return a row for each day of `runs`; those without a day are left out."""
    return summed(
        as_period(run.started_on, run.outcomes, run.checks)
        for run in runs
        if run.started_on is not None
    )


def summed(periods: Iterable[Period]) -> list[Period]:
    """Add up the periods that begin on the same day, in their order; nothing left, no row."""
    by_first_day: defaultdict[date, list[Period]] = defaultdict(list)
    for period in periods:
        by_first_day[period.first_day].append(period)
    sums = [_sum(by_first_day[first_day]) for first_day in sorted(by_first_day)]
    return [period for period in sums if any(_numbers(period))]


def _numbers(period: Period) -> tuple[int, ...]:
    return (period.runs, period.tests, *period.counts, *period.checks)


def _sum(periods: Sequence[Period]) -> Period:
    if len(periods) == 1:
        return periods[0]
    return Period(
        periods[0].first_day,
        sum(period.runs for period in periods),
        sum(period.tests for period in periods),
        total(period.counts for period in periods),
        total(period.checks for period in periods),
    )
