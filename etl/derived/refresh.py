"""Keep the aggregates up to date: series, durations, days and weeks.

A batch of answers adds to days and weeks, and marks the series that it touches, in its own
transaction; a pass counts what is marked before it ends, or the next one does.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date
from itertools import chain
from operator import itemgetter
from typing import NamedTuple

from sqlalchemy import (
    Connection,
    Engine,
    Table,
    and_,
    delete,
    exists,
    or_,
    select,
    text,
)

from etl.config.settings import Rules
from etl.db import bulk
from etl.db.bulk import Row
from etl.db.database import writing
from etl.db.schema import (
    IS_CURRENT,
    daily_results,
    durations,
    labels,
    outcomes,
    plan_variants,
    rosters,
    series,
    uncounted,
    weekly_results,
)
from etl.derived.aggregates import in_plan, period_row, series_id, series_row, variant_ids_of
from etl.derived.duration_metrics import durations_of
from etl.derived.identity_rules import Namings
from etl.derived.metrics import Counts
from etl.derived.outcome_reader import NewestFirst, RosterBook, chunks, plan_runs
from etl.derived.period_metrics import Period, as_period, negative, summed, weeks_of
from etl.derived.plans import Plan
from etl.derived.series_metrics import series_of

PORTION_VARIANTS = 10
"""So many variants are counted in a transaction."""
PORTION_SERIES = 2000
"""With more series than that in memory, they are written."""


class Noted(NamedTuple):
    """A revision of a run, as far as it counts: `period` is None for one that names no day."""

    plan: Plan
    variant_id: str
    roster_id: str
    period: Period | None


def noted(connection: Connection, run_ids: Sequence[str]) -> list[Noted]:
    """Return what is stored of the current revisions of some runs."""
    columns = (
        plan_variants.c.application,
        plan_variants.c.plan,
        outcomes.c.variant_id,
        outcomes.c.roster_id,
        outcomes.c.started_on,
        outcomes.c.outcomes,
        *[outcomes.c[f"checks_{name}"] for name in Counts._fields],
    )
    same_variant = plan_variants.c.variant_id == outcomes.c.variant_id
    query = select(*columns).join(plan_variants, same_variant)
    found = []
    for chunk in chunks(run_ids):
        for row in connection.execute(query.where(outcomes.c.run_id.in_(chunk), IS_CURRENT)):
            application, plan, variant_id, roster_id, started_on, strip, *checks = row
            period = as_period(started_on, strip, Counts(*checks)) if started_on else None
            found.append(Noted(Plan(application, plan), variant_id, roster_id, period))
    return found


def note(connection: Connection, opened: Sequence[Noted], closed: Sequence[Noted]) -> None:
    """Take in what revisions just stored count, and out what those count that they supersede.

    Adds to days and weeks, and marks series. A series has a row for each test, and one run after
    the other of a plan would write all of them again: `count_some` does that once for many runs.
    """
    differences: defaultdict[Plan, list[Period]] = defaultdict(list)
    for each in opened:
        differences[each.plan] += [each.period] if each.period else []
    for each in closed:
        differences[each.plan] += [negative(each.period)] if each.period else []
    # First: who counts meanwhile does not see our runs, and would take away a mark that is there.
    hold(connection, [plan.plan_id for plan in differences])
    marks = {(each.variant_id, each.roster_id) for each in (*opened, *closed)}
    marked = bulk.find(connection, uncounted, [], sorted(marks))
    bulk.add_missing(connection, uncounted, sorted(marks - marked.keys()))
    days = {plan: summed(each) for plan, each in differences.items()}
    _add_periods(connection, daily_results, days)
    weeks = {plan: weeks_of(each) for plan, each in days.items()}
    _add_periods(connection, weekly_results, weeks)


def count_some(connection: Connection, rules: Rules) -> bool:
    """Bring the series and durations of some marked variants up to date; False if none was."""
    chosen = select(uncounted.c.variant_id).distinct().order_by(uncounted.c.variant_id)
    variant_ids = list(connection.scalars(chosen.limit(PORTION_VARIANTS)))
    plans = _by_plan(connection, variant_ids)
    hold(connection, [plan.plan_id for plan in plans])
    taken = delete(uncounted).where(uncounted.c.variant_id.in_(variant_ids))
    marks: defaultdict[str, list[str]] = defaultdict(list)
    for mark in connection.execute(taken.returning(uncounted)):
        marks[mark.variant_id].append(mark.roster_id)
    _refresh(connection, _marked(connection, plans, marks), rules)
    return bool(variant_ids)


def _marked(
    connection: Connection, plans: Mapping[Plan, list[str]], marks: Mapping[str, list[str]]
) -> Iterator["_Wanted"]:
    """Yield the variants of `plans` with the tests of the rosters that `marks` has of each."""
    namings = Namings(connection)
    for plan, variant_ids in plans.items():
        book = RosterBook(connection, namings.of(plan))
        book.learn(chain.from_iterable(marks[variant_id] for variant_id in variant_ids))
        for variant_id in variant_ids:
            keys = {key for roster_id in marks[variant_id] for key in book[roster_id].keys}
            yield _Wanted(variant_id, book, keys)


def count_marked(engine: Engine, rules: Rules) -> None:
    """Bring all series and durations up to date that are marked, by this pass or another."""
    is_more = True
    while is_more:
        with writing(engine) as connection:
            is_more = count_some(connection, rules)


def mark_plan(connection: Connection, plan_id: str) -> None:
    """Have all series of a plan counted anew, under whatever keys its tests have now."""
    hold(connection, [plan_id])
    # Marks of lists under other keys would have series looked for that are gone.
    for table in (series, uncounted):
        connection.execute(delete(table).where(table.c.variant_id.in_(in_plan(plan_id))))
    counted = and_(outcomes.c.variant_id.in_(in_plan(plan_id)), IS_CURRENT)
    marks = select(outcomes.c.variant_id, outcomes.c.roster_id).distinct().where(counted)
    rows = [tuple(mark) for mark in connection.execute(marks)]
    bulk.add_missing(connection, uncounted, sorted(rows))


def drop_unused_rosters(connection: Connection) -> None:
    """Drop the lists of tests that nothing refers to, after tests got other keys.

    Else it would depend on the order of answers which of the old lists stay.
    """
    is_used = or_(
        exists().where(outcomes.c.roster_id == rosters.c.roster_id),
        exists().where(uncounted.c.roster_id == rosters.c.roster_id),
    )
    # On PostgreSQL, whoever stores an outcome just now has locked the list that it refers to.
    unused = select(rosters.c.roster_id).where(~is_used).with_for_update(skip_locked=True)
    for chunk in chunks(connection.scalars(unused).all()):
        # Asked again: what was committed before we had the lock is seen only now.
        connection.execute(delete(rosters).where(rosters.c.roster_id.in_(chunk), ~is_used))


def has_uncounted(connection: Connection) -> bool:
    """Tell whether there are series that are not up to date yet."""
    return connection.execute(select(uncounted).limit(1)).first() is not None


def _by_plan(connection: Connection, variant_ids: Sequence[str]) -> dict[Plan, list[str]]:
    """Return variants by their plan, the plans in the order of their ids: see `hold`."""
    columns = (plan_variants.c.variant_id, plan_variants.c.application, plan_variants.c.plan)
    query = select(*columns).where(plan_variants.c.variant_id.in_(variant_ids))
    found: defaultdict[Plan, list[str]] = defaultdict(list)
    for variant_id, *plan in connection.execute(query.order_by(plan_variants.c.plan_id)):
        found[Plan(*plan)].append(variant_id)
    return found


def refresh_plans(connection: Connection, plans: Collection[Plan], rules: Rules) -> None:
    """Compute all series and durations of plans anew, after a label or an alias has changed."""
    hold(connection, [plan.plan_id for plan in plans])
    namings = Namings(connection)
    for plan in plans:
        variant_ids = variant_ids_of(connection, plan.plan_id)
        connection.execute(delete(series).where(series.c.variant_id.in_(in_plan(plan.plan_id))))
        book = RosterBook(connection, namings.of(plan))
        _refresh(connection, [_Wanted(variant_id, book) for variant_id in variant_ids], rules)


def hold(connection: Connection, plan_ids: Collection[str]) -> None:
    """Let nobody else bring these plans up to date until the commit, from rows we cannot see yet.

    In the order of their ids, so that two who hold several never wait for each other.
    """
    if connection.dialect.name == "postgresql" and plan_ids:
        connection.execute(_LOCK, {"ids": sorted(plan_ids)})


_LOCK = text(
    "SELECT pg_advisory_xact_lock(hashtextextended(id, 0)) FROM unnest(CAST(:ids AS text[])) AS id"
)


class _Wanted(NamedTuple):
    """A variant whose durations are counted, and its series: of these test keys, or all."""

    variant_id: str
    book: RosterBook
    keys: Collection[str] | None = None


def _refresh(connection: Connection, wanted: Iterable[_Wanted], rules: Rules) -> None:
    """Write series and durations anew, those of a few variants at a time."""
    counted = _Counted([], [], [], [])
    for variant_id, book, keys in wanted:
        newest_first = NewestFirst(connection, variant_id, book)
        found = series_of(newest_first, rules, keys)
        lost = set(keys or ()) - {each.test_key for each in found}
        measured = durations_of(newest_first, rules)
        counted.variants.append((variant_id,))
        counted.series.extend(series_row(variant_id, each) for each in found)
        counted.gone.extend((variant_id, series_id(variant_id, key)) for key in lost)
        if measured:
            counted.durations.append((variant_id, *measured))
        if len(counted.series) >= PORTION_SERIES:
            _write(connection, counted)
            counted = _Counted([], [], [], [])
    _write(connection, counted)


class _Counted(NamedTuple):
    """What is known anew of variants: keys and rows, and the keys of series that are no more."""

    variants: list[Row]
    series: list[Row]
    gone: list[Row]
    durations: list[Row]


def _write(connection: Connection, counted: _Counted) -> None:
    bulk.delete(connection, series, counted.gone)
    bulk.delete(connection, durations, counted.variants)
    bulk.replace(connection, series, sorted(counted.series, key=_KEY_OF_SERIES))
    bulk.insert(connection, durations, counted.durations)


_KEY_OF_SERIES = itemgetter(0, 1)


def _add_periods(
    connection: Connection, table: Table, differences: Mapping[Plan, Sequence[Period]]
) -> None:
    """Add what the days or weeks of plans gain or lose to their rows; without a run, a row goes.

    A row is taken out and put back: to write over it would take one more statement.
    """
    keys = [
        (plan.plan_id, each.first_day) for plan, periods in differences.items() for each in periods
    ]
    before = _take_periods(connection, table, keys)
    rows: list[Row] = []
    for plan, periods in differences.items():
        for difference in periods:
            key = (plan.plan_id, difference.first_day)
            merged = summed([before[key], difference] if key in before else [difference])
            rows += [period_row(plan, period) for period in merged]
    bulk.insert(connection, table, rows)


def _take_periods(
    connection: Connection, table: Table, keys: Sequence[tuple[str, date]]
) -> dict[tuple[str, date], Period]:
    checks = [f"checks_{name}" for name in Counts._fields]
    found = bulk.take(connection, table, ["runs", "tests", *Counts._fields, *checks], keys)
    return {
        (plan_id, day): Period(day, row[0], row[1], Counts(*row[2:7]), Counts(*row[7:]))
        for (plan_id, day), row in found.items()
    }


def recommitted(connection: Connection, commits: Mapping[str, str]) -> set[Plan]:
    """Return the plans of archived runs that have another commit label than `commits` says.

    `commits` are by run ID.
    """
    changed: set[Plan] = set()
    for chunk in chunks(sorted(commits)):
        query = (
            plan_runs(and_(outcomes.c.run_id.in_(chunk), IS_CURRENT))
            .with_only_columns(
                outcomes.c.run_id,
                plan_variants.c.application,
                plan_variants.c.plan,
                labels.c.value,
            )
            .join(plan_variants, plan_variants.c.variant_id == outcomes.c.variant_id)
        )
        for run_id, *plan, commit in connection.execute(query):
            if commit != commits[run_id]:
                changed.add(Plan(*plan))
    return changed
