"""Results by day and by week, from the outcomes of a plan's runs. Definitions: docs/REPORTS.md."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import NamedTuple

from etl.derived.metrics import Counts, add_counts, count_letters
from etl.derived.plans import PlanRun


class Period(NamedTuple):
    """The results of a plan in a day or a week; `first_day` is the day or the week's Monday."""

    first_day: date
    runs: int
    tests: int
    counts: Counts
    checks: Counts

    @property
    def unknown(self) -> int:
        """The number of results with an undocumented status."""
        return self.tests - sum(self.counts)


def sum_weeks(days: Iterable[Period]) -> list[Period]:
    """Add up days by ISO 8601 week."""
    return sum_periods(day._replace(first_day=week_start(day.first_day)) for day in days)


def week_start(day: date) -> date:
    """Return the first day of the ISO 8601 week of `day`."""
    return day - timedelta(days=min(day.weekday(), day.toordinal() - 1))


def sum_days(runs: Iterable[PlanRun]) -> list[Period]:
    """Return the results of each day of `runs`, except of runs without a day."""
    return sum_periods(
        Period(run.started_on, 1, len(run.outcomes), count_letters(run.outcomes), run.checks)
        for run in runs
        if run.started_on is not None
    )


def sum_periods(periods: Iterable[Period]) -> list[Period]:
    """Add up periods with the same first day, in day order."""
    by_first_day: defaultdict[date, list[Period]] = defaultdict(list)
    for period in periods:
        by_first_day[period.first_day].append(period)
    return [_add_periods(by_first_day[first_day]) for first_day in sorted(by_first_day)]


def _add_periods(periods: Sequence[Period]) -> Period:
    if len(periods) == 1:
        return periods[0]
    return Period(
        periods[0].first_day,
        sum(period.runs for period in periods),
        sum(period.tests for period in periods),
        add_counts(period.counts for period in periods),
        add_counts(period.checks for period in periods),
    )
