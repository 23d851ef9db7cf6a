"""The rows of the aggregates, the tables that reports and BI tools read, and their recomputation.

They follow from `outcomes` by the rules of the metrics. `refresh` keeps them up to date by these
functions; `verify` and `replay` recompute those of a whole plan, and compare.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, Table, and_, delete, func, select

from etl.answers.rows import COUNTERS, Row
from etl.config.settings import Rules
from etl.db import bulk
from etl.db.schema import (
    IS_CURRENT,
    PLAN_NAMES,
    daily_results,
    dirty_marks,
    durations,
    outcomes,
    plan_summaries,
    plan_variants,
    series,
    series_metrics,
    variant_rosters,
    weekly_results,
)
from etl.derived.duration_metrics import compute_durations
from etl.derived.identity_rules import IdentityRules, of_application
from etl.derived.metrics import WORDS, Counts, compute_rates
from etl.derived.outcome_reader import NewestRuns, RosterCache
from etl.derived.period_metrics import Period, sum_weeks
from etl.derived.plan_summaries import compute_plan_summaries
from etl.derived.plans import Application, IdentityRule, Plan, PlanRun, Roster, hash_text
from etl.derived.series_metrics import Series, compute_series

AGGREGATES = (
    series,
    series_metrics,
    variant_rosters,
    durations,
    plan_summaries,
    daily_results,
    weekly_results,
)
KEYED_BY_PLAN = (plan_variants, plan_summaries, daily_results, weekly_results)
KEYS_AT_ONCE = 500
FIRST_DAY_COLUMNS = ("first_seen_on", "iso_date")
"""The last columns of `series_metrics`: they depend on all runs, not only the newest."""


def build_series_id(variant_id: str, test_key: str) -> str:
    """Return the key of a series: half of it is its variant's, half its test's.

    So the series of a variant are neighbours in every index.
    """
    return variant_id[:16] + test_key


class SeriesRows(NamedTuple):
    """Rows of `series`, and those of `series_metrics` that they share."""

    series: list[Row]
    metrics: list[Row]


def build_series_rows(
    variant_id: str, computed: Iterable[Series], first_days: Mapping[str, date]
) -> SeriesRows:
    """Return the rows of a variant's series, from their first days by series ID."""
    series_rows: list[Row] = []
    metrics_rows: dict[Hashable, Row] = {}
    for each in computed:
        series_id = build_series_id(variant_id, each.test_key)
        first_day = first_days.get(series_id)
        # Most tests of a variant have the same results, and so the same metrics.
        alike = (each.results, first_day)
        row = metrics_rows.get(alike)
        if row is None:
            row = metrics_rows[alike] = build_metrics_row(variant_id, each, first_day)
        series_rows.append((variant_id, series_id, *each.test, row[1]))
    return SeriesRows(series_rows, list({row[1]: row for row in metrics_rows.values()}.values()))


def build_metrics_row(variant_id: str, computed: Series, first_day: date | None) -> Row:
    """Return the row of `series_metrics` of a series."""
    values = (*list_metrics(computed), first_day, first_day.isoformat() if first_day else None)
    return (variant_id, _build_metrics_id(values), *values)


@lru_cache(maxsize=1024)  # most tests of a variant have the same metrics
def _build_metrics_id(values: Row) -> str:
    return hash_text("|".join(map(str, values)))[:16]


def list_metrics(computed: Series) -> Row:
    """Return the columns of `series_metrics` without its key and `FIRST_DAY_COLUMNS`."""
    verdict, newest = computed.verdict, computed.run_at(0)
    return (
        verdict.counts.decided,
        *verdict.counts.in_column_order,
        *compute_rates(verdict.counts),
        verdict.flips,
        verdict.flip_rate,
        verdict.health,
        verdict.is_flaky,
        computed.is_confirmed_flaky,
        verdict.is_regression,
        verdict.is_new_failure,
        verdict.is_always_failing,
        verdict.is_recovered,
        verdict.fail_streak,
        *_started(computed, verdict.streak_place),
        *_started(computed, verdict.flip_place),
        verdict.recent,
        WORDS.get(verdict.recent[-1]),
        newest.run_id,
        newest.started_at,
        computed.run_at(verdict.window[-1]).started_at,
    )


def _started(computed: Series, place: int | None) -> tuple[datetime | None, str | None]:
    """Return when the run of a result started, and its ID."""
    if place is None:
        return None, None
    run = computed.run_at(place)
    return run.started_at, run.run_id


def build_variant_roster(variant_id: str, roster: Roster, only: PlanRun | None) -> Row:
    """Return the row of `variant_rosters` of a roster, with the keys of its tests.

    `only` is the variant's `find_only_run`. Runs without a start may have other rosters.
    """
    only_run_id = only.run_id if only and only.roster.roster_id == roster.roster_id else None
    return (variant_id, roster.roster_id, bytes.fromhex("".join(roster.keys)), only_run_id)


