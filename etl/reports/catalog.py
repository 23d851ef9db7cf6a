"""All reports by name, and the function that runs one."""

from collections.abc import Iterable
from operator import itemgetter
from typing import TypeVar

from sqlalchemy import Connection

from etl.errors import UsageError
from etl.reports import (
    archive_health,
    backlog,
    decisions,
    durations,
    environments,
    overview,
    series,
    statuses,
    trends,
)
from etl.reports.columns import SOURCE
from etl.reports.model import Definition, ReportRequest, ReportResult, Row
from etl.reports.selection import read_sources

T = TypeVar("T")

REPORTS: dict[str, Definition] = {
    report.name: report
    for report in (
        *overview.REPORTS,
        *trends.REPORTS,
        *series.REPORTS,
        *durations.REPORTS,
        *backlog.REPORTS,
        *decisions.REPORTS,
        *environments.REPORTS,
        *statuses.REPORTS,
        *archive_health.REPORTS,
    )
}


def find(name: str) -> Definition:
    """Return the report called `name`. Raises UsageError for an unknown name."""
    report = REPORTS.get(name)
    if report is None:
        raise UsageError(f"report {name}: there is none; there are {', '.join(REPORTS)}")
    return report


def run(connection: Connection, definition: Definition, request: ReportRequest) -> ReportResult:
    """Answer a report. Raises UsageError where a filter makes no sense for it."""
    for misused in sorted(request.filters.used - definition.filters):
        taken = ", ".join(f"--{each}" for each in sorted(definition.filters)) or "no filter"
        raise UsageError(
            f"report {definition.name}: cannot be limited by --{misused}; it takes {taken}"
        )
    if request.as_of and request.filters.labels:
        raise UsageError("--label: labels have no history; leave it out, or --as-of")
    answer = definition.answer(connection, request)
    rows = _sorted(definition, answer.rows)
    columns, brief = definition.columns, definition.brief
    if SOURCE in columns:
        place = columns.index(SOURCE)
        sources = answer.whole.sources if answer.whole else {row[place] for row in rows}
        if len(sources) < 2:
            brief = tuple(name for name in brief if name != SOURCE.name)
        if len({*sources, *read_sources(connection, request.as_of)}) < 2:
            columns = _without(columns, place)
            rows = [_without(row, place) for row in rows]
    shown = rows[: request.most_rows]
    total = answer.whole.total if answer.whole else len(rows)
    return ReportResult(
        definition, request, columns, brief, shown, total, answer.window, answer.notes
    )


def _without(values: tuple[T, ...], place: int) -> tuple[T, ...]:
    return values[:place] + values[place + 1 :]


def _sorted(definition: Definition, rows: Iterable[Row]) -> list[Row]:
    """Return `rows` in the definition's order, which is the same on every database."""
    places = {column.name: place for place, column in enumerate(definition.columns)}
    found = list(rows)
    for name in reversed(definition.order):  # sorting is stable: the most important comes last
        place = places[name.removeprefix("-")]
        missing = [row for row in found if row[place] is None]  # the last ones, up or down
        if missing:
            found = [row for row in found if row[place] is not None]
        found.sort(key=itemgetter(place), reverse=name.startswith("-"))
        found += missing
    return found
