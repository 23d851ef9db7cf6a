"""Refresh the aggregates of marked variants: series, durations, days and weeks.

A commit only marks the variants that it changes (`marks`). A pass refreshes them every so many
commits and before it ends, or the next pass does. Few statements serve many variants.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from datetime import date, timedelta
from itertools import chain
from typing import NamedTuple

from sqlalchemy import Connection, Engine, Table, and_, delete, exists, func, select, tuple_

from etl.config.settings import Rules
from etl.db import bulk
from etl.db.archive_settings import hold_settings
from etl.db.database import writing
from etl.db.schema import (
    HAS_METRICS,
    IS_CURRENT,
    PLAN_NAMES,
    among,
    daily_results,
    dirty_marks,
    durations,
    labels,
    outcomes,
    plan_variants,
    rosters,
    series,
    series_metrics,
    variant_rosters,
    weekly_results,
)
from etl.derived.aggregates import (
    build_period_row,
    build_series_id,
    build_series_rows,
    build_variant_roster,
    compute_variant,
    find_first_days,
    find_only_run,
    read_days,
    read_days_of_rosters,
    recompute_plan,
)
from etl.derived.identity_rules import IdentityRules
from etl.derived.marks import lock_plans
from etl.derived.outcome_reader import (
    NewestRuns,
    RosterCache,
    load_rosters,
    read_newest_runs,
    select_plan_runs,
)
from etl.derived.period_metrics import Period, sum_weeks, week_start
from etl.derived.plan_summaries import refresh_plan_summaries
from etl.derived.plans import Plan, PlanRun
from etl.derived.stored_series import IS_ONLY_RUN

VARIANTS_AT_ONCE = 500
"""The most variants that one transaction refreshes."""
TESTS_AT_ONCE = 20_000
"""The number of tests of variants after which a transaction takes no further one."""
TESTS_IN_MEMORY = 2000
"""The number of tests whose newest results are in memory at a time."""


class _Results(NamedTuple):
    """Marked results of a variant that have the same roster: current ones, or superseded ones."""

    roster_id: str
    are_current: bool


class _Scope(NamedTuple):
    """A marked variant: the days of its marked results, and the number of tests of each."""

    plan: Plan
    days: dict[_Results, set[date]]
    tests: list[int]

    @property
    def roster_ids(self) -> set[str]:
        """The rosters of all marked results."""
        return {each.roster_id for each in self.days}

    @property
    def all_days(self) -> set[date]:
        """The days of all marked results."""
        return {day for days in self.days.values() for day in days}

    @property
    def left_rosters(self) -> set[str]:
        """The rosters that only superseded results have, as far as the marks tell."""
        return self.roster_ids - {each.roster_id for each in self.days if each.are_current}

    @property
    def most_tests(self) -> int:
        """The size of its largest run."""
        return max(self.tests, default=0)

    def first_days_of(self, *, are_current: bool) -> dict[str, date]:
        """Return the first day of each roster in its current, or its superseded, results."""
        return {
            each.roster_id: min(days)
            for each, days in self.days.items()
            if days and each.are_current == are_current
        }


def refresh_marked(engine: Engine) -> None:
    """Refresh the aggregates of all variants that are marked now, whichever pass marked them.

    In the order of their ids, each once: concurrent commits mark them again and again.
    """
    last: str | None = ""
    while last is not None:
        with writing(engine) as connection:
            last = refresh_some(connection, hold_settings(connection).rules, last)


def refresh_some(connection: Connection, rules: Rules, after: str = "") -> str | None:
    """Refresh the aggregates of some marked variants with ids `after` this one.

    Returns the last of them; None if none was marked.

    Locks the plans (`lock_plans`) before it reads their marks, so that every run behind a mark
    is visible to the computation.
    """
    plans = _choose_variants(connection, after)
    if not plans:
        return None
    lock_plans(connection, [plan.plan_id for plan in plans.values()])
    scopes = _take_marks(connection, plans)
    _refresh_series(connection, scopes, rules)
    _refresh_periods(connection, scopes)
    refresh_plan_summaries(connection, set(plans.values()), rules)
    return max(plans)


def _choose_variants(connection: Connection, after: str) -> dict[str, Plan]:
    """Return the next marked variants with their plans, in the order of their ids."""
    tests = func.max(func.coalesce(func.length(outcomes.c.outcomes), 0))
    is_marked = and_(
        outcomes.c.run_id == dirty_marks.c.run_id, outcomes.c.revision == dirty_marks.c.revision
    )
    chosen = (
        select(dirty_marks.c.variant_id, tests.label("tests"))
        .outerjoin(outcomes, is_marked)
        .where(dirty_marks.c.variant_id > after)
        .group_by(dirty_marks.c.variant_id)
        .order_by(dirty_marks.c.variant_id)
        .limit(VARIANTS_AT_ONCE)
        .subquery()
    )
    query = select(chosen, *PLAN_NAMES).join(
        plan_variants, plan_variants.c.variant_id == chosen.c.variant_id
    )
    plans: dict[str, Plan] = {}
    total = 0
    for variant_id, size, *plan in connection.execute(query.order_by(chosen.c.variant_id)):
        if plans and total + size > TESTS_AT_ONCE:
            break
        plans[variant_id] = Plan(*plan)
        total += size
    return plans


def _take_marks(connection: Connection, plans: Mapping[str, Plan]) -> dict[str, _Scope]:
    """Delete the marks of variants, and return the scope of each.

    A mark stands for the results of its revision and of the one before, as far as they are of its
    variant. A run that has been the variant's only one is in scope, too: its tests have no rows.
    """
    mark, outcome = dirty_marks.c, outcomes.c
    is_chosen = among(mark.variant_id, plans)
    # Before the results: those of a mark that a commit adds in between may be in scope already.
    marks = connection.execute(select(*mark).where(is_chosen).order_by(*mark)).all()
    is_touched = and_(
        outcome.run_id == mark.run_id,
        outcome.revision.between(mark.revision - 1, mark.revision),
        outcome.variant_id == mark.variant_id,
    )
    results = (outcome.variant_id, outcome.roster_id, IS_CURRENT, outcome.started_on)
    query = select(*results, func.max(func.length(outcome.outcomes))).group_by(*results)
    touched = query.select_from(dirty_marks.join(outcomes, is_touched)).where(is_chosen)
    only_runs = query.select_from(variant_rosters.join(outcomes, IS_ONLY_RUN)).where(
        among(variant_rosters.c.variant_id, plans)
    )
    scopes = {variant_id: _Scope(plan, defaultdict(set), []) for variant_id, plan in plans.items()}
    for variant_id, roster_id, is_current, day, tests in chain(
        connection.execute(touched), connection.execute(only_runs)
    ):
        days = scopes[variant_id].days[_Results(roster_id, bool(is_current))]
        days |= {day} if day else set()
        scopes[variant_id].tests.append(tests)
    bulk.delete(connection, dirty_marks, marks)
    return scopes


def _refresh_series(connection: Connection, scopes: Mapping[str, _Scope], rules: Rules) -> None:
    """Recompute the marked series of variants, and their durations."""
    identity_rules = IdentityRules(connection)
    for part in _split(scopes):
        test_rules = {each: identity_rules.for_plan(scope.plan) for each, scope in part.items()}
        caches = {each: RosterCache(connection, rule) for each, rule in test_rules.items()}
        load_rosters(connection, [(caches[each], part[each].roster_ids) for each in part])
        newest_runs = read_newest_runs(connection, caches)
        keys = {
            variant_id: set().union(*[caches[variant_id][each].keys for each in scope.roster_ids])
            for variant_id, scope in part.items()
        }
        without_series = {
            each: only
            for each, found in newest_runs.items()
            if (only := find_only_run(found, test_rules[each]))
        }
        _refresh_rosters(connection, caches, part, without_series)
        first_days = _find_first_days(connection, caches, part)
        _write_series(connection, newest_runs, keys, first_days, rules)
        _delete_rows_of_only_runs(connection, without_series)


def _refresh_rosters(
    connection: Connection,
    caches: Mapping[str, RosterCache],
    scopes: Mapping[str, _Scope],
    without_series: Mapping[str, PlanRun],
) -> None:
    """Add rosters that became current, and delete those that left.

    `without_series` has the only run of each variant whose tests need no rows in `series`.
    """
    pairs = {(variant_id, each) for variant_id in scopes for each in scopes[variant_id].roster_ids}
    pairs |= {(each, only.roster.roster_id) for each, only in without_series.items()}
    left = {(variant_id, each) for variant_id in scopes for each in scopes[variant_id].left_rosters}
    unused = left - _find_current(connection, left)
    used = sorted(pairs - unused)
    stored = bulk.find(connection, variant_rosters, ["only_run_id"], used)
    rows = [
        build_variant_roster(each, caches[each][roster_id], without_series.get(each))
        for each, roster_id in used
    ]
    changed = [row for row in rows if stored.get(row[:2]) != row[-1:]]
    bulk.replace(connection, variant_rosters, changed)
    bulk.delete(connection, variant_rosters, sorted(unused))


def _find_current(connection: Connection, pairs: Set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return those variants and rosters that a current outcome has."""
    if not pairs:
        return set()
    query = select(outcomes.c.variant_id, outcomes.c.roster_id).distinct()
    current = query.where(
        among(outcomes.c.variant_id, {variant_id for variant_id, _ in pairs}), IS_CURRENT
    )
    return {(row.variant_id, row.roster_id) for row in connection.execute(current)}


