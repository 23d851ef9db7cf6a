"""Select the runs of a report from `outcomes`, now or as of a moment."""

from collections.abc import Collection, Iterable, Iterator, Set
from datetime import datetime
from functools import cache
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    TextClause,
    and_,
    exists,
    null,
    or_,
    select,
    text,
)

from etl.answers.payload import FINAL_STATUSES, OPEN_STATUS
from etl.db.schema import IS_CURRENT, PLAN_NAMES, labels, outcomes, plan_variants, runs
from etl.derived.identity_rules import IdentityRules
from etl.derived.marks import has_dirty_marks
from etl.derived.metrics import Counts
from etl.derived.outcome_reader import (
    IS_COMMIT,
    RUN_COLUMNS,
    RosterCache,
    Variant,
    build_plan_run,
)
from etl.derived.plans import IdentityRule, Plan, PlanRun, Roster, RunResults
from etl.reports.model import Filter, Filters, ReportRequest
from etl.reports.spans import Span, requested_span

FINISHED = FINAL_STATUSES | {OPEN_STATUS}
"""The statuses of a finished run. `unresolved` is one, though people can still change it."""
FOLDER = Path(__file__).parent
PAGE_ROWS = 1000
MOST_ROSTERS = 2000
"""The number of rosters in memory; with generated test names there is one for each run."""
NO_ROSTER = Roster("", (), ())


@cache
def load_query(name: str) -> TextClause:
    """Return the query in the file `name`.sql."""
    return text((FOLDER / f"{name}.sql").read_text(encoding="utf-8"))


def read_results(
    connection: Connection, request: ReportRequest, *conditions: ColumnElement[bool]
) -> Iterator[tuple[Variant, Iterator[RunResults]]]:
    """Yield each variant with the results of its requested runs, the newest first.

    Ignores the filters of time and test: `conditions` and the caller apply them. Streams: the runs
    of a variant are gone when the next variant is read. Labels have no history, so that there are
    no commits as of a moment.
    """
    loader = RosterLoader(connection, request)
    columns = (outcomes.c.run_id, outcomes.c.started_at, outcomes.c.outcomes, outcomes.c.roster_id)
    statement = (
        select(*columns, labels.c.value).outerjoin(labels, IS_COMMIT)
        if request.as_of is None
        else select(*columns, null())
    )
    for variant, rows in _read_by_variant(connection, request, statement, conditions):
        yield variant, _with_rosters(rows, variant, loader)


def _with_rosters(
    rows: Iterator[Any], variant: Variant, loader: "RosterLoader"
) -> Iterator[RunResults]:
    while batch := list(islice(rows, PAGE_ROWS)):
        cache = loader.load(variant.names, {row[3] for row in batch})
        for run_id, started_at, strip, roster_id, commit, _ in batch:
            yield RunResults(run_id, started_at, strip, cache[roster_id], commit)


def read_runs(
    connection: Connection, request: ReportRequest, *conditions: ColumnElement[bool]
) -> Iterator[tuple[Variant, Iterator[PlanRun]]]:
    """Yield each variant with its requested runs as `read_results` does, without commits.

    Rosters are read only for the filter of a test.
    """
    loader = RosterLoader(connection, request) if request.filters.test is not None else None
    statement = select(*RUN_COLUMNS, outcomes.c.roster_id)
    for variant, rows in _read_by_variant(connection, request, statement, conditions):
        yield variant, _as_plan_runs(rows, variant, loader)


def _as_plan_runs(
    rows: Iterator[Any], variant: Variant, loader: "RosterLoader | None"
) -> Iterator[PlanRun]:
    if loader is None:
        yield from (build_plan_run(row, NO_ROSTER, None) for row in rows)
        return
    while batch := list(islice(rows, PAGE_ROWS)):
        cache = loader.load(variant.names, {row.roster_id for row in batch})
        yield from (build_plan_run(row, cache[row.roster_id], None) for row in batch)


def _read_by_variant(
    connection: Connection,
    request: ReportRequest,
    statement: Select[Any],
    conditions: Iterable[ColumnElement[bool]],
) -> Iterator[tuple[Variant, Iterator[Any]]]:
    """Yield each variant with the requested rows of `statement`, newest first, variant_id last."""
    wanted = select(plan_variants).where(*variant_conditions(request.filters))
    known = {row.variant_id: Variant(*row) for row in connection.execute(wanted)}
    # All descending, as in the index of current outcomes. By the variants' own key, so that SQLite
    # searches the index for the runs of each variant, and does not scan it.
    order = (plan_variants.c.variant_id, outcomes.c.started_at, outcomes.c.run_id)
    rows = connection.execute(
        statement.add_columns(outcomes.c.variant_id)
        .join(plan_variants, plan_variants.c.variant_id == outcomes.c.variant_id)
        .where(valid_condition(request), outcomes.c.started_at.is_not(None))
        .where(*filter_conditions(request.filters), *conditions)
        .order_by(*[column.desc() for column in order])
        .execution_options(yield_per=PAGE_ROWS)
    )
    for variant_id, found in groupby(rows, key=itemgetter(-1)):
        yield known[variant_id], found


