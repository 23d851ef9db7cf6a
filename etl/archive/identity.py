"""Find out whether a test's id is the same from run to run, and know tests by it where it is.

The API does not say. It is measured for each application, in its newest runs: with the first
answers that tell enough, so that little has to be counted anew, and again at the end of each pass
that changed something of it. The answer is kept in `identities` (docs/REPORTS.md).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Select, and_, select, update

from etl import clock
from etl.archive import rekey
from etl.config.settings import Rules
from etl.db.bulk import upsert_into
from etl.db.database import reading, writing
from etl.db.schema import among, identities, outcomes, plan_variants, runs, tests
from etl.derived import refresh
from etl.derived.identity_rules import lock_identity_exclusive
from etl.telemetry.log import get_logger

COMPARED_RUNS = 40
COMPARED_TESTS = 20_000
TESTS_AT_ONCE = 1000
"""So many are read at once: of large runs the newest few tell enough."""
LEAST_COMPARED = 20
"""Fewer pairs of the same test in two runs decide nothing."""
ENOUGH_COMPARED = 50
"""More pairs would tell no more."""
MOSTLY = 0.9
"""Of so many pairs or more the id is the same: ids repeat."""
HARDLY = 0.5
"""Of fewer pairs than that: they do not. In between, what was decided stays."""
LONGEST_APPLICATION_BYTES = 500
"""A longer name does not fit in a key; its tests are known by their names."""

log = get_logger()


class ListedTest(NamedTuple):
    """A test of a run, and the plan that it ran in."""

    plan: str
    name: str | None
    type: str | None
    test_id: str | None


class Repeats(NamedTuple):
    """Of how many pairs of a test in two runs that follow each other the ids are the same."""

    compared: int
    repeated: int


def count_repeats(newest_first: Iterable[Sequence[ListedTest]]) -> Repeats:
    """Compare the ids of tests with the same plan, name and type, from run to run.

    A test that is in a run more than once, or has no id, tells nothing.
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


def key_kind(found: Repeats, before: str) -> str:
    """Return 'id' or 'name': by what tests are known; `before` is what was decided before."""
    if found.compared < LEAST_COMPARED:
        return before
    share = found.repeated / found.compared
    if share >= MOSTLY:
        return "id"
    return "name" if share < HARDLY else before


def settle(engine: Engine, since: datetime, zone: tzinfo, rules: Rules) -> None:
    """Measure the applications that changed `since` then, and count anew where that tells more."""
    with reading(engine) as connection:
        applications = _changed(connection, since)
    _settle(engine, applications, zone)
    refresh.refresh_marked(engine, rules)


def settle_new(engine: Engine, applications: Collection[str], zone: tzinfo) -> None:
    """Measure those of `applications`, of which runs were just stored, that are not decided yet.

    What has to be counted anew is marked: the pass counts it.
    """
    with reading(engine) as connection:
        undecided = _undecided(connection, applications)
    if undecided:
        _settle(engine, undecided, zone)


def _settle(engine: Engine, applications: Sequence[str], zone: tzinfo) -> None:
    for application in applications:
        with writing(engine) as connection:
            _measure(connection, application)
    with reading(engine) as connection:
        undone = select(identities.c.application).where(identities.c.is_applied.is_(False))
        unsettled = list(connection.scalars(undone.order_by(identities.c.application)))
    for application in unsettled:
        log.debug("tests are known by other keys now: counting anew", application=application)
        rekey.rekey_application(engine, application, zone)
        with writing(engine) as connection:
            is_it = identities.c.application == application
            refresh.delete_unused_rosters(connection)
            connection.execute(update(identities).where(is_it).values(is_applied=True))


def _undecided(connection: Connection, applications: Collection[str]) -> list[str]:
    """Return those of `applications` of which too little is known, if they have runs."""
    decided = select(identities.c.application).where(
        among(identities.c.application, applications), identities.c.compared >= LEAST_COMPARED
    )
    undecided = set(applications).difference(connection.scalars(decided))
    if not undecided:
        return []
    application = plan_variants.c.application
    there = select(application).distinct().where(among(application, undecided))
    return _short(connection.scalars(there))


