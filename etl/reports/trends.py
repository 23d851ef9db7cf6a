"""`trend` and `weekly`: results by day and by week, of each plan."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import timedelta

from sqlalchemy import Connection, Table, select

from etl.db.schema import daily_results, weekly_results
from etl.derived.aggregates import build_period_row
from etl.derived.metrics import Counts
from etl.derived.period_metrics import Period, sum_days, sum_periods, sum_weeks, week_start
from etl.derived.plans import Plan
from etl.reports.columns import (
    APPLICATION,
    CHECK_PASS_RATE,
    CHECKS,
    COUNTS,
    PLAN,
    RATES,
    SOURCE,
    UNKNOWN,
)
from etl.reports.model import (
    EVERY_FILTER,
    Column,
    Definition,
    Filter,
    ReportData,
    ReportRequest,
    Row,
    Type,
)
from etl.reports.selection import (
    TestPlaces,
    can_use_stored,
    narrow_to_test,
    read_runs,
    start_conditions,
)
from etl.reports.spans import (
    ALWAYS,
    Days,
    Span,
    describe_span,
    midnight,
    requested_or_recent,
    requested_span,
    whole_days,
)

WEEKS = 13
"""How many weeks `weekly` shows unless it is told."""
STORED_FILTERS = frozenset({Filter.SOURCE, Filter.APPLICATION, Filter.PLAN, Filter.FROM, Filter.TO})
_COUNTED = (
    SOURCE,
    APPLICATION,
    PLAN,
    Column("runs", Type.INTEGER, "Runs that started in it"),
    Column("tests", Type.INTEGER, "Results of tests of these runs"),
    *COUNTS,
    UNKNOWN,
    *RATES,
    *CHECKS,
    CHECK_PASS_RATE,
)
_BRIEF = (
    "source",
    "application",
    "plan",
    "runs",
    "pass_rate",
    "pass_rate_low",
    "pass_rate_high",
    "decided_share",
)


def _trend(connection: Connection, request: ReportRequest) -> ReportData:
    span = requested_or_recent(request, request.rules.window_days)
    rows = (_row(request, *found) for found in periods(connection, request, span))
    return ReportData(rows, describe_span("runs", span, request.zone))


def _weekly(connection: Connection, request: ReportRequest) -> ReportData:
    span = requested_span(request)
    if span == ALWAYS:
        this_week = week_start(request.now.astimezone(request.zone).date())
        first, after = this_week - timedelta(weeks=WEEKS - 1), this_week + timedelta(weeks=1)
        span = Span(midnight(first, request.zone), midnight(after, request.zone))
    days = whole_days(span, request.zone)
    found: Iterable[tuple[Plan, Period]]
    if days and can_use_stored(connection, request, STORED_FILTERS) and _are_weeks(days):
        found = _stored(connection, request, weekly_results, days)
    else:
        streamed = _streamed(connection, request, span).items()
        found = ((plan, week) for plan, periods in streamed for week in sum_weeks(periods))
    rows = (_row(request, *each) for each in found)
    return ReportData(rows, describe_span("runs", span, request.zone))


def periods(
    connection: Connection, request: ReportRequest, span: Span
) -> Iterable[tuple[Plan, Period]]:
    """Yield each day of each plan that has runs in `span`."""
    days = whole_days(span, request.zone)
    if days and can_use_stored(connection, request, STORED_FILTERS):
        return _stored(connection, request, daily_results, days)
    streamed = _streamed(connection, request, span).items()
    return ((plan, day) for plan, found in streamed for day in found)


def _are_weeks(days: Days) -> bool:
    begins_whole = days.first is None or days.first.isoweekday() == 1
    return begins_whole and (days.last is None or days.last.isoweekday() == 7)


def _stored(
    connection: Connection, request: ReportRequest, table: Table, days: Days
) -> Iterator[tuple[Plan, Period]]:
    _, first_day = table.primary_key.columns
    filters = request.filters
    wanted = [
        table.c.source == filters.source if filters.source is not None else None,
        table.c.application == filters.application if filters.application is not None else None,
        table.c.plan == filters.plan if filters.plan is not None else None,
        first_day >= days.first if days.first else None,
        first_day <= days.last if days.last else None,
    ]
    check_counts = [table.c[f"checks_{name}"] for name in Counts._fields]
    numbers = [
        table.c.runs,
        table.c.tests,
        *[table.c[name] for name in Counts._fields],
        *check_counts,
    ]
    names = [table.c[name] for name in Plan._fields]
    statement = select(first_day, *numbers, *names).where(
        *[each for each in wanted if each is not None]
    )
    for day, runs, tests, *counted in connection.execute(statement):
        counts, checks = Counts(*counted[:5]), Counts(*counted[5:10])
        yield Plan(*counted[10:]), Period(day, runs, tests, counts, checks)


def _streamed(
    connection: Connection, request: ReportRequest, span: Span
) -> dict[Plan, list[Period]]:
    found: defaultdict[Plan, list[Period]] = defaultdict(list)
    places = None if request.filters.test is None else TestPlaces(request.filters.test)
    for variant, runs in read_runs(connection, request, *start_conditions(span)):
        chosen = narrow_to_test(runs, places) if places else runs
        found[variant.names] += sum_days(chosen)
    return {plan: sum_periods(days) for plan, days in found.items()}


def _row(request: ReportRequest, plan: Plan, period: Period) -> Row:
    _, first_day, _, *rest = build_period_row(plan, period)
    if request.filters.test is not None:  # checks are those of runs
        rest[-len(CHECKS) - 1 :] = [None] * (len(CHECKS) + 1)
    return (first_day, *rest)


REPORTS = (
    Definition(
        "trend",
        "Results by day",
        "a plan and a day on which runs of it started",
        (Column("day", Type.DAY, "The day, in the report's time zone"), *_COUNTED),
        ("day", *_BRIEF),
        ("-day", "source", "application", "plan"),
        EVERY_FILTER,
        _trend,
    ),
    Definition(
        "weekly",
        "Results by week",
        "a plan and a week in which runs of it started",
        (Column("week_starts_on", Type.DAY, "The Monday of the week (ISO 8601)"), *_COUNTED),
        ("week_starts_on", *_BRIEF),
        ("-week_starts_on", "source", "application", "plan"),
        EVERY_FILTER,
        _weekly,
    ),
)
