"""Keep the tables up to date that reports and BI tools read: series, durations, days and weeks.

They follow from `outcomes` by the rules of `metrics`. A batch of answers brings up to date what
it touches, in its own transaction; `rebuild` computes them anew and holds them against the rest.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    delete,
    select,
    text,
    tuple_,
)

from etl import bulk
from etl.metrics import (
    Counts,
    NamedTest,
    Period,
    Plan,
    PlanRun,
    Roster,
    Rules,
    Series,
    as_period,
    days_of,
    digest,
    durations_of,
    negative,
    rates,
    series_of,
    summed,
    weeks_of,
)
from etl.schema import (
    COUNTERS,
    SERIES_CLASSES,
    daily_results,
    durations,
    labels,
    outcomes,
    plan_variants,
    rosters,
    runs,
    series,
    weekly_results,
)

Row = tuple[Any, ...]

COMMIT_LABEL = "commit"
"""The label that makes a flaky test a confirmed one."""
PAGE_RUNS = 50
LONGEST_PAGE_RUNS = 1000
IS_CURRENT = outcomes.c.superseded_at.is_(None)

AGGREGATES = (series, durations, daily_results, weekly_results)


class Variant(NamedTuple):
    """A plan under one set of environments."""

    variant_id: str
    plan_id: str
    application: str
    plan: str
    environment_signature: str


# --- reading outcomes -----------------------------------------------------------------------


def plan_runs(condition: ColumnElement[bool]) -> Select[Any]:
    """Return the query for the runs that `condition` chooses, for `as_plan_run` to read."""
    commit = and_(labels.c.run_id == outcomes.c.run_id, labels.c.name == COMMIT_LABEL)
    return (
        select(
            outcomes.c.run_id,
            outcomes.c.variant_id,
            outcomes.c.status,
            outcomes.c.started_at,
            outcomes.c.started_on,
            outcomes.c.duration_ms,
            *[outcomes.c[f"checks_{name}"] for name in Counts._fields],
            outcomes.c.outcomes,
            outcomes.c.roster_id,
            labels.c.value,
        )
        .outerjoin(labels, commit)
        .where(condition, outcomes.c.started_at.is_not(None))
    )


def as_plan_run(row: Sequence[Any], known: Mapping[str, Roster]) -> PlanRun:
    """Return a row of the query `plan_runs` as `metrics` takes it."""
    run_id, variant_id, status, started_at, started_on, duration_ms, *rest = row
    *checks, strip, roster_id, commit = rest
    return PlanRun(
        run_id,
        variant_id,
        status,
        started_at,
        started_on,
        duration_ms,
        Counts(*checks),
        strip,
        known[roster_id],
        commit,
    )


@lru_cache(maxsize=64)
def _parsed(tests: str) -> tuple[NamedTest, ...]:
    return tuple(NamedTest(*each) for each in msgspec.json.decode(tests))


def read_rosters(connection: Connection, roster_ids: Collection[str]) -> dict[str, Roster]:
    """Return rosters by their ids."""
    found: dict[str, Roster] = {}
    for chunk in chunks(sorted(roster_ids)):
        for roster_id, tests in connection.execute(
            select(rosters.c.roster_id, rosters.c.tests).where(rosters.c.roster_id.in_(chunk))
        ):
            parsed = _parsed(tests)
            found[roster_id] = Roster(roster_id, tuple(test.key for test in parsed), parsed)
    return found


def chunks(keys: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield `keys` in parts that a statement can name."""
    for start in range(0, len(keys), 500):
        yield keys[start : start + 500]


class NewestFirst:
    """The runs of a variant that are valid now, the newest first, read as far as they are wanted.

    Can be gone through more than once; the first page is read once.
    """

    def __init__(self, connection: Connection, variant_id: str, known: dict[str, Roster]) -> None:
        self._connection = connection
        self._variant_id = variant_id
        self._known = known
        self._first_page: list[PlanRun] | None = None

    def __iter__(self) -> Iterator[PlanRun]:
        if self._first_page is None:
            self._first_page = self._page(None, PAGE_RUNS)
        page, size = self._first_page, PAGE_RUNS
        while page:
            yield from page
            if len(page) < size:
                return
            size = min(4 * size, LONGEST_PAGE_RUNS)
            page = self._page(page[-1], size)

    def _page(self, after: PlanRun | None, size: int) -> list[PlanRun]:
        condition = and_(outcomes.c.variant_id == self._variant_id, IS_CURRENT)
        if after:
            place = tuple_(outcomes.c.started_at, outcomes.c.run_id)
            condition = and_(condition, place < (after.started_at, after.run_id))
        newest_first = (outcomes.c.started_at.desc(), outcomes.c.run_id.desc())
        rows = self._connection.execute(
            plan_runs(condition).order_by(*newest_first).limit(size)
        ).all()
        unknown = {row.roster_id for row in rows} - self._known.keys()
        self._known |= read_rosters(self._connection, unknown)
        return [as_plan_run(row, self._known) for row in rows]


