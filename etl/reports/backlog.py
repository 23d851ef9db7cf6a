"""`unresolved` and `backlog`: tests that wait for a person, and their age."""

from bisect import bisect_right
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, case, func, select

from etl.db.schema import IS_OPEN, PLAN_NAMES, outcomes, plan_variants
from etl.derived.metrics import MILLISECOND
from etl.derived.plans import Plan
from etl.reports.columns import APPLICATION, PLAN, RUN_ID, SOURCE
from etl.reports.model import (
    EVERY_FILTER,
    Column,
    Definition,
    ReportData,
    ReportRequest,
    Type,
    Whole,
)
from etl.reports.selection import PAGE_ROWS, RosterLoader, TestPlaces, request_conditions
from etl.reports.spans import describe_requested

AGES = (
    ("under_1_day", "0 to 1 days", timedelta(days=1)),
    ("days_1_to_3", "1 to 3 days", timedelta(days=3)),
    ("days_3_to_7", "3 to 7 days", timedelta(days=7)),
    ("days_7_to_14", "7 to 14 days", timedelta(days=14)),
    ("over_14_days", "over 14 days", timedelta.max),
)
"""Each age's column, its words, and where it ends."""
_AGE_ENDS = [age[2] for age in AGES]


class OpenRun(NamedTuple):
    """A run that waits for a person since `opened_at`; `tests` counts those that do."""

    source: str
    application: str
    plan: str
    run_id: str
    status: str | None
    started_at: datetime | None
    opened_at: datetime
    tests: int


def open_runs(connection: Connection, request: ReportRequest) -> Iterator[OpenRun]:
    """Yield the runs that have an unresolved test, in any order.

    If the request limits rows, and not to one test, those of the first rows of `unresolved`.
    """
    statement = (
        select(
            *PLAN_NAMES,
            outcomes.c.run_id,
            outcomes.c.status,
            outcomes.c.started_at,
            outcomes.c.opened_at,
            outcomes.c.tests_unresolved,
        )
        .join(plan_variants, plan_variants.c.variant_id == outcomes.c.variant_id)
        .where(_is_open(request), *request_conditions(request))
        .execution_options(yield_per=PAGE_ROWS)
    )
    if request.filters.test is not None:
        yield from _narrowed(connection, request, statement, TestPlaces(request.filters.test))
        return
    if request.most_rows is not None:  # sorts keys, so that other columns are read of few rows
        keys = statement.with_only_columns(outcomes.c.run_id)
        first = keys.order_by(outcomes.c.opened_at, outcomes.c.run_id).limit(request.most_rows)
        statement = statement.where(outcomes.c.run_id.in_(first))
    yield from map(OpenRun._make, connection.execute(statement))


def _narrowed(
    connection: Connection, request: ReportRequest, statement: Select[Any], places: TestPlaces
) -> Iterator[OpenRun]:
    """Yield the runs in which a test at `places` is unresolved, with no other test counted."""
    loader = RosterLoader(connection, request)
    rows = connection.execute(statement.add_columns(outcomes.c.outcomes, outcomes.c.roster_id))
    for page in rows.partitions():
        for plan, found in groupby(page, key=lambda row: Plan(*row[:3])):
            runs = list(found)
            book = loader.load(plan, {row.roster_id for row in runs})
            for *open_run, _, strip, roster_id in runs:
                tests = sum(strip[place] == "U" for place in places.of(book[roster_id]))
                if tests:
                    yield OpenRun._make((*open_run, tests))


def _age_place(waited: timedelta) -> int:
    """Return the one of `AGES` that a run's wait falls in."""
    return bisect_right(_AGE_ENDS, waited)


def _unresolved(connection: Connection, request: ReportRequest) -> ReportData:
    rows = (
        (*names, opened_at, _in_ms(waited), AGES[_age_place(waited)][1], tests)
        for *names, opened_at, tests in open_runs(connection, request)
        for waited in (request.now - opened_at,)
    )
    whole = None
    if request.most_rows is not None and request.filters.test is None:
        sums = list(sum_open(connection, request))
        whole = Whole(sum(each.runs for each in sums), {each.plan.source for each in sums})
    return ReportData(rows, describe_requested(request), whole=whole)