def _find_first_days(
    connection: Connection, caches: Mapping[str, RosterCache], scopes: Mapping[str, _Scope]
) -> dict[str, date]:
    """Return the first days of marked series, by series ID.

    A stored day stays or becomes earlier, unless the result of that day may be a superseded one:
    then all rosters of its variant are asked.
    """
    first_days: dict[str, date] = {}
    for variant_id, scope in scopes.items():
        cache = caches[variant_id]
        stored = _read_first_days(connection, variant_id, scope.roster_ids, cache)
        opened = find_first_days(variant_id, scope.first_days_of(are_current=True), cache)
        closed = find_first_days(variant_id, scope.first_days_of(are_current=False), cache)
        days = stored | {each: min(day, stored.get(each, day)) for each, day in opened.items()}
        if any(
            day <= days.get(each, date.min) and day < opened.get(each, date.max)
            for each, day in closed.items()
        ):
            days_of_rosters = read_days_of_rosters(connection, variant_id)
            cache.load(days_of_rosters)
            days = find_first_days(variant_id, days_of_rosters, cache)
        first_days |= days
    return first_days


def _read_first_days(
    connection: Connection, variant_id: str, roster_ids: Iterable[str], cache: RosterCache
) -> dict[str, date]:
    """Return the stored first days of the series of some rosters, by series ID."""
    keys = {key for roster_id in roster_ids for key in cache[roster_id].keys}
    query = (
        select(series.c.series_id, series_metrics.c.iso_date)
        .join(series_metrics, HAS_METRICS)
        .where(
            series.c.variant_id == variant_id,
            among(series.c.series_id, [build_series_id(variant_id, key) for key in keys]),
        )
    )
    return {each: date.fromisoformat(day) for each, day in connection.execute(query) if day}