def find_only_run(newest_runs: NewestRuns, rule: IdentityRule) -> PlanRun | None:
    """Return a variant's only run, if its tests need no rows in `series`.

    They need none if each is a series of its own, under the name that it has there.
    """
    only = newest_runs.only
    if only is None or rule != IdentityRule():
        return None
    keys = only.roster.keys
    return only if len(set(keys)) == len(keys) else None


def build_period_row(plan: Plan, period: Period) -> Row:
    """Return the row of `daily_results` or `weekly_results`."""
    return (
        plan.plan_id,
        period.first_day,
        period.first_day.isoformat(),
        plan.source,
        plan.application,
        plan.plan,
        period.runs,
        period.tests,
        *period.counts.in_column_order,
        period.unknown,
        *compute_rates(period.counts),
        *period.checks.in_column_order,
        compute_rates(period.checks).pass_rate,
    )


def list_plan_ids(connection: Connection) -> list[str]:
    """Return the ids of all plans that occur in any table here, sorted."""
    queries = [select(table.c.plan_id) for table in KEYED_BY_PLAN]
    ids = {plan_id for query in queries for plan_id in connection.scalars(query.distinct())}
    return sorted(ids, key=str)  # a damaged SQLite cell can have another type, which verify reports


def list_plan_ids_of(connection: Connection, application: Application) -> list[str]:
    """Return the ids of an application's plans, sorted."""
    query = select(plan_variants.c.plan_id).distinct().order_by(plan_variants.c.plan_id)
    return list(connection.scalars(query.where(of_application(plan_variants, application))))


def compute_plan_rows(connection: Connection, plan_id: str, rules: Rules) -> dict[str, list[Row]]:
    """Return the rows that each aggregate should have of a plan, by table."""
    rows: dict[str, list[Row]] = {table.name: [] for table in AGGREGATES}
    names = select(*PLAN_NAMES)
    stored = connection.execute(names.where(plan_variants.c.plan_id == plan_id)).first()
    if stored is None:
        return rows
    plan = Plan(*stored)
    rule = IdentityRules(connection).for_plan(plan)
    cache = RosterCache(connection, rule)
    flaky_seen_at: list[datetime] = []
    for variant_id in read_variant_ids(connection, plan_id):
        newest_runs = NewestRuns(connection, variant_id, cache)
        computed = compute_variant(variant_id, newest_runs, rules)
        flaky_seen_at += computed.flaky_seen_at
        rows["durations"] += computed.durations
        days_of_rosters = read_days_of_rosters(connection, variant_id)
        cache.load(days_of_rosters)
        only = find_only_run(newest_runs, rule)
        rows["variant_rosters"] += [
            build_variant_roster(variant_id, cache[each], only) for each in days_of_rosters
        ]
        first_days = find_first_days(variant_id, days_of_rosters, cache)
        found = build_series_rows(variant_id, computed.series, first_days)
        rows["series"] += [] if only else sorted(found.series)
        rows["series_metrics"] += sorted(found.metrics, key=itemgetter(1))
    flaky = {plan_id: flaky_seen_at}
    rows["plan_summaries"] = compute_plan_summaries(connection, [plan], flaky, rules)
    days = read_days(connection, {plan_id: plan})[plan_id]
    rows["daily_results"] = [build_period_row(plan, each) for each in days]
    rows["weekly_results"] = [build_period_row(plan, each) for each in sum_weeks(days)]
    return rows


class VariantMetrics(NamedTuple):
    """The series of a variant, and the rows of its durations, if any run was measured."""

    series: list[Series]
    durations: list[Row]
    flaky_seen_at: list[datetime]
    """The start of the newest run of each flaky series."""


def compute_variant(
    variant_id: str,
    newest_runs: Iterable[PlanRun],
    rules: Rules,
    keys: Collection[str] | None = None,
) -> VariantMetrics:
    """Return the metrics of a variant from its runs, newest first: of these test keys, or all.

    Iterates `newest_runs` twice.
    """
    computed = list(compute_series(newest_runs, rules, keys))
    measured = compute_durations(newest_runs, rules)
    return VariantMetrics(
        computed,
        [(variant_id, *measured)] if measured else [],
        [each.last_started_at for each in computed if each.verdict.is_flaky],
    )