# --- bringing up to date --------------------------------------------------------------------


@dataclass
class _Touched:
    """What a batch touches of a plan."""

    tests: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Test keys by variant."""
    differences: list[Period] = field(default_factory=list)
    """What its days gain and lose."""


def refresh(connection: Connection, run_ids: Sequence[str], rules: Rules) -> None:
    """Bring up to date what a new revision of each of `run_ids`, just stored, changes."""
    known: dict[str, Roster] = {}
    touched: defaultdict[Plan, _Touched] = defaultdict(_Touched)
    for chunk in chunks(run_ids):
        _note_touched(connection, chunk, known, touched)
    hold(connection, [plan.plan_id for plan in touched])
    tests = {variant: keys for each in touched.values() for variant, keys in each.tests.items()}
    _refresh_variants(connection, tests, known, rules)
    days = {plan: summed(each.differences) for plan, each in touched.items()}
    _add_periods(connection, daily_results, days)
    weeks = {plan: weeks_of(differences) for plan, differences in days.items()}
    _add_periods(connection, weekly_results, weeks)


def refresh_series(connection: Connection, variant_ids: Collection[str], rules: Rules) -> None:
    """Compute all series and durations of variants anew: what a label or alias says has changed."""
    for chunk in chunks(sorted(variant_ids)):
        is_chosen = series.c.variant_id.in_(chunk)
        connection.execute(delete(series).where(is_chosen))
        _refresh_variants(connection, dict.fromkeys(chunk), {}, rules)


def _note_touched(
    connection: Connection,
    run_ids: Sequence[str],
    known: dict[str, Roster],
    touched: defaultdict[Plan, _Touched],
) -> None:
    """Note which tests and days the newest revisions of `run_ids`, and those before, are of."""
    newest = runs.c.revision
    query = (
        plan_runs(outcomes.c.run_id.in_(run_ids))
        .add_columns(
            plan_variants.c.application, plan_variants.c.plan, outcomes.c.revision == newest
        )
        .join(runs, runs.c.run_id == outcomes.c.run_id)
        .join(plan_variants, plan_variants.c.variant_id == outcomes.c.variant_id)
        .where(outcomes.c.revision >= newest - 1)
    )
    rows = connection.execute(query).all()
    known |= read_rosters(connection, {row.roster_id for row in rows} - known.keys())
    for *row, application, plan, is_newest in rows:
        run = as_plan_run(row, known)
        each = touched[Plan(application, plan)]
        each.tests[run.variant_id].update(run.roster.keys)
        if run.started_on is not None:
            period = as_period(run.started_on, run)
            each.differences.append(period if is_newest else negative(period))


def hold(connection: Connection, plan_ids: Collection[str]) -> None:
    """Let nobody else bring these plans up to date until the commit, from rows we cannot see yet.

    In the order of their ids, so that two who hold several never wait for each other.
    """
    if connection.dialect.name == "postgresql" and plan_ids:
        connection.execute(
            text(
                "SELECT pg_advisory_xact_lock(hashtextextended(id, 0)) FROM unnest(CAST(:ids AS text[])) AS id"
            ),
            {"ids": sorted(plan_ids)},
        )


def _refresh_variants(
    connection: Connection,
    tests: Mapping[str, Collection[str] | None],
    known: dict[str, Roster],
    rules: Rules,
) -> None:
    """Write the series (the given test keys, or all) and durations of variants anew."""
    series_rows: list[Row] = []
    duration_rows: list[Row] = []
    gone: list[Row] = []
    for variant_id, keys in tests.items():
        newest_first = NewestFirst(connection, variant_id, known)
        found = series_of(newest_first, rules, keys)
        series_rows += [series_row(variant_id, each) for each in found]
        lost = set(keys or ()) - {each.test_key for each in found}
        gone += [(series_id(variant_id, key),) for key in lost]
        measured = durations_of(newest_first, rules)
        duration_rows += [(variant_id, *measured)] if measured else []
    bulk.delete(connection, series, gone)
    bulk.delete(connection, durations, [(variant_id,) for variant_id in tests])
    bulk.replace(connection, series, series_rows)
    bulk.insert(connection, durations, duration_rows)


def _add_periods(
    connection: Connection, table: Table, differences: Mapping[Plan, Sequence[Period]]
) -> None:
    """Add what the days or weeks of plans gain or lose to their rows; without a run, a row goes."""
    keys = [
        (plan.plan_id, each.first_day) for plan, periods in differences.items() for each in periods
    ]
    before = _read_periods(connection, table, keys)
    rows: list[Row] = []
    for plan, periods in differences.items():
        merged = summed([*before.get(plan.plan_id, []), *periods])
        rows += [period_row(plan, period) for period in merged]
    bulk.delete(connection, table, keys)
    bulk.insert(connection, table, rows)


def _read_periods(
    connection: Connection, table: Table, keys: Sequence[tuple[str, date]]
) -> dict[str, list[Period]]:
    plan_id, first_day = table.primary_key.columns
    columns = [
        table.c.runs,
        table.c.tests,
        *[table.c[name] for name in Counts._fields],
        *[table.c[f"checks_{name}"] for name in Counts._fields],
    ]
    found: defaultdict[str, list[Period]] = defaultdict(list)
    for chunk in chunks(keys):
        query = select(plan_id, first_day, *columns)
        for row in connection.execute(query.where(tuple_(plan_id, first_day).in_(chunk))):
            key, day, run_count, test_count, *counted = row
            counts, checks = Counts(*counted[:5]), Counts(*counted[5:])
            found[key].append(Period(day, run_count, test_count, counts, checks))
    return found


# --- rows -----------------------------------------------------------------------------------


def series_id(variant_id: str, test_key: str) -> str:
    """Return the key of a series."""
    return digest([variant_id, test_key])


def series_row(variant_id: str, found: Series) -> Row:
    """Return the row of `series`."""
    return (
        series_id(variant_id, found.test_key),
        variant_id,
        found.test_key,
        *found.test,
        found.counts.decided,
        *(getattr(found.counts, name) for name in COUNTERS),
        *rates(found.counts),
        found.flips,
        found.flip_rate,
        found.health,
        *(getattr(found, name) for name in SERIES_CLASSES),
        found.fail_streak,
        found.streak_since,
        found.recent,
        found.last_status,
        found.last_run_id,
        found.last_started_at,
        found.window_starts_at,
    )


def period_row(plan: Plan, period: Period) -> Row:
    """Return the row of `daily_results` or `weekly_results`."""
    return (
        plan.plan_id,
        period.first_day,
        plan.application,
        plan.plan,
        period.runs,
        period.tests,
        *(getattr(period.counts, name) for name in COUNTERS),
        period.unknown,
        *rates(period.counts),
        *(getattr(period.checks, name) for name in COUNTERS),
        rates(period.checks).pass_rate,
    )


# --- all of a plan, anew --------------------------------------------------------------------


def plan_ids(connection: Connection) -> list[str]:
    """Return the plans that are named anywhere here, in the order of their ids."""
    tables = (plan_variants, daily_results, weekly_results)
    queries = [select(table.c.plan_id) for table in tables]
    return sorted(
        {plan_id for query in queries for plan_id in connection.scalars(query.distinct())}
    )


def expected(connection: Connection, plan_id: str, rules: Rules) -> dict[str, list[Row]]:
    """Return all rows that the aggregates should have of a plan, by table."""
    rows: dict[str, list[Row]] = {table.name: [] for table in AGGREGATES}
    of_plan = plan_variants.c.plan_id == plan_id
    columns = (plan_variants.c.variant_id, plan_variants.c.application, plan_variants.c.plan)
    known: dict[str, Roster] = {}
    periods: list[Period] = []
    plan = Plan("", "")
    for variant_id, *names in connection.execute(select(*columns).where(of_plan)).all():
        plan = Plan(*names)
        newest_first = NewestFirst(connection, variant_id, known)
        rows["series"] += [series_row(variant_id, each) for each in series_of(newest_first, rules)]
        measured = durations_of(newest_first, rules)
        rows["durations"] += [(variant_id, *measured)] if measured else []
        periods += days_of(newest_first)
    rows["daily_results"] = [period_row(plan, each) for each in summed(periods)]
    rows["weekly_results"] = [period_row(plan, each) for each in weeks_of(periods)]
    return rows


def stored(connection: Connection, plan_id: str) -> dict[str, list[Row]]:
    """Return the rows that the aggregates have of a plan, by table, as the driver gives them."""
    variant_ids = _variant_ids(connection, plan_id)
    rows: dict[str, list[Row]] = {
        table.name: bulk.read(connection, table, [plan_id], "plan_id")
        for table in (daily_results, weekly_results)
    }
    for table in (series, durations):
        rows[table.name] = [
            row
            for chunk in chunks(variant_ids)
            for row in bulk.read(connection, table, chunk, "variant_id")
        ]
    return rows


def replace(connection: Connection, plan_id: str, rows: Mapping[str, Sequence[Row]]) -> None:
    """Put `rows` in the place of all that the aggregates have of a plan."""
    of_plan = select(plan_variants.c.variant_id).where(plan_variants.c.plan_id == plan_id)
    for table in (series, durations):
        connection.execute(delete(table).where(table.c.variant_id.in_(of_plan)))
    for table in (daily_results, weekly_results):
        connection.execute(delete(table).where(table.c.plan_id == plan_id))
    for table in AGGREGATES:
        bulk.insert(connection, table, rows[table.name])


def _variant_ids(connection: Connection, plan_id: str) -> list[str]:
    query = select(plan_variants.c.variant_id).where(plan_variants.c.plan_id == plan_id)
    return list(connection.scalars(query))
