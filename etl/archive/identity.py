"""Measure whether tests keep their ids from run to run, and identify them by id where they do.

The API does not say. Each application of an account is measured in its newest runs: as soon as
its first answers can be compared, so that few rows have to be rewritten, and again with each
refresh of its plans. The result is stored in `identities` (docs/REPORTS.md).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from datetime import datetime, tzinfo
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Select, and_, delete, func, select, update

from etl.archive.rekey import rekey_application
from etl.db.bulk import upsert_into
from etl.db.database import reading, writing
from etl.db.schema import (
    IS_CURRENT,
    among,
    dirty_marks,
    identities,
    outcomes,
    plan_variants,
    runs,
    tests,
)
from etl.derived import refresh
from etl.derived.identity_rules import lock_identities_exclusive, of_application
from etl.derived.plans import Application
from etl.telemetry.log import get_logger

MAX_RUNS = 40
MAX_TESTS = 20_000
TESTS_AT_ONCE = 1000
"""The number of tests after which a read ends: of large runs the newest few are enough."""
MIN_COMPARED = 20
"""The fewest pairs of the same test in two runs that allow a decision."""
ENOUGH_COMPARED = 50
"""The number of pairs after which the comparison stops."""
REPEATING_SHARE = 0.9
"""The share of pairs with the same id from which ids repeat."""
CHANGING_SHARE = 0.5
"""The share below which they do not. In between, the earlier decision stays."""
MAX_APPLICATION_BYTES = 500
"""A longer name does not fit in a key; its tests are identified by name."""

OWNER_NAMES = (plan_variants.c.source, plan_variants.c.application)

log = get_logger()


class ListedTest(NamedTuple):
    """A test of a run, with the plan of the run."""

    plan: str
    name: str | None
    type: str | None
    test_id: str | None


class Repeats(NamedTuple):
    """Pairs of the same test in two consecutive runs, and those of them with the same id."""

    compared: int
    repeated: int


def count_repeats(newest_first: Iterable[Sequence[ListedTest]]) -> Repeats:
    """Compare the ids of tests with the same plan, name and type, from run to run.

    Skips tests that occur in a run more than once or have no id.
    """
    compared = repeated = 0
    newer: dict[tuple[str | None, ...], str] = {}
    for listed in newest_first:
        names = [(test.plan, test.name, test.type) for test in listed]
        often = Counter(names)
        for name, test in zip(names, listed, strict=True):
            if often[name] > 1 or not test.test_id:
                continue
            if name in newer:
                compared += 1
                repeated += newer[name] == test.test_id
            newer[name] = test.test_id
        if compared >= ENOUGH_COMPARED:
            break
    return Repeats(compared, repeated)


def choose_key_kind(repeats: Repeats, before: str) -> str:
    """Return 'id' or 'name', by which tests are identified; `before` is the decision so far."""
    if repeats.compared < MIN_COMPARED:
        return before
    share = repeats.repeated / repeats.compared
    if share >= REPEATING_SHARE:
        return "id"
    return "name" if share < CHANGING_SHARE else before


def refresh_archive(engine: Engine, now: datetime, zone: tzinfo) -> None:
    """Measure the applications with a dirty mark, and refresh all marked aggregates.

    Decisions are valid from `now`: reports as of an earlier moment stay as they were.
    """
    with reading(engine) as connection:
        applications = _find_marked(connection)
    _measure_all(engine, applications, now)
    apply_decisions(engine, zone)
    refresh.refresh_marked(engine)


def measure_new(
    engine: Engine, applications: Collection[Application], now: datetime, zone: tzinfo
) -> None:
    """Measure those of `applications` that are undecided, after the pass has stored runs of them.

    Series that have to be recomputed are marked as dirty; the pass refreshes them.
    """
    with reading(engine) as connection:
        undecided = _find_undecided(connection, applications)
    measure_again(engine, undecided, now, zone)


def measure_again(
    engine: Engine, applications: Collection[Application], now: datetime, zone: tzinfo
) -> None:
    """Measure these applications, and rewrite the keys of tests where a decision has changed.

    Series that have to be recomputed are marked as dirty.
    """
    if applications:
        _measure_all(engine, _keep_short_names(applications), now)
        apply_decisions(engine, zone)


def measure_remaining(
    connection: Connection, applications: Set[Application], now: datetime
) -> None:
    """Measure applications of which runs were dropped; forget those that have none left.

    Works in the caller's transaction, which has locked their rules
    (`lock_identities_exclusive`); `apply_decisions` has to follow after the commit.
    """
    names = {each.application for each in applications}
    query = select(*OWNER_NAMES).distinct().where(among(plan_variants.c.application, names))
    remaining = applications & _read_applications(connection, query)
    for application in applications - remaining:
        connection.execute(delete(identities).where(of_application(identities, application)))
    for application in _keep_short_names(remaining):
        _measure_application(connection, application, now)


def _measure_all(engine: Engine, applications: Sequence[Application], now: datetime) -> None:
    for application in applications:
        with writing(engine) as connection:
            _measure_application(connection, application, now)


def apply_decisions(engine: Engine, zone: tzinfo) -> None:
    """Rekey the applications whose decision has changed; an interrupted pass may have left some."""
    with reading(engine) as connection:
        names = (identities.c.source, identities.c.application)
        query = select(*names).where(identities.c.is_applied.is_(False)).order_by(*names)
        applications = [Application._make(row) for row in connection.execute(query)]
    for application in applications:
        log.debug("test identity changed: rewriting the keys of tests", **application._asdict())
        rekey_application(engine, application, zone)
        with writing(engine) as connection:
            refresh.delete_unused_rosters(connection)
            is_it = of_application(identities, application)
            connection.execute(update(identities).where(is_it).values(is_applied=True))


def _find_undecided(
    connection: Connection, applications: Collection[Application]
) -> list[Application]:
    """Return those of `applications` that have runs, but not enough pairs for a decision."""
    names = {each.application for each in applications}
    decided = select(identities.c.source, identities.c.application).where(
        among(identities.c.application, names), identities.c.compared >= MIN_COMPARED
    )
    undecided = set(applications) - _read_applications(connection, decided)
    if not undecided:
        return []
    there = select(*OWNER_NAMES).distinct().where(among(plan_variants.c.application, names))
    return _keep_short_names(undecided & _read_applications(connection, there))


def _find_marked(connection: Connection) -> list[Application]:
    """Return the applications that have a marked plan with two runs, which can be compared."""
    is_marked = dirty_marks.c.variant_id == plan_variants.c.variant_id
    marked = select(plan_variants.c.plan_id).join(dirty_marks, is_marked)
    query = (
        select(*OWNER_NAMES)
        .join(outcomes, outcomes.c.variant_id == plan_variants.c.variant_id)
        .where(plan_variants.c.plan_id.in_(marked), IS_CURRENT, outcomes.c.started_at.is_not(None))
        .group_by(plan_variants.c.plan_id, *OWNER_NAMES)
        .having(func.count() > 1)
    )
    return _keep_short_names(_read_applications(connection, query))


def _read_applications(connection: Connection, query: Select[str, str]) -> set[Application]:
    return {Application._make(row) for row in connection.execute(query)}


def _keep_short_names(applications: Iterable[Application]) -> list[Application]:
    """Return the applications whose names fit in a key, sorted, each once."""
    return sorted(
        {each for each in applications if len("".join(each).encode()) <= MAX_APPLICATION_BYTES}
    )


def _measure_application(connection: Connection, application: Application, now: datetime) -> None:
    """Measure an application and store the decision; locks its rule exclusively."""
    lock_identities_exclusive(connection, [application])
    repeats = count_repeats(_read_newest_tests(connection, application))
    is_it = of_application(identities, application)
    before = connection.scalar(select(identities.c.key_kind).where(is_it)) or "name"
    kind = choose_key_kind(repeats, before)
    measured = {
        **application._asdict(),
        "compared": repeats.compared,
        "repeated": repeats.repeated,
        "repeat_share": repeats.repeated / repeats.compared if repeats.compared else None,
        "measured_at": now,
    }
    decided = {"key_kind": kind, "decided_at": now, "is_applied": kind == before}
    insert = upsert_into(connection, identities).values(measured | decided)
    changes = measured | decided if kind != before else measured
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=identities.primary_key.columns,
            set_={
                name: insert.excluded[name] for name in changes if name not in Application._fields
            },
        )
    )


def _read_newest_tests(
    connection: Connection, application: Application
) -> Iterator[list[ListedTest]]:
    """Yield the tests of the newest runs of an application, newest run first."""
    query = (
        _select_runs_with_plan(runs.c.run_id, runs.c.test_count, plan_variants.c.plan)
        .where(of_application(plan_variants, application), runs.c.started_at.is_not(None))
        .order_by(runs.c.started_at.desc(), runs.c.run_id.desc())
        .limit(MAX_RUNS)
    )
    for plans in _split_runs(connection.execute(query).all()):
        yield from _read_tests(connection, plans)


def _split_runs(newest: Iterable[Any]) -> Iterator[dict[str, str]]:
    """Yield runs with their plans, a few at a time, until they have `MAX_TESTS` tests."""
    part: dict[str, str] = {}
    read = unread = 0
    for run in newest:
        part[run.run_id] = run.plan
        unread += run.test_count
        if unread >= TESTS_AT_ONCE:
            yield part
            part, read, unread = {}, read + unread, 0
            if read >= MAX_TESTS:
                return
    if part:
        yield part


def _read_tests(connection: Connection, plans: Mapping[str, str]) -> list[list[ListedTest]]:
    """Return the tests of runs, in the order of `plans` (plans by run ID)."""
    listed: dict[str, list[ListedTest]] = {run_id: [] for run_id in plans}
    columns = (tests.c.run_id, tests.c.name, tests.c.type, tests.c.test_id)
    for run_id, *test in connection.execute(select(*columns).where(among(tests.c.run_id, plans))):
        listed[run_id].append(ListedTest(plans[run_id], *test))
    return list(listed.values())


def _select_runs_with_plan(*columns: Any) -> Select[Any]:
    """Return the query for `columns` of runs and their current plans."""
    is_current = and_(outcomes.c.run_id == runs.c.run_id, outcomes.c.revision == runs.c.revision)
    return (
        select(*columns)
        .select_from(runs)
        .join(outcomes, is_current)
        .join(plan_variants, plan_variants.c.variant_id == outcomes.c.variant_id)
    )