def read_days(
    connection: Connection, plans: Mapping[str, Plan], span: tuple[date, date] | None = None
) -> dict[str, list[Period]]:
    """Return the results of each day of plans, by plan id and in day order.

    `span` limits the days to those from its first to its last.
    """
    counted = [
        func.count(),
        func.sum(sum((outcomes.c[f"tests_{name}"] for name in COUNTERS), outcomes.c.tests_unknown)),
        *[func.sum(outcomes.c[f"tests_{name}"]) for name in Counts._fields],
        *[func.sum(outcomes.c[f"checks_{name}"]) for name in Counts._fields],
    ]
    query = (
        select(plan_variants.c.plan_id, outcomes.c.started_on, *counted)
        .join(plan_variants, plan_variants.c.variant_id == outcomes.c.variant_id)
        .where(plan_variants.c.plan_id.in_(list(plans)), _is_within(span))
        .group_by(plan_variants.c.plan_id, outcomes.c.started_on)
        .order_by(outcomes.c.started_on)
    )
    days: dict[str, list[Period]] = {plan_id: [] for plan_id in plans}
    for plan_id, day, *sums in connection.execute(query):
        runs, tests, *numbers = map(int, sums)
        days[plan_id].append(Period(day, runs, tests, Counts(*numbers[:5]), Counts(*numbers[5:])))
    return days


def _is_within(span: tuple[date, date] | None) -> ColumnElement[bool]:
    """Return the condition for current outcomes with a day, within `span`.

    The bounds of `started_at`, a day wider than any time zone, let the database use its index.
    """
    if span is None:
        return and_(IS_CURRENT, outcomes.c.started_on.is_not(None))
    first, last = span
    return and_(
        IS_CURRENT,
        outcomes.c.started_on.between(first, last),
        outcomes.c.started_at >= _shift(first, timedelta(days=-2)),
        outcomes.c.started_at <= _shift(last, timedelta(days=2)),
    )


def _shift(day: date, by: timedelta) -> datetime:
    """Return a moment before or after a day; the first or last possible one at the limits."""
    try:
        day += by
    except OverflowError:
        day = date.min if by < timedelta(0) else date.max
    return datetime.combine(day, time(), UTC)


def read_plan_rows(connection: Connection, plan_id: str, table: Table) -> list[Row]:
    """Return the stored rows of a plan in one of the aggregates, as raw driver values."""
    if table in KEYED_BY_PLAN:
        return bulk.read(connection, table, [plan_id], "plan_id")
    ids = read_variant_ids(connection, plan_id)
    return [
        row
        for start in range(0, len(ids), KEYS_AT_ONCE)
        for row in bulk.read(connection, table, ids[start : start + KEYS_AT_ONCE], "variant_id")
    ]


def recompute_plan(connection: Connection, plan_id: str, rules: Rules) -> None:
    """Recompute the stored rows of a plan in all aggregates. The caller has locked the plan.

    Deletes dirty marks first: most commits take no lock, and the mark that one leaves while the
    rows are computed must stay.
    """
    is_in_plan = select_variant_ids(plan_id)
    connection.execute(delete(dirty_marks).where(dirty_marks.c.variant_id.in_(is_in_plan)))
    rows = compute_plan_rows(connection, plan_id, rules)
    for table in (variant_rosters, series, series_metrics, durations):
        connection.execute(delete(table).where(table.c.variant_id.in_(is_in_plan)))
    for table in (plan_summaries, daily_results, weekly_results):
        connection.execute(delete(table).where(table.c.plan_id == plan_id))
    for table in AGGREGATES:
        bulk.insert(connection, table, rows[table.name])


def read_variant_ids(connection: Connection, plan_id: str) -> list[str]:
    """Return the ids of a plan's variants, sorted."""
    query = select_variant_ids(plan_id).order_by(plan_variants.c.variant_id)
    return list(connection.scalars(query))


def read_days_of_rosters(connection: Connection, variant_id: str) -> dict[str, date | None]:
    """Return the first day of each roster of a variant's current outcomes, in their order."""
    query = (
        select(outcomes.c.roster_id, func.min(outcomes.c.started_on))
        .where(outcomes.c.variant_id == variant_id, IS_CURRENT)
        .group_by(outcomes.c.roster_id)
        .order_by(outcomes.c.roster_id)
    )
    return dict(connection.execute(query).all())


def find_first_days(
    variant_id: str, days_of_rosters: Mapping[str, date | None], cache: RosterCache
) -> dict[str, date]:
    """Return the first day of each series of a variant, from those of its rosters."""
    first_days: dict[str, date] = {}
    for roster_id, day in days_of_rosters.items():
        if day is not None:
            for key in cache[roster_id].keys:
                series_id = build_series_id(variant_id, key)
                first_days[series_id] = min(day, first_days.get(series_id, day))
    return first_days


def select_variant_ids(plan_id: str) -> Select[tuple[str]]:
    """Return the query for the ids of a plan's variants."""
    return select(plan_variants.c.variant_id).where(plan_variants.c.plan_id == plan_id)