def _write_series(
    connection: Connection,
    newest_runs: Mapping[str, NewestRuns],
    keys: Mapping[str, Set[str]],
    first_days: Mapping[str, date],
    rules: Rules,
) -> None:
    """Replace the series with these test keys of variants, and the durations of the variants."""
    computed = {
        variant_id: compute_variant(variant_id, found, rules, keys[variant_id])
        for variant_id, found in newest_runs.items()
    }
    found = [build_series_rows(each, of.series, first_days) for each, of in computed.items()]
    series_rows = sorted(row for rows in found for row in rows.series)
    lost = [
        (variant_id, build_series_id(variant_id, key))
        for variant_id, of in computed.items()
        for key in keys[variant_id] - {each.test_key for each in of.series}
    ]
    bulk.delete(connection, series, sorted(lost))
    bulk.replace(connection, series, series_rows)
    bulk.replace(connection, series_metrics, [row for rows in found for row in rows.metrics])
    _delete_unused_metrics(connection, newest_runs.keys())
    bulk.delete(connection, durations, [(variant_id,) for variant_id in newest_runs])
    bulk.insert(
        connection, durations, [row for each in computed.values() for row in each.durations]
    )


def _delete_rows_of_only_runs(connection: Connection, variant_ids: Collection[str]) -> None:
    """Delete the rows of series that follow from the tests of a variant's only run.

    Last: until then they tell which metrics are in use.
    """
    if variant_ids:
        connection.execute(delete(series).where(among(series.c.variant_id, variant_ids)))