def _in_ms(waited: timedelta) -> int:
    return max(waited // MILLISECOND, 0)


class OpenSum(NamedTuple):
    """The runs of a plan that wait for a person, and their unresolved tests, in all and by age."""

    plan: Plan
    runs: int
    tests: int
    tests_by_age: tuple[int, ...]
    oldest_opened_at: datetime


def sum_open(connection: Connection, request: ReportRequest) -> Iterator[OpenSum]:
    """Yield the sums of each plan. The database adds them up, unless one test is asked for."""
    if request.filters.test is None:
        yield from _select_sums(connection, request)
        return
    by_plan = sorted(open_runs(connection, request), key=itemgetter(0, 1, 2))
    for plan, group in groupby(by_plan, key=lambda run: Plan(*run[:3])):
        runs = list(group)
        tests = [0] * len(AGES)
        for run in runs:
            tests[_age_place(request.now - run.opened_at)] += run.tests
        oldest_opened_at = min(run.opened_at for run in runs)
        yield OpenSum(plan, len(runs), sum(tests), tuple(tests), oldest_opened_at)


def _select_sums(connection: Connection, request: ReportRequest) -> Iterator[OpenSum]:
    tests, opened_at = outcomes.c.tests_unresolved, outcomes.c.opened_at
    younger = [
        func.coalesce(func.sum(case((opened_at > request.now - age, tests), else_=0)), 0)
        for _, _, age in AGES[:-1]
    ]
    statement = (
        select(*PLAN_NAMES, func.count(), func.min(opened_at), *younger, func.sum(tests))
        .join(outcomes, plan_variants.c.variant_id == outcomes.c.variant_id)
        .where(_is_open(request), *request_conditions(request))
        .group_by(plan_variants.c.variant_id)  # in the order of the index
    )
    variants = sorted(connection.execute(statement), key=itemgetter(0, 1, 2))
    for plan, group in groupby(variants, key=lambda row: Plan(*row[:3])):
        _, _, _, runs, oldest, *sums = zip(*group, strict=True)
        younger_tests = [0, *(int(sum(each)) for each in sums)]
        by_age = tuple(more - fewer for fewer, more in pairwise(younger_tests))
        yield OpenSum(plan, sum(runs), sum(by_age), by_age, min(oldest))


def _is_open(request: ReportRequest) -> ColumnElement[bool]:
    return IS_OPEN if request.as_of is None else outcomes.c.tests_unresolved > 0


def _backlog(connection: Connection, request: ReportRequest) -> ReportData:
    rows = (
        (
            *each.plan,
            each.runs,
            each.tests,
            *each.tests_by_age,
            each.oldest_opened_at,
            _in_ms(request.now - each.oldest_opened_at),
        )
        for each in sum_open(connection, request)
    )
    return ReportData(rows, describe_requested(request))


REPORTS = (
    Definition(
        "unresolved",
        "Waiting for a person",
        "a run with tests that are unresolved",
        (
            SOURCE,
            APPLICATION,
            PLAN,
            RUN_ID,
            Column("status", Type.TEXT, "The run's status"),
            Column("started_at", Type.MOMENT, "When it started"),
            Column("opened_at", Type.MOMENT, "When it ended, or else was first seen open"),
            Column("age_ms", Type.MILLISECONDS, "How long it has waited"),
            Column("age", Type.TEXT, f"The same as one of: {', '.join(age[1] for age in AGES)}"),
            Column("tests", Type.INTEGER, "Its unresolved tests"),
        ),
        ("source", "application", "plan", "opened_at", "tests", "run_id"),
        ("opened_at", "run_id"),
        EVERY_FILTER,
        _unresolved,
    ),
    Definition(
        "backlog",
        "Waiting for a person, by age",
        "a plan with tests that are unresolved",
        (
            SOURCE,
            APPLICATION,
            PLAN,
            Column("runs", Type.INTEGER, "Runs with unresolved tests"),
            Column("tests", Type.INTEGER, "Their unresolved tests"),
            *[Column(name, Type.INTEGER, f"Those waiting for {age}") for name, age, _ in AGES],
            Column("oldest_opened_at", Type.MOMENT, "Since when the oldest run waits"),
            Column("oldest_age_ms", Type.MILLISECONDS, "How long that is"),
        ),
        (*Plan._fields, "runs", "tests", *[age[0] for age in AGES], "oldest_age_ms"),
        ("-tests", "-runs", *Plan._fields),
        EVERY_FILTER,
        _backlog,
    ),
)
