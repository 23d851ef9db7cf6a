"""Keep the tables up to date that reports and BI tools read: series, durations, days and weeks.

They follow from `outcomes` by the rules of `metrics`. A batch of answers adds to days and weeks,
and marks the series that it touches, in its own transaction; a pass counts what is marked before
it ends, or the next one does. `rebuild` computes all anew and holds it against the rest.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    Table,
    and_,
    delete,
    exists,
    or_,
    select,
    text,
    tuple_,
)

from etl.config.settings import Rules
from etl.db import bulk
from etl.db.database import writing
from etl.db.schema import (
    aliases,
    daily_results,
    durations,
    identities,
    labels,
    outcomes,
    plan_variants,
    rosters,
    series,
    uncounted,
    weekly_results,
)
from etl.derived.duration_metrics import durations_of
from etl.derived.metrics import Counts, rates
from etl.derived.period_metrics import Period, as_period, days_of, negative, summed, weeks_of
from etl.derived.plans import NamedTest, Naming, Plan, PlanRun, Roster, as_roster, short_hash
from etl.derived.series_metrics import Series, series_of

Row = tuple[Any, ...]

COMMIT_LABEL = "commit"
"""The label that makes a flaky test a confirmed one."""
PAGE_RUNS = 200
LONGEST_PAGE_RUNS = 1000
PORTION_VARIANTS = 10
"""So many variants are counted in a transaction."""
PORTION_SERIES = 2000
"""With more series than that in memory, they are written."""
IS_CURRENT = outcomes.c.superseded_at.is_(None)

AGGREGATES = (series, durations, daily_results, weekly_results)
NAMED_BY_PLAN = (plan_variants, daily_results, weekly_results)


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


def as_plan_run(row: Sequence[Any], book: "RosterBook") -> PlanRun:
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
        book[roster_id],
        commit,
    )


class RosterBook:
    """The rosters of one plan that were read so far, by their ids."""

    def __init__(self, connection: Connection, naming: Naming) -> None:
        self._connection = connection
        self._naming = naming
        self._known: dict[str, Roster] = {}

    def learn(self, roster_ids: Iterable[str]) -> None:
        """Read those of the rosters that are not known yet."""
        for chunk in chunks(sorted(set(roster_ids) - self._known.keys())):
            query = select(rosters.c.roster_id, rosters.c.tests)
            for row in self._connection.execute(query.where(rosters.c.roster_id.in_(chunk))):
                self._known[row.roster_id] = as_roster(
                    row.roster_id, _parsed(row.tests), self._naming
                )

    def __getitem__(self, roster_id: str) -> Roster:
        return self._known[roster_id]


@lru_cache(maxsize=8)
def _parsed(tests: str) -> tuple[NamedTest, ...]:
    return tuple(NamedTest(*each) for each in msgspec.json.decode(tests))


class Namings:
    """How the tests of each plan are known again, now or `at` a moment."""

    def __init__(self, connection: Connection, at: datetime | None = None) -> None:
        by_id = _ID_KEYED if at is None else _ID_KEYED.where(identities.c.decided_at <= at)
        self._by_id = frozenset(connection.scalars(by_id))
        self._renamed: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        query = select(aliases).where(_is_valid_alias(at)).order_by(aliases.c.added_at)
        for row in connection.execute(query):
            self._renamed[row.application, row.plan][row.old_name] = row.new_name

    def of(self, plan: Plan) -> Naming:
        """Return how the tests of `plan` are known again."""
        renamed = {
            **self._renamed.get((plan.application, ""), {}),
            **self._renamed.get((plan.application, plan.plan), {}),
        }
        return Naming(plan.application in self._by_id, _followed(renamed))


_ID_KEYED = select(identities.c.application).where(identities.c.key_kind == "id")


def _is_valid_alias(at: datetime | None) -> ColumnElement[bool]:
    if at is None:
        return aliases.c.removed_at.is_(None)
    is_removed_later = or_(aliases.c.removed_at.is_(None), aliases.c.removed_at > at)
    return and_(aliases.c.added_at <= at, is_removed_later)


def _followed(renamed: Mapping[str, str]) -> dict[str, str]:
    """Lead each old name to the newest: a test can be renamed again, and even back."""
    newest = {}
    for old in renamed:
        name, seen = old, {old}
        while (following := renamed.get(name)) is not None and following not in seen:
            name = following
            seen.add(name)
        newest[old] = name
    return newest


def chunks(keys: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield `keys` in parts that a statement can name."""
    for start in range(0, len(keys), 500):
        yield keys[start : start + 500]


class NewestFirst:
    """The runs of a variant that are valid now, the newest first, read as far as they are wanted.

    Can be gone through more than once; the first page is read once.
    """

    def __init__(self, connection: Connection, variant_id: str, book: RosterBook) -> None:
        self._connection = connection
        self._variant_id = variant_id
        self._book = book
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
        self._book.learn(row.roster_id for row in rows)
        return [as_plan_run(row, self._book) for row in rows]


