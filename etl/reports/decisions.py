"""`changes` and `resolution`: later changes of results, and the time that people took to decide."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, select

from etl.answers.payload import OPEN_STATUS
from etl.db.schema import PLAN_NAMES, outcomes, plan_variants, status_changes
from etl.derived.metrics import percentile
from etl.derived.plans import Plan
from etl.reports.backlog import sum_open
from etl.reports.columns import APPLICATION, PLAN, RUN_ID, SOURCE, TEST
from etl.reports.model import EVERY_FILTER, Column, Definition, ReportData, ReportRequest, Row, Type
from etl.reports.selection import PAGE_ROWS, filter_conditions
from etl.reports.spans import Span, describe_span, requested_or_recent

OUTCOMES = ("passed", "failed", "aborted")
_BOUNDS = (
    "when somebody decided is known within bounds: between the last look before and the first after"
)


def _statement(request: ReportRequest, span: Span) -> Select[tuple[object, ...]]:
    """Return the query for the changes that were seen in `span`, with the plan they are of."""
    of_revision = and_(
        outcomes.c.run_id == status_changes.c.run_id,
        outcomes.c.revision == status_changes.c.revision,
    )
    return (
        select(
            *PLAN_NAMES,
            *[
                column
                for column in status_changes.columns
                if column.name not in {"revision", "opened_at"}
            ],
        )
        .join(outcomes, of_revision)
        .join(plan_variants, plan_variants.c.variant_id == outcomes.c.variant_id)
        .where(*filter_conditions(request.filters), *_seen_in(request, span))
        .execution_options(yield_per=PAGE_ROWS)
    )


def _seen_in(request: ReportRequest, span: Span) -> Iterator[ColumnElement[bool]]:
    changed_by = status_changes.c.changed_by
    if span.since:
        yield changed_by >= span.since
    if span.until:
        yield changed_by < span.until
    if request.as_of:
        yield changed_by <= request.as_of


def _changes(connection: Connection, request: ReportRequest) -> ReportData:
    span = requested_or_recent(request, request.rules.window_days)
    rows = connection.execute(_statement(request, span))
    return ReportData(_of_test(request, rows), describe_span("changes seen", span, request.zone))


def _of_test(request: ReportRequest, rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows of the requested test, or all."""
    test, place = request.filters.test, 6
    for row in rows:
        if test is None or (row[place] or "").strip() == test:
            yield tuple(row)


class _Decided(NamedTuple):
    """An unresolved test that got another status, or left: then the bounds are None."""

    plan: Plan
    to_status: str | None
    shortest_ms: int | None
    longest_ms: int | None


def _resolution(connection: Connection, request: ReportRequest) -> ReportData:
    span = requested_or_recent(request, request.rules.window_days)
    of_tests = and_(status_changes.c.from_status == OPEN_STATUS, status_changes.c.position > 0)
    changes = _of_test(request, connection.execute(_statement(request, span).where(of_tests)))
    decided = sorted(
        (_Decided(Plan(*row[:3]), row[8], *row[-2:]) for row in changes), key=lambda one: one.plan
    )
    found = {plan: list(each) for plan, each in groupby(decided, key=lambda one: one.plan)}
    still_open = _still_open(connection, request)
    rows = (
        (*plan, *_summed(found.get(plan, []), still_open[plan]))
        for plan in found.keys() | still_open.keys()
    )
    return ReportData(rows, describe_span("changes seen", span, request.zone), (_BOUNDS,))


def _still_open(connection: Connection, request: ReportRequest) -> Counter[Plan]:
    """Return how many tests are still unresolved, whenever their runs started."""
    at_any_time = request.filters._replace(since=None, until=None)
    open_sums = sum_open(connection, request._replace(filters=at_any_time))
    return Counter({each.plan: each.tests for each in open_sums})


def _summed(decided: Sequence[_Decided], still_open: int) -> Row:
    by_status = Counter(one.to_status for one in decided)
    judged = [one for one in decided if one.to_status in OUTCOMES]
    shortest = [one.shortest_ms for one in judged if one.shortest_ms is not None]
    longest = [one.longest_ms for one in judged if one.longest_ms is not None]
    bounds = [
        percentile(values, percent) if values else None
        for percent in (50, 95)
        for values in (shortest, longest)
    ]
    counts = [by_status[status] for status in OUTCOMES]
    return (len(judged), *counts, len(decided) - len(judged), still_open, *bounds)


REPORTS = (
    Definition(
        "resolution",
        "How long until somebody decides",
        "a plan with tests that were unresolved; without those that are still open, it flatters",
        (
            SOURCE,
            APPLICATION,
            PLAN,
            Column("resolved", Type.INTEGER, "Unresolved tests that somebody decided"),
            *[
                Column(f"to_{word}", Type.INTEGER, f"Those that are {word} now")
                for word in OUTCOMES
            ],
            Column("to_other", Type.INTEGER, "Not counted: became pending, unknown, or left"),
            Column("still_open", Type.INTEGER, "Tests that wait now"),
            Column("p50_min_ms", Type.MILLISECONDS, "Half were decided in this time, at best"),
            Column("p50_max_ms", Type.MILLISECONDS, "Half were decided in this time, at worst"),
            Column("p95_min_ms", Type.MILLISECONDS, "95 % were decided in this time, at best"),
            Column("p95_max_ms", Type.MILLISECONDS, "95 % were decided in this time, at worst"),
        ),
        (
            *Plan._fields,
            *[f"to_{word}" for word in OUTCOMES],
            "still_open",
            "p50_min_ms",
            "p50_max_ms",
        ),
        Plan._fields,
        EVERY_FILTER,
        _resolution,
    ),
    Definition(
        "changes",
        "Changes of status",
        "a run, or a test of a run, that got another status",
        (
            SOURCE,
            APPLICATION,
            PLAN,
            RUN_ID,
            Column("change", Type.TEXT, "changed, added, or left: not in the answer any more"),
            Column("position", Type.INTEGER, "The test's place in the run; 0 is the run itself"),
            TEST,
            Column("from_status", Type.TEXT, "Status before; missing for a test that was added"),
            Column("to_status", Type.TEXT, "Status after; missing for a test that left"),
            Column("last_seen_at", Type.MOMENT, "When it was last seen as it was"),
            Column("changed_by", Type.MOMENT, "When it was first seen changed"),
            Column("resolution_min_ms", Type.MILLISECONDS, "The least it was unresolved for"),
            Column("resolution_max_ms", Type.MILLISECONDS, "The longest it was unresolved for"),
        ),
        ("changed_by", *Plan._fields, "test", "from_status", "to_status"),
        ("-changed_by", "run_id", "position", "change"),
        EVERY_FILTER,
        _changes,
    ),
)
