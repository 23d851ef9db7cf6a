"""Keep the aggregates up to date: series, durations, days and weeks.

A batch of answers adds to days and weeks in its own transaction, and marks the series that it
changes as dirty (`uncounted`). A pass refreshes the marked series before it ends, or the next
pass does.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date
from itertools import chain
from operator import itemgetter
from typing import NamedTuple

from sqlalchemy import Connection, Engine, Table, and_, delete, exists, or_, select, text

from etl.answers.rows import Row
from etl.config.settings import Rules
from etl.db import bulk
from etl.db.archive_settings import hold_settings
from etl.db.database import writing
from etl.db.schema import (
    IS_CURRENT,
    PLAN_NAMES,
    among,
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
from etl.derived.aggregates import (
    build_period_row,
    build_series_id,
    build_series_row,
    read_variant_ids,
    select_variant_ids,
)
from etl.derived.duration_metrics import compute_durations
from etl.derived.identity_rules import IdentityRules
from etl.derived.metrics import Counts
from etl.derived.outcome_reader import NewestRuns, RosterCache, select_plan_runs
from etl.derived.period_metrics import Period, build_period, negate_period, sum_periods, sum_weeks
from etl.derived.plans import Plan
from etl.derived.series_metrics import compute_series

VARIANTS_AT_ONCE = 10
"""The most variants that one transaction refreshes."""
SERIES_AT_ONCE = 2000
"""The number of series in memory after which they are written."""


class Contribution(NamedTuple):
    """The contribution of a revision to the aggregates; `period` is None if it has no day."""

    plan: Plan
    variant_id: str
    roster_id: str
    period: Period | None


def read_contributions(connection: Connection, run_ids: Sequence[str]) -> list[Contribution]:
    """Return the contributions of the current revisions of some runs."""
    if not run_ids:
        return []
    query = (
        select(
            *PLAN_NAMES,
            outcomes.c.variant_id,
            outcomes.c.roster_id,
            outcomes.c.started_on,
            outcomes.c.outcomes,
            *[outcomes.c[f"checks_{name}"] for name in Counts._fields],
        )
        .join(plan_variants, plan_variants.c.variant_id == outcomes.c.variant_id)
        .where(among(outcomes.c.run_id, run_ids), IS_CURRENT)
    )
    contributions = []
    for row in connection.execute(query):
        *names, variant_id, roster_id, started_on, strip = row[:7]
        checks = row[7:]
        period = build_period(started_on, strip, Counts(*checks)) if started_on else None
        contributions.append(Contribution(Plan(*names), variant_id, roster_id, period))
    return contributions


def apply_contributions(
    connection: Connection, opened: Sequence[Contribution], closed: Sequence[Contribution]
) -> None:
    """Add the counts of new revisions; subtract those of the revisions they supersede.

    Adds to days and weeks, and marks series as dirty: recomputing them for each run would write
    a row for each test each time, `refresh_some` does it once for many runs.

    Locks the plans (`lock_plans`) before it looks for marks: a concurrent refresh cannot see our
    uncommitted rows and would delete a mark that is already there.
    """
    differences: defaultdict[Plan, list[Period]] = defaultdict(list)
    for each in opened:
        differences[each.plan] += [each.period] if each.period else []
    for each in closed:
        differences[each.plan] += [negate_period(each.period)] if each.period else []
    lock_plans(connection, [plan.plan_id for plan in differences])
    marks = {(each.variant_id, each.roster_id) for each in (*opened, *closed)}
    existing = bulk.find(connection, uncounted, [], sorted(marks))
    bulk.insert_missing(connection, uncounted, sorted(marks - existing.keys()))
    days = {plan: sum_periods(each) for plan, each in differences.items()}
    _add_differences(connection, daily_results, days)
    weeks = {plan: sum_weeks(each) for plan, each in days.items()}
    _add_differences(connection, weekly_results, weeks)


def refresh_some(connection: Connection, rules: Rules) -> bool:
    """Refresh the series and durations of some dirty variants; return False if none was dirty.

    Locks the plans (`lock_plans`) before it deletes their marks, so that every run behind a mark
    is visible to the computation.
    """
    chosen = select(uncounted.c.variant_id).distinct().order_by(uncounted.c.variant_id)
    variant_ids = list(connection.scalars(chosen.limit(VARIANTS_AT_ONCE)))
    plans = _group_by_plan(connection, variant_ids)
    lock_plans(connection, [plan.plan_id for plan in plans])
    deleted = delete(uncounted).where(uncounted.c.variant_id.in_(variant_ids))
    marks: defaultdict[str, list[str]] = defaultdict(list)
    for mark in connection.execute(deleted.returning(uncounted)):
        marks[mark.variant_id].append(mark.roster_id)
    _refresh_variants(connection, _select_marked(connection, plans, marks), rules)
    return bool(variant_ids)


def _select_marked(
    connection: Connection, plans: Mapping[Plan, list[str]], marks: Mapping[str, list[str]]
) -> Iterator["_VariantScope"]:
    """Yield the variants of `plans` with the test keys of their marked rosters."""
    identity_rules = IdentityRules(connection)
    for plan, variant_ids in plans.items():
        cache = RosterCache(connection, identity_rules.for_plan(plan))
        cache.load(chain.from_iterable(marks[variant_id] for variant_id in variant_ids))
        for variant_id in variant_ids:
            keys = {key for roster_id in marks[variant_id] for key in cache[roster_id].keys}
            yield _VariantScope(variant_id, cache, keys)


def refresh_marked(engine: Engine) -> None:
    """Refresh all dirty series and durations, whichever pass marked them."""
    is_more = True
    while is_more:
        with writing(engine) as connection:
            is_more = refresh_some(connection, hold_settings(connection).rules)


def mark_plan_dirty(connection: Connection, plan_id: str) -> None:
    """Delete the series of a plan and mark them all dirty, after its tests got other keys.

    Deletes older marks: they refer to rosters with the old keys, whose series no longer exist.
    Locks the plan (`lock_plans`).
    """
    lock_plans(connection, [plan_id])
    for table in (series, uncounted):
        connection.execute(delete(table).where(table.c.variant_id.in_(select_variant_ids(plan_id))))
    is_in_plan = outcomes.c.variant_id.in_(select_variant_ids(plan_id))
    marks = select(outcomes.c.variant_id, outcomes.c.roster_id).distinct()
    rows = [tuple(mark) for mark in connection.execute(marks.where(is_in_plan, IS_CURRENT))]
    bulk.insert_missing(connection, uncounted, sorted(rows))


def delete_unused_rosters(connection: Connection) -> None:
    """Delete rosters that nothing refers to, after tests got other keys.

    Otherwise the order of answers would decide which of the old rosters remain.

    Locks the rosters before it checks them again, since a concurrent transaction may have
    committed a reference in between. Skips rosters that others have locked: on PostgreSQL,
    storing an outcome locks its roster. Waits for nobody, so the order does not matter.
    """
    is_used = or_(
        exists().where(outcomes.c.roster_id == rosters.c.roster_id),
        exists().where(uncounted.c.roster_id == rosters.c.roster_id),
    )
    unused = select(rosters.c.roster_id).where(~is_used).with_for_update(skip_locked=True)
    locked = connection.scalars(unused).all()
    connection.execute(delete(rosters).where(among(rosters.c.roster_id, locked), ~is_used))


def has_dirty_marks(connection: Connection) -> bool:
    """Return whether any series is not up to date."""
    return connection.execute(select(uncounted).limit(1)).first() is not None


def _group_by_plan(connection: Connection, variant_ids: Sequence[str]) -> dict[Plan, list[str]]:
    """Return variants by plan, the plans in lock order (see `lock_plans`)."""
    names = select(plan_variants.c.variant_id, *PLAN_NAMES)
    query = names.where(plan_variants.c.variant_id.in_(variant_ids))
    groups: defaultdict[Plan, list[str]] = defaultdict(list)
    for variant_id, *plan in connection.execute(query.order_by(plan_variants.c.plan_id)):
        groups[Plan(*plan)].append(variant_id)
    return groups


def refresh_plans(connection: Connection, plans: Collection[Plan], rules: Rules) -> None:
    """Recompute all series and durations of plans, after a label or an alias has changed.

    Locks the plans (`lock_plans`).
    """
    lock_plans(connection, [plan.plan_id for plan in plans])
    identity_rules = IdentityRules(connection)
    for plan in plans:
        is_in_plan = series.c.variant_id.in_(select_variant_ids(plan.plan_id))
        connection.execute(delete(series).where(is_in_plan))
        cache = RosterCache(connection, identity_rules.for_plan(plan))
        variant_ids = read_variant_ids(connection, plan.plan_id)
        scopes = [_VariantScope(variant_id, cache) for variant_id in variant_ids]
        _refresh_variants(connection, scopes, rules)


def lock_plans(connection: Connection, plan_ids: Collection[str]) -> None:
    """Hold an exclusive lock on the aggregates of these plans until commit.

    Aggregates are computed from all runs of a plan, of which a concurrent transaction cannot see
    ours. Taken after the runs' rows in the ledger and after test-identity locks; in the order of
    plan ids, so that two transactions never wait for each other.
    """
    if connection.dialect.name == "postgresql" and plan_ids:  # SQLite has one writer at a time
        connection.execute(_LOCK_PLANS, {"ids": sorted(plan_ids)})


_LOCK_PLANS = text(
    "SELECT pg_advisory_xact_lock(hashtextextended(id, 0)) FROM unnest(CAST(:ids AS text[])) AS id"
)


class _VariantScope(NamedTuple):
    """A variant whose durations are refreshed, and its series: of these test keys, or all."""

    variant_id: str
    cache: RosterCache
    keys: Collection[str] | None = None


def _refresh_variants(
    connection: Connection, scopes: Iterable[_VariantScope], rules: Rules
) -> None:
    """Recompute series and durations, and write them a few variants at a time."""
    recomputed = _Recomputed([], [], [], [])
    for variant_id, cache, keys in scopes:
        newest_runs = NewestRuns(connection, variant_id, cache)
        computed = compute_series(newest_runs, rules, keys)
        lost = set(keys or ()) - {each.test_key for each in computed}
        measured = compute_durations(newest_runs, rules)
        recomputed.variants.append((variant_id,))
        recomputed.series.extend(build_series_row(variant_id, each) for each in computed)
        recomputed.lost_series.extend((variant_id, build_series_id(variant_id, k)) for k in lost)
        if measured:
            recomputed.durations.append((variant_id, *measured))
        if len(recomputed.series) >= SERIES_AT_ONCE:
            _write_recomputed(connection, recomputed)
            recomputed = _Recomputed([], [], [], [])
    _write_recomputed(connection, recomputed)


class _Recomputed(NamedTuple):
    """Recomputed variants: their keys, new rows, and the keys of series that no longer exist."""

    variants: list[Row]
    series: list[Row]
    lost_series: list[Row]
    durations: list[Row]


def _write_recomputed(connection: Connection, recomputed: _Recomputed) -> None:
    bulk.delete(connection, series, recomputed.lost_series)
    bulk.delete(connection, durations, recomputed.variants)
    bulk.replace(connection, series, sorted(recomputed.series, key=itemgetter(0, 1)))
    bulk.insert(connection, durations, recomputed.durations)


def _add_differences(
    connection: Connection, table: Table, differences: Mapping[Plan, Sequence[Period]]
) -> None:
    """Add differences to the days or weeks of plans; delete a row whose sums become 0.

    Deletes and inserts rows: an update in place would take one more statement.
    """
    keys = [
        (plan.plan_id, each.first_day) for plan, periods in differences.items() for each in periods
    ]
    before = _take_periods(connection, table, keys)
    rows: list[Row] = []
    for plan, periods in differences.items():
        for difference in periods:
            key = (plan.plan_id, difference.first_day)
            merged = sum_periods([before[key], difference] if key in before else [difference])
            rows += [build_period_row(plan, period) for period in merged]
    bulk.insert(connection, table, rows)


def _take_periods(
    connection: Connection, table: Table, keys: Sequence[tuple[str, date]]
) -> dict[tuple[str, date], Period]:
    """Delete periods and return them by key."""
    checks = [f"checks_{name}" for name in Counts._fields]
    taken = bulk.take(connection, table, ["runs", "tests", *Counts._fields, *checks], keys)
    return {
        (plan_id, day): Period(day, row[0], row[1], Counts(*row[2:7]), Counts(*row[7:]))
        for (plan_id, day), row in taken.items()
    }


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