class RosterLoader:
    """Loads the rosters of runs, one plan after the other."""

    def __init__(self, connection: Connection, request: ReportRequest) -> None:
        self._connection = connection
        self._namings = IdentityRules(connection, request.as_of)
        self._plan: Plan | None = None
        self._held: set[str] = set()
        self._cache = RosterCache(connection, IdentityRule())

    def load(self, plan: Plan, roster_ids: Set[str]) -> RosterCache:
        """Return a cache with these rosters of runs of `plan`."""
        if plan != self._plan or len(self._held | roster_ids) > MOST_ROSTERS:
            self._cache = RosterCache(self._connection, self._namings.for_plan(plan))
            self._plan, self._held = plan, set()
        self._held |= roster_ids
        self._cache.load(roster_ids)
        return self._cache


def can_use_stored(
    connection: Connection, request: ReportRequest, filters: Collection[Filter]
) -> bool:
    """Tell whether a derived table, which has no filters but `filters`, can answer the request.

    It cannot as of a moment, nor while dirty marks wait for a refresh.
    """
    is_now = request.as_of is None and request.filters.used <= set(filters)
    return is_now and not has_dirty_marks(connection)


def valid_condition(request: ReportRequest) -> ColumnElement[bool]:
    """Return the condition for rows of `outcomes` valid now, or at the requested moment."""
    if request.as_of is None:
        return IS_CURRENT
    is_last = or_(IS_CURRENT, outcomes.c.superseded_at > request.as_of)
    return and_(outcomes.c.observed_at <= request.as_of, is_last)


def request_conditions(request: ReportRequest) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions of a request for `outcomes` and `plan_variants`, all but the test's."""
    yield valid_condition(request)
    yield from filter_conditions(request.filters)
    yield from start_conditions(requested_span(request))


def filter_conditions(filters: Filters) -> Iterator[ColumnElement[bool]]:
    """Yield conditions of `outcomes` and `plan_variants` for all filters but times and test."""
    yield from variant_conditions(filters)
    for name, value in filters.labels:
        found = labels.alias()
        yield exists(
            select(1).where(
                found.c.run_id == outcomes.c.run_id, found.c.name == name, found.c.value == value
            )
        )


def read_sources(connection: Connection, as_of: datetime | None = None) -> list[str]:
    """Return the accounts of the archived runs, now or as of a moment, sorted."""
    query = select(plan_variants.c.source).distinct()
    if as_of is not None:
        query = select(runs.c.source).distinct().where(runs.c.archived_at <= as_of)
    return sorted(connection.scalars(query))


def variant_conditions(filters: Filters) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions of `plan_variants`."""
    if filters.source is not None:
        yield plan_variants.c.source == filters.source
    if filters.application is not None:
        yield plan_variants.c.application == filters.application
    if filters.plan is not None:
        yield plan_variants.c.plan == filters.plan


def start_conditions(span: Span) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions for runs that started in `span`."""
    if span.since:
        yield outcomes.c.started_at >= span.since
    if span.until:
        yield outcomes.c.started_at < span.until


class TestPlaces:
    """The places of tests of one name in rosters."""

    def __init__(self, test: str) -> None:
        self._test = test
        self._known: dict[str, list[int]] = {}

    def of(self, roster: Roster) -> list[int]:
        """Return their places in a roster."""
        if roster.roster_id not in self._known:
            self._known[roster.roster_id] = [
                place
                for place, test in enumerate(roster.tests)
                if (test.name or "").strip() == self._test
            ]
        return self._known[roster.roster_id]


def narrow_to_test(runs: Iterable[PlanRun], places: TestPlaces) -> Iterator[PlanRun]:
    """Yield the runs that have such a test, with its results alone."""
    for run in runs:
        if found := places.of(run.roster):
            strip = "".join(run.outcomes[place] for place in found)
            yield run._replace(outcomes=strip, checks=Counts())


class FoundRun(NamedTuple):
    """A run by itself; `started_at` can be missing."""

    run_id: str
    variant_id: str
    plan: Plan
    status: str | None
    started_at: datetime | None
    outcomes: str
    roster: Roster


def find_run(
    connection: Connection, request: ReportRequest, *conditions: ColumnElement[bool]
) -> FoundRun | None:
    """Return the newest requested run."""
    statement = (
        select(
            outcomes.c.run_id,
            outcomes.c.variant_id,
            *PLAN_NAMES,
            outcomes.c.status,
            outcomes.c.started_at,
            outcomes.c.outcomes,
            outcomes.c.roster_id,
        )
        .join(plan_variants, plan_variants.c.variant_id == outcomes.c.variant_id)
        .where(valid_condition(request), *filter_conditions(request.filters), *conditions)
        .order_by(outcomes.c.started_at.desc(), outcomes.c.run_id.desc())
        .limit(1)
    )
    for row in connection.execute(statement):
        plan = Plan(row.source, row.application, row.plan)
        cache = RosterLoader(connection, request).load(plan, {row.roster_id})
        return FoundRun(
            row.run_id,
            row.variant_id,
            plan,
            row.status,
            row.started_at,
            row.outcomes,
            cache[row.roster_id],
        )
    return None