def _changed(connection: Connection, since: datetime) -> list[str]:
    """Return the applications that changed since then, or that no pass has measured yet."""
    query = _runs_with_plan(plan_variants.c.application).where(runs.c.changed_at >= since)
    measured = select(identities.c.application)
    unmeasured = select(plan_variants.c.application).where(
        plan_variants.c.application.not_in(measured)
    )
    return _short(
        [*connection.scalars(query.distinct()), *connection.scalars(unmeasured.distinct())]
    )


def _short(applications: Iterable[str]) -> list[str]:
    """Return the applications whose names fit in a key, each once, in order."""
    return sorted(
        {name for name in applications if len(name.encode()) <= LONGEST_APPLICATION_BYTES}
    )


def _measure(connection: Connection, application: str) -> None:
    lock_identity_exclusive(connection, application)
    found = count_repeats(_newest_tests(connection, application))
    is_it = identities.c.application == application
    before = connection.scalar(select(identities.c.key_kind).where(is_it)) or "name"
    kind = key_kind(found, before)
    now = clock.now()
    measured = {
        "application": application,
        "compared": found.compared,
        "repeated": found.repeated,
        "repeat_share": found.repeated / found.compared if found.compared else None,
        "measured_at": now,
    }
    decided = {"key_kind": kind, "decided_at": now, "is_applied": kind == before}
    insert = upsert_into(connection, identities).values(measured | decided)
    changes = measured | decided if kind != before else measured
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=[identities.c.application],
            set_={name: insert.excluded[name] for name in changes if name != "application"},
        )
    )


def _newest_tests(connection: Connection, application: str) -> Iterator[list[ListedTest]]:
    """Yield the tests of the newest runs of an application, the newest run first."""
    query = (
        _runs_with_plan(runs.c.run_id, runs.c.test_count, plan_variants.c.plan)
        .where(plan_variants.c.application == application, runs.c.started_at.is_not(None))
        .order_by(runs.c.started_at.desc(), runs.c.run_id.desc())
        .limit(COMPARED_RUNS)
    )
    for plans in _portions(connection.execute(query).all()):
        yield from _tests_of(connection, plans)


def _portions(newest: Iterable[Any]) -> Iterator[dict[str, str]]:
    """Yield the plans of runs by run ID, few at a time, until they have `COMPARED_TESTS` tests."""
    part: dict[str, str] = {}
    read = unread = 0
    for run in newest:
        part[run.run_id] = run.plan
        unread += run.test_count
        if unread >= TESTS_AT_ONCE:
            yield part
            part, read, unread = {}, read + unread, 0
            if read >= COMPARED_TESTS:
                return
    if part:
        yield part


def _tests_of(connection: Connection, plans: Mapping[str, str]) -> list[list[ListedTest]]:
    """Return the tests of runs, given by ID with their plan, in the order of the runs."""
    listed: dict[str, list[ListedTest]] = {run_id: [] for run_id in plans}
    columns = (tests.c.run_id, tests.c.name, tests.c.type, tests.c.test_id)
    for run_id, *test in connection.execute(select(*columns).where(among(tests.c.run_id, plans))):
        listed[run_id].append(ListedTest(plans[run_id], *test))
    return list(listed.values())


def _runs_with_plan(*columns: Any) -> Select[Any]:
    """Return a query for `columns` of runs and of the plans that they are of now."""
    is_current = and_(outcomes.c.run_id == runs.c.run_id, outcomes.c.revision == runs.c.revision)
    return (
        select(*columns)
        .select_from(runs)
        .join(outcomes, is_current)
        .join(plan_variants, plan_variants.c.variant_id == outcomes.c.variant_id)
    )
