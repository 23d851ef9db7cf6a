"""Explain a report without rows: a name that the archive does not have, or no match."""

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, select

from etl import display
from etl.db.schema import labels, outcomes, plan_variants
from etl.derived.stored_series import STORED_SERIES
from etl.reports.forms import for_people
from etl.reports.model import Filter, Filters, ReportRequest, ReportResult, Type
from etl.reports.selection import (
    filter_conditions,
    read_sources,
    valid_condition,
    variant_conditions,
)

LISTED_NAMES = 8
NEAR_NAMES = 3
COMPARED_NAMES = 20_000
LONGEST_NAME = 60


def explain_empty(connection: Connection, results: Sequence[ReportResult]) -> str | None:
    """Return one line for people if `results`, which answer one request, have no row of a run.

    None where they have rows. A report that takes no names is of the archive, not of runs.
    """
    of_runs = [each for each in results if Filter.APPLICATION in each.definition.filters] or results
    if any(result.total for result in of_runs):
        return None
    first = of_runs[0]
    missing = _explain_missing(connection, first.request)
    if missing:
        return f"no rows: {missing}"
    matching = _describe_matching(connection, first.request)
    return f"no rows: {matching}; of {first.window}, none gives a row: {first.definition.row}"


def explain_no_match(connection: Connection, request: ReportRequest) -> str:
    """Return the first filter that no run matches, with near names; else how many runs match."""
    return _explain_missing(connection, request) or _describe_matching(connection, request)


def _explain_missing(connection: Connection, request: ReportRequest) -> str | None:
    if not _count_runs(connection, request._replace(filters=Filters())):
        return "no run was archived by then" if request.as_of else "no run is archived yet"
    return next(_explain_names(connection, request.filters), None)


def _explain_names(connection: Connection, filters: Filters) -> Iterator[str]:
    """Yield a sentence for each filter whose name the archive does not have."""
    source, application, plan, test = filters[:4]
    scope = "" if source is None else f" of source {_quote(source)}"
    if source is not None:
        names = read_sources(connection)
        yield from _explain_name("no archived run is of source", source, names)
    if application is not None:
        of_source = variant_conditions(Filters(source))
        names = _select_names(connection, plan_variants.c.application, *of_source)
        yield from _explain_name(f"no application{scope} is called", application, names)
        scope = f" of application {_quote(application)}"
    if plan is not None:
        of_application = variant_conditions(Filters(source, application))
        names = _select_names(connection, plan_variants.c.plan, *of_application)
        yield from _explain_name(f"no plan{scope} is called", plan, names)
    for name, value in filters.labels:
        names = _select_names(connection, labels.c.name)
        yield from _explain_name("no label is called", name, names)
        values = _select_names(connection, labels.c.value, labels.c.name == name)
        yield from _explain_name(f"no run has for label {_quote(name)} the value", value, values)
    if test is not None:
        conditions = variant_conditions(filters)
        queries = [
            select(each.test).select_from(each.tables).where(*conditions) for each in STORED_SERIES
        ]
        names = _read_names(connection, *queries)
        yield from _explain_name("no test of these runs is called", test, names)


def _select_names(
    connection: Connection, column: ColumnElement[Any], *conditions: ColumnElement[bool]
) -> list[str]:
    return _read_names(connection, select(column).where(*conditions))


def _read_names(connection: Connection, *queries: Select[Any]) -> list[str]:
    names = {name for each in queries for name in connection.scalars(each.distinct())}
    return sorted({(name or "").strip() for name in names})


def _explain_name(problem: str, name: str, names: list[str]) -> Iterator[str]:
    """Yield a sentence if `name` is not among `names`: the nearest of them, and the first ones."""
    if name in names:
        return
    near = find_near(name, names)
    hint = f"; near it: {_list_names(near)}" if near else ""
    more = f" and {len(names) - LISTED_NAMES:,} more" if len(names) > LISTED_NAMES else ""
    listed = f"{_list_names(names[:LISTED_NAMES])}{more}" if names else "none"
    yield f"{problem} {_quote(name)}{hint}; the archive has {listed}"


def find_near(name: str, names: Iterable[str]) -> list[str]:
    """Return those of `names` that are most like `name`, whatever their case."""
    by_folded = {each.casefold()[:LONGEST_NAME]: each for each in islice(names, COMPARED_NAMES)}
    near = get_close_matches(name.casefold()[:LONGEST_NAME], by_folded, NEAR_NAMES)
    return [by_folded[each] for each in near]


def _list_names(names: Iterable[str]) -> str:
    return ", ".join(map(_quote, names))


def _quote(name: str) -> str:
    shown = display.safe(name[:LONGEST_NAME])
    return f"'{shown}...'" if len(name) > LONGEST_NAME else f"'{shown}'"


def _describe_matching(connection: Connection, request: ReportRequest) -> str:
    """Return how many runs match but for times and test, and when they started."""
    count = _count_runs(connection, request)
    if not count:
        return "each of these names is in the archive, and no run has all of them"
    runs = "1 run matches" if count == 1 else f"{count:,} runs match"
    columns = (func.min(outcomes.c.started_at), func.max(outcomes.c.started_at))
    statement = select(*columns).join_from(outcomes, plan_variants).where(*_matching(request))
    first, last = connection.execute(statement).one()
    if first is None:
        return runs
    since, until = (for_people(each, Type.MOMENT, request.zone) for each in (first, last))
    return f"{runs}, started from {since} to {until}"


def _count_runs(connection: Connection, request: ReportRequest) -> int:
    statement = select(func.count()).select_from(outcomes).join(plan_variants)
    return connection.scalar(statement.where(*_matching(request))) or 0


def _matching(request: ReportRequest) -> Iterator[ColumnElement[bool]]:
    yield valid_condition(request)
    yield from filter_conditions(request.filters)