def _delete_unused_metrics(connection: Connection, variant_ids: Collection[str]) -> None:
    """Delete the metrics of variants that none of their series has any more."""
    metrics = series_metrics.c
    used = select(series.c.variant_id, series.c.metrics_id).where(
        among(series.c.variant_id, variant_ids)
    )
    is_unused = tuple_(metrics.variant_id, metrics.metrics_id).not_in(used)
    connection.execute(
        delete(series_metrics).where(among(metrics.variant_id, variant_ids), is_unused)
    )


def _split(scopes: Mapping[str, _Scope]) -> Iterator[dict[str, _Scope]]:
    """Yield scopes in parts whose tests fit in memory."""
    part: dict[str, _Scope] = {}
    tests = 0
    for variant_id, scope in scopes.items():
        if part and tests + scope.most_tests > TESTS_IN_MEMORY:
            yield part
            part, tests = {}, 0
        part[variant_id] = scope
        tests += scope.most_tests
    if part:
        yield part


def _refresh_periods(connection: Connection, scopes: Mapping[str, _Scope]) -> None:
    """Recompute the marked days of plans, and the weeks of these days."""
    plans = {scope.plan.plan_id: scope.plan for scope in scopes.values()}
    marked = {(scope.plan.plan_id, day) for scope in scopes.values() for day in scope.all_days}
    if not marked:
        return
    days = [day for _, day in marked]
    # Whole weeks: their sums need all of their days.
    first, last = week_start(min(days)), _week_end(max(days))
    by_plan = read_days(connection, plans, (first, last))
    weeks = {plan_id: sum_weeks(found) for plan_id, found in by_plan.items()}
    _replace_periods(connection, daily_results, plans, by_plan, marked)
    marked_weeks = {(plan_id, week_start(day)) for plan_id, day in marked}
    _replace_periods(connection, weekly_results, plans, weeks, marked_weeks)


def _week_end(day: date) -> date:
    """Return the last day of the ISO 8601 week of `day`."""
    return day + timedelta(days=min(7 - day.isoweekday(), date.max.toordinal() - day.toordinal()))


def _replace_periods(
    connection: Connection,
    table: Table,
    plans: Mapping[str, Plan],
    found: Mapping[str, Sequence[Period]],
    marked: Set[tuple[str, date]],
) -> None:
    """Replace the `marked` days or weeks of plans with those of `found`."""
    rows = [
        build_period_row(plans[plan_id], period)
        for plan_id, periods in found.items()
        for period in periods
        if (plan_id, period.first_day) in marked
    ]
    bulk.delete(connection, table, sorted(marked - {row[:2] for row in rows}))
    bulk.replace(connection, table, rows)


def refresh_plans(connection: Connection, plans: Collection[Plan], rules: Rules) -> None:
    """Recompute the aggregates of plans, after a label or an alias has changed.

    Locks the plans (`lock_plans`).
    """
    lock_plans(connection, [plan.plan_id for plan in plans])
    for plan in plans:
        recompute_plan(connection, plan.plan_id, rules)


def delete_unused_rosters(connection: Connection) -> None:
    """Delete rosters that no outcome refers to, after tests got other keys.

    Otherwise the order of answers would decide which of the old rosters remain.

    Locks the rosters before it checks them again, since a concurrent transaction may have
    committed a reference in between. Skips rosters that others have locked: on PostgreSQL,
    storing an outcome locks its roster. Waits for nobody, so the order does not matter.
    """
    is_used = exists().where(outcomes.c.roster_id == rosters.c.roster_id)
    unused = select(rosters.c.roster_id).where(~is_used).with_for_update(skip_locked=True)
    locked = connection.scalars(unused).all()
    connection.execute(delete(rosters).where(among(rosters.c.roster_id, locked), ~is_used))


def find_recommitted_plans(connection: Connection, commits: Mapping[str, str]) -> set[Plan]:
    """Return the plans of archived runs whose commit label differs from `commits`, by run ID."""
    if not commits:
        return set()
    query = (
        select_plan_runs(and_(among(outcomes.c.run_id, commits), IS_CURRENT))
        .with_only_columns(outcomes.c.run_id, *PLAN_NAMES, labels.c.value)
        .join(plan_variants, plan_variants.c.variant_id == outcomes.c.variant_id)
    )
    return {
        Plan(*plan)
        for run_id, *plan, commit in connection.execute(query)
        if commit != commits[run_id]
    }
