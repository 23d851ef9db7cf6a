"""`health`: how the archive itself is, as its last pass measured it."""

from datetime import datetime, timedelta

from sqlalchemy import Connection, select

from etl.db.schema import health
from etl.derived.metrics import MILLISECOND
from etl.reports.columns import SOURCE
from etl.reports.model import Column, Definition, Filter, ReportData, ReportRequest, Type

_COLUMNS = (
    SOURCE,
    Column("measured_at", Type.MOMENT, "When a pass measured it, at its end"),
    Column("open_runs", Type.INTEGER, "Runs that wait for a person"),
    Column("open_tests", Type.INTEGER, "Tests that wait for a person"),
    Column("oldest_open_at", Type.MOMENT, "Since when the oldest of them waits"),
    Column("never_fetched", Type.INTEGER, "Runs that were tracked and have not been fetched yet"),
    Column("failed", Type.INTEGER, "Runs that were given up"),
    Column("gone", Type.INTEGER, "Runs that the API does not have any more"),
    Column("poll_gap_p95_ms", Type.MILLISECONDS, "95 % of the gaps between looks are no longer"),
    Column("new_fields_7_days", Type.INTEGER, "Fields that the API had not shown before, of all"),
    Column("last_success_at", Type.MOMENT, "When the last pass ended that had no failure"),
    Column("last_success_age_ms", Type.MILLISECONDS, "How long ago that is"),
)


def _health(connection: Connection, request: ReportRequest) -> ReportData:
    newest = select(health.c.pass_id).order_by(health.c.measured_at.desc(), health.c.pass_id.desc())
    if request.as_of:
        newest = newest.where(health.c.measured_at <= request.as_of)
    columns = [health.c[column.name] for column in _COLUMNS[:-1]]
    query = select(*columns).where(health.c.pass_id == newest.limit(1).scalar_subquery())
    if request.filters.source is not None:
        query = query.where(health.c.source == request.filters.source)
    rows = [(*row, _age_ms(row[-1], request.now)) for row in connection.execute(query)]
    return ReportData(rows, "the last pass that measured it")


def _age_ms(moment: datetime | None, now: datetime) -> int | None:
    return None if moment is None else max(now - moment, timedelta(0)) // MILLISECOND


REPORTS = (
    Definition(
        "health",
        "The archive's health",
        "an account",
        _COLUMNS,
        (
            "source",
            "measured_at",
            "open_runs",
            "open_tests",
            "never_fetched",
            "failed",
            "gone",
            "poll_gap_p95_ms",
            "new_fields_7_days",
            "last_success_age_ms",
        ),
        ("source",),
        frozenset({Filter.SOURCE}),
        _health,
    ),
)