# --- bringing up to date --------------------------------------------------------------------


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
        connection.execute(delete(table).where(table.c.variant_id.in_(_in_plan(plan_id))))
    counted = and_(outcomes.c.variant_id.in_(_in_plan(plan_id)), IS_CURRENT)
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
        variant_ids = _variant_ids(connection, plan.plan_id)
        connection.execute(delete(series).where(series.c.variant_id.in_(_in_plan(plan.plan_id))))
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


# --- rows -----------------------------------------------------------------------------------


def series_id(variant_id: str, test_key: str) -> str:
    """Return the key of a series."""
    return short_hash(f"{variant_id}{test_key}")


def _in_columns(counts: Counts) -> tuple[int, ...]:
    """Return counts in the order of `schema.COUNTERS`."""
    return counts.failed, counts.passed, counts.aborted, counts.pending, counts.unresolved


def series_row(variant_id: str, found: Series) -> Row:
    """Return the row of `series`."""
    return (
        variant_id,
        series_id(variant_id, found.test_key),
        found.test_key,
        *found.test,
        found.counts.decided,
        *_in_columns(found.counts),
        *rates(found.counts),
        found.flips,
        found.flip_rate,
        found.health,
        found.is_flaky,
        found.is_confirmed_flaky,
        found.is_regression,
        found.is_new_failure,
        found.is_always_failing,
        found.is_recovered,
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
        *_in_columns(period.counts),
        period.unknown,
        *rates(period.counts),
        *_in_columns(period.checks),
        rates(period.checks).pass_rate,
    )


# --- all of a plan, anew --------------------------------------------------------------------


def plan_ids(connection: Connection) -> list[str]:
    """Return the plans that are named anywhere here, in the order of their ids."""
    queries = [select(table.c.plan_id) for table in NAMED_BY_PLAN]
    found = {plan_id for query in queries for plan_id in connection.scalars(query.distinct())}
    return sorted(found, key=str)  # SQLite may have been given something else, for verify to find


def plan_ids_of(connection: Connection, application: str) -> list[str]:
    """Return the plans of an application, in the order of their ids."""
    query = select(plan_variants.c.plan_id).distinct().order_by(plan_variants.c.plan_id)
    return list(connection.scalars(query.where(plan_variants.c.application == application)))


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


def expected(connection: Connection, plan_id: str, rules: Rules) -> dict[str, list[Row]]:
    """Return all rows that the aggregates should have of a plan, by table."""
    rows: dict[str, list[Row]] = {table.name: [] for table in AGGREGATES}
    names = select(plan_variants.c.application, plan_variants.c.plan)
    found = connection.execute(names.where(plan_variants.c.plan_id == plan_id)).first()
    if found is None:
        return rows
    plan = Plan(*found)
    book = RosterBook(connection, Namings(connection).of(plan))
    periods: list[Period] = []
    for variant_id in _variant_ids(connection, plan_id):
        newest_first = NewestFirst(connection, variant_id, book)
        rows["series"] += [series_row(variant_id, each) for each in series_of(newest_first, rules)]
        measured = durations_of(newest_first, rules)
        rows["durations"] += [(variant_id, *measured)] if measured else []
        periods += days_of(newest_first)
    rows["daily_results"] = [period_row(plan, each) for each in summed(periods)]
    rows["weekly_results"] = [period_row(plan, each) for each in weeks_of(periods)]
    return rows


def uncounted_variants(connection: Connection, plan_id: str) -> set[str]:
    """Return the variants of a plan whose series are not up to date yet."""
    is_in_plan = uncounted.c.variant_id.in_(_in_plan(plan_id))
    return set(connection.scalars(select(uncounted.c.variant_id).where(is_in_plan)))


def stored(connection: Connection, plan_id: str, table: Table) -> list[Row]:
    """Return the rows that one of the aggregates has of a plan, as the driver gives them."""
    if table in NAMED_BY_PLAN:
        return bulk.read(connection, table, [plan_id], "plan_id")
    return [
        row
        for chunk in chunks(_variant_ids(connection, plan_id))
        for row in bulk.read(connection, table, chunk, "variant_id")
    ]


def replace(connection: Connection, plan_id: str, rows: Mapping[str, Sequence[Row]]) -> None:
    """Put `rows` in the place of all that the aggregates have of a plan."""
    connection.execute(delete(uncounted).where(uncounted.c.variant_id.in_(_in_plan(plan_id))))
    for table in (series, durations):
        connection.execute(delete(table).where(table.c.variant_id.in_(_in_plan(plan_id))))
    for table in (daily_results, weekly_results):
        connection.execute(delete(table).where(table.c.plan_id == plan_id))
    for table in AGGREGATES:
        bulk.insert(connection, table, rows[table.name])


def _variant_ids(connection: Connection, plan_id: str) -> list[str]:
    return list(connection.scalars(_in_plan(plan_id).order_by(plan_variants.c.variant_id)))


def _in_plan(plan_id: str) -> Select[tuple[str]]:
    return select(plan_variants.c.variant_id).where(plan_variants.c.plan_id == plan_id)
