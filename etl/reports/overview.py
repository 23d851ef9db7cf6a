"""`overview`: how each application fares."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from sqlalchemy import Connection

from etl.answers.rows import COUNTERS
from etl.derived.metrics import Counts, add_counts, compute_rates
from etl.derived.period_metrics import Period
from etl.derived.plan_summaries import SEEN_SPAN
from etl.derived.plans import Application
from etl.derived.series_metrics import require_decided
from etl.reports import series, trends
from etl.reports.backlog import sum_open
from etl.reports.columns import APPLICATION, COUNTS, RATES, SOURCE, UNKNOWN
from etl.reports.model import EVERY_FILTER, Column, Definition, ReportData, ReportRequest, Row, Type
from etl.reports.spans import describe_span, requested_or_recent


def _overview(connection: Connection, request: ReportRequest) -> ReportData:
    window = requested_or_recent(request, request.rules.window_days)
    results: defaultdict[Application, list[Period]] = defaultdict(list)
    for plan, period in trends.periods(connection, request, window):
        results[plan.owner].append(period)
    judged, flaky = _series(connection, request)
    runs, tests = _open(connection, request)
    applications = results.keys() | judged.keys() | runs.keys()
    rows = (
        (
            *application,
            *_summed(results[application]),
            judged[application],
            flaky[application],
            flaky[application] / judged[application] if judged[application] else None,
            runs[application],
            tests[application],
        )
        for application in applications
    )
    note = (
        f"flaky counts tests of the last {SEEN_SPAN.days} days, open at any time; a test is judged"
        f" with {require_decided(request.rules)} decided results or more among its last"
        f" {request.rules.window_results}"
    )
    return ReportData(rows, describe_span("runs", window, request.zone), (note,))


def _summed(periods: Sequence[Period]) -> Row:
    counts = add_counts([Counts(), *[period.counts for period in periods]])
    return (
        sum(period.runs for period in periods),
        sum(period.tests for period in periods),
        *(getattr(counts, name) for name in COUNTERS),
        sum(period.unknown for period in periods),
        *compute_rates(counts),
    )


def _series(
    connection: Connection, request: ReportRequest
) -> tuple[Counter[Application], Counter[Application]]:
    """Return by application how many series have enough decided results, and are flaky.

    Leaves out series whose last run is older than `SEEN_SPAN`.
    """
    judged: Counter[Application] = Counter()
    flaky: Counter[Application] = Counter()
    places, enough = series.PLACES, require_decided(request.rules)
    found = series.rows(
        connection,
        request,
        lambda figures: [figures.decided >= enough, figures.is_flaky],
        seen_since=request.now - SEEN_SPAN,
    )
    for row in found:
        application = Application(*row[:2])
        judged[application] += row[places["decided"]] >= enough
        flaky[application] += row[places["is_flaky"]]
    return judged, flaky


def _open(
    connection: Connection, request: ReportRequest
) -> tuple[Counter[Application], Counter[Application]]:
    """Return by application how many runs and tests wait for a person."""
    runs: Counter[Application] = Counter()
    tests: Counter[Application] = Counter()
    for each in sum_open(connection, request):
        runs[each.plan.owner] += each.runs
        tests[each.plan.owner] += each.tests
    return runs, tests


REPORTS = (
    Definition(
        "overview",
        "Applications at a glance",
        "an application",
        (
            SOURCE,
            APPLICATION,
            Column("runs", Type.INTEGER, "Runs that started in the window"),
            Column("tests", Type.INTEGER, "Results of tests of these runs"),
            *COUNTS,
            UNKNOWN,
            *RATES,
            Column("judged_series", Type.INTEGER, "Tests with enough decided results to be flaky"),
            Column("flaky_series", Type.INTEGER, "Those that are"),
            Column("flaky_rate", Type.RATE, "flaky_series / judged_series"),
            Column("open_runs", Type.INTEGER, "Runs that wait for a person now"),
            Column("open_tests", Type.INTEGER, "Tests that wait for a person now"),
        ),
        (
            "source",
            "application",
            "runs",
            "passed",
            "failed",
            "pass_rate",
            "pass_rate_low",
            "pass_rate_high",
            "decided_share",
            "flaky_rate",
            "open_tests",
        ),
        Application._fields,
        EVERY_FILTER,
        _overview,
    ),
)
