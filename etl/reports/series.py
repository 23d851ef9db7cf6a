"""`series`, `flaky` and `failures`: the last results of each test under its environments."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, or_, select

from etl.db.schema import PLAN_NAMES, plan_variants, series_metrics
from etl.derived.aggregates import FIRST_DAY_COLUMNS, build_series_id, list_metrics
from etl.derived.plans import environments_text
from etl.derived.series_metrics import Series, compute_series
from etl.derived.stored_series import STORED_SERIES, SeriesColumns
from etl.reports.columns import (
    APPLICATION,
    COUNTS,
    ENVIRONMENTS,
    PLAN,
    RATES,
    SOURCE,
    TEST,
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
    PAGE_ROWS,
    can_use_stored,
    read_results,
    start_conditions,
    variant_conditions,
)
from etl.reports.spans import describe_requested, requested_span

STORED_FILTERS = frozenset({Filter.SOURCE, Filter.APPLICATION, Filter.PLAN, Filter.TEST})
_FLAGS = (
    Column("is_flaky", Type.FLAG, "Flaky by the rules: enough results, flips and flip rate"),
    Column("is_confirmed_flaky", Type.FLAG, "Both passed and failed with the same label `commit`"),
    Column("is_regression", Type.FLAG, "Failed, and passed before that"),
    Column("is_new_failure", Type.FLAG, "A regression, and the only failure in the window"),
    Column("is_always_failing", Type.FLAG, "Did not pass in the window"),
    Column("is_recovered", Type.FLAG, "Passed, and failed before that"),
)
_COLUMNS = (
    SOURCE,
    APPLICATION,
    PLAN,
    ENVIRONMENTS,
    TEST,
    Column("type", Type.TEXT, "The test's type"),
    Column("test_id", Type.TEXT, "The test's id, where ids stay the same from run to run"),
    Column("decided", Type.INTEGER, "Results in the window that are passed or failed"),
    *COUNTS,
    *RATES,
    Column("flips", Type.INTEGER, "Neighbours among the decided results that differ"),
    Column("flip_rate", Type.RATE, "flips / (decided - 1)"),
    Column("health", Type.RATE, "passed / decided * (1 - flip_rate)"),
    *_FLAGS,
    Column("fail_streak", Type.INTEGER, "Decided results since the last one that passed"),
    Column("streak_since", Type.MOMENT, "When the first run of the streak started"),
    Column("streak_since_run_id", Type.TEXT, "That run"),
    Column("last_flip_at", Type.MOMENT, "When the run of the newest flip in the window started"),
    Column("last_flip_run_id", Type.TEXT, "That run"),
    Column("recent", Type.STRIP, "The results in the window, the oldest first"),
    Column("last_status", Type.TEXT, "The last result, if its word is documented"),
    Column("last_run_id", Type.TEXT, "The run that it is from"),
    Column("last_started_at", Type.MOMENT, "When that run started"),
    Column("window_starts_at", Type.MOMENT, "When the first run in the window started"),
    Column("series_id", Type.TEXT, "The key of the series"),
)
_METRICS = [
    each
    for each in series_metrics.columns
    if not (each.primary_key or each.name in FIRST_DAY_COLUMNS)
]
_CONFIRMED = [each.name for each in _METRICS].index("is_confirmed_flaky")
PLACES = {column.name: place for place, column in enumerate(_COLUMNS)}
_CLASS = Column(
    "class",
    Type.TEXT,
    "new_failure, regression, failing (twice or more), always_failing, recovered",
)


def _series(connection: Connection, request: ReportRequest) -> ReportData:
    return ReportData(rows(connection, request), _window(request))


def _flaky(connection: Connection, request: ReportRequest) -> ReportData:
    rules = request.rules
    threshold = (
        f"flaky: {rules.flaky_min_results} decided results or more, {rules.flaky_min_flips} flips"
        f" or more, and a flip rate of {rules.flaky_min_flip_rate:g} or more"
    )
    found = rows(connection, request, lambda figures: [figures.is_flaky])
    return ReportData(found, _window(request), (threshold,))


def _failures(connection: Connection, request: ReportRequest) -> ReportData:
    found = rows(connection, request, lambda figures: _list_classes(figures).values())
    return ReportData(((_classify(row), *row) for row in found), _window(request))


def _list_classes(figures: Any) -> dict[str, Any]:
    """Return the condition of each class of failures, the first that holds is the class."""
    return {
        "new_failure": figures.is_new_failure,
        "always_failing": figures.is_always_failing,
        "regression": figures.is_regression,
        "failing": figures.fail_streak > 1,
        "recovered": figures.is_recovered,
    }


def _classify(row: Row) -> str:
    figures = SimpleNamespace(**dict(zip(PLACES, row, strict=True)))
    return next(word for word, holds in _list_classes(figures).items() if holds)


def rows(
    connection: Connection,
    request: ReportRequest,
    needed: Callable[[Any], Iterable[Any]] = lambda _: [True],
    seen_since: datetime | None = None,
) -> Iterator[Row]:
    """Yield a row of the report `series` for each series with a result since `seen_since`.

    `needed` returns conditions, of which one must hold: of the columns of `series_metrics`, or of
    the verdict of a series that is computed.
    """
    found = (
        _stored(connection, request, or_(*needed(series_metrics.c)), seen_since)
        if can_use_stored(connection, request, STORED_FILTERS)
        else _computed(connection, request, needed, seen_since)
    )
    test = request.filters.test
    for row in found:
        if test is None or (row[PLACES["test"]] or "").strip() == test:
            yield row


def _computed(
    connection: Connection,
    request: ReportRequest,
    needed: Callable[[Any], Iterable[Any]],
    seen_since: datetime | None,
) -> Iterator[Row]:
    span = requested_span(request)
    for variant, runs in read_results(connection, request, *start_conditions(span)):
        names = (*variant.names, environments_text(variant.environment_signature))
        metrics: dict[Hashable, Row] = {}  # most tests of a variant have the same results
        for found in compute_series(runs, request.rules, seen_since=seen_since):
            if any(needed(found.verdict)):
                results = found.results
                row = metrics.get(results)
                if row is None:
                    row = metrics[results] = _list_metrics(found, request)
                series_id = build_series_id(variant.variant_id, found.test_key)
                yield (*names, *found.test, *row, series_id)


def _list_metrics(found: Series, request: ReportRequest) -> Row:
    """Return the metrics of a series; as of a moment none from labels, which have no history."""
    row = list_metrics(found)
    return row if request.as_of is None else (*row[:_CONFIRMED], None, *row[_CONFIRMED + 1 :])


def _stored(
    connection: Connection,
    request: ReportRequest,
    condition: ColumnElement[bool],
    seen_since: datetime | None,
) -> Iterator[Row]:
    conditions = [*variant_conditions(request.filters), condition]
    if seen_since:
        conditions.append(series_metrics.c.last_started_at >= seen_since)
    for columns in STORED_SERIES:
        statement = _select_stored(columns).where(*conditions)
        for source, application, plan, signature, *rest in connection.execute(statement):
            yield (source, application, plan, environments_text(signature), *rest)


def _select_stored(columns: SeriesColumns) -> Select[Any]:
    tables, series_id, *test = columns
    names = (*PLAN_NAMES, plan_variants.c.environment_signature)
    statement = select(*names, *test, *_METRICS, series_id).select_from(tables)
    return statement.execution_options(yield_per=PAGE_ROWS)


def _window(request: ReportRequest) -> str:
    results = f"the last {request.rules.window_results} decided results of each test"
    return f"{results}, in {describe_requested(request)}"


_NAMES = ("source", "application", "plan", "test", "environments", "series_id")
_OF_A_SERIES = "a test of a plan under one set of environments"

REPORTS = (
    Definition(
        "series",
        "Tests and their last results",
        _OF_A_SERIES,
        _COLUMNS,
        ("source", "application", "plan", "test", "recent", "pass_rate", "decided_share", "health"),
        ("health", *_NAMES),
        EVERY_FILTER,
        _series,
    ),
    Definition(
        "flaky",
        "Flaky tests",
        f"{_OF_A_SERIES}, where it is flaky",
        _COLUMNS,
        ("source", "application", "plan", "test", "recent", "decided", "flips", "flip_rate"),
        ("-flip_rate", "-decided", *_NAMES),
        EVERY_FILTER,
        _flaky,
    ),
    Definition(
        "failures",
        "Tests that fail, and those that recovered",
        f"{_OF_A_SERIES}, where it fails or has just recovered",
        (_CLASS, *_COLUMNS),
        ("class", "source", "application", "plan", "test", "fail_streak", "streak_since"),
        ("-streak_since", "class", *_NAMES),
        EVERY_FILTER,
        _failures,
    ),
)
