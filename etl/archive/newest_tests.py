"""Read the tests of the newest runs of applications, which tell whether test ids repeat."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, select

from etl.db.schema import IS_CURRENT, among, outcomes, plan_variants, runs, tests
from etl.derived.identity_rules import of_application
from etl.derived.plans import Application

MAX_RUNS = 40
"""The newest runs of an application among which pairs of one plan are searched."""
ENOUGH_PAIRED = MAX_RUNS // 2
"""With fewer runs that have a partner, `MORE_RUNS` are searched: an application with 40 plans that
run in turn has none among the newest 40."""
MORE_RUNS = 1000
WALKED_RUNS = 5 * MAX_RUNS
"""The newest runs of the archive that are read for each application to be measured."""
MAX_TESTS = 20_000
TESTS_AT_ONCE = 1000
"""The number of tests after which a read ends: of large runs the newest few are enough."""

OWNER_NAMES = (plan_variants.c.source, plan_variants.c.application)


class ListedTest(NamedTuple):
    """A test of a run, with the plan of the run."""

    plan: str
    name: str | None
    type: str | None
    test_id: str | None


class _CountedRun(NamedTuple):
    """A run whose tests can be listed: their number, and its plan."""

    run_id: str
    test_count: int
    plan: str


_COUNTED_RUN = (runs.c.run_id, runs.c.test_count, plan_variants.c.plan)


def read_newest_tests(
    connection: Connection, applications: Collection[Application]
) -> Iterator[tuple[Application, Iterator[list[ListedTest]]]]:
    """Yield each application with the tests of its newest runs, the newest of a plan first.

    Leaves out runs without another one of their plan: their tests have no pair.
    """
    newest = _find_newest_runs(connection, applications)
    for application in applications:
        paired = _find_paired(connection, application, newest[application])
        yield application, _read_runs(connection, paired)


def find_newest_run(connection: Connection, application: Application) -> str | None:
    """Return the ID of an application's newest run."""
    is_of_owner = of_application(plan_variants, application)
    newest: str | None = connection.scalar(_select_newest_runs(is_of_owner, runs.c.run_id).limit(1))
    return newest


def _read_runs(connection: Connection, newest: Iterable[_CountedRun]) -> Iterator[list[ListedTest]]:
    """Yield the tests of runs, in the order of these."""
    for plans in _split_runs(newest):
        yield from _read_tests(connection, plans)


def _find_newest_runs(
    connection: Connection, applications: Collection[Application]
) -> defaultdict[Application, list[_CountedRun]]:
    """Return the newest runs of each application, `MAX_RUNS` or all, the newest first.

    Mostly they are among the newest of the archive: only of an application that has few there, all
    runs are sorted.
    """
    most = WALKED_RUNS * len(applications)
    rows = _read_newest_runs(connection, most)
    newest = _group_by_owner(rows)
    rest = {each for each in applications if len(newest[each]) < MAX_RUNS}
    if rest and len(rows) == most:
        for application, variant_ids in _read_variants(connection, rest).items():
            newest[application] = _read_newest_of(connection, variant_ids, MAX_RUNS)
    return newest


def _group_by_owner(rows: Iterable[Any]) -> defaultdict[Application, list[_CountedRun]]:
    """Return `MAX_RUNS` of the runs of each application, or all, in the order of `rows`."""
    newest: defaultdict[Application, list[_CountedRun]] = defaultdict(list)
    for source, application, *run in rows:
        found = newest[Application(source, application)]
        if len(found) < MAX_RUNS:
            found.append(_CountedRun(*run))
    return newest


def _find_paired(
    connection: Connection, application: Application, newest: Sequence[_CountedRun]
) -> list[_CountedRun]:
    """Return the runs that have another one of their plan among the newest of an application."""
    paired = list(_order_by_pairs(newest))
    if len(newest) < MAX_RUNS or len(paired) >= ENOUGH_PAIRED:
        return paired
    variant_ids = _read_variants(connection, {application})[application]
    return list(_order_by_pairs(_read_newest_of(connection, variant_ids, MORE_RUNS)))


def _order_by_pairs(newest: Iterable[_CountedRun]) -> Iterator[_CountedRun]:
    """Yield runs that have a newer one of their plan, each behind that: mostly two are enough."""
    newer: dict[str, list[_CountedRun]] = {}
    for run in newest:
        if run.plan in newer:
            yield from newer[run.plan]
            yield run
        newer[run.plan] = [] if run.plan in newer else [run]


def _read_newest_runs(connection: Connection, most: int) -> Sequence[Any]:
    """Return the owner, run ID, number of tests and plan of the newest runs of the archive."""
    order = (runs.c.started_at.desc(), runs.c.run_id.desc())
    has_start = runs.c.started_at.is_not(None)
    chosen = select(runs.c.run_id).where(has_start).order_by(*order).limit(most)
    query = _select_newest_runs(runs.c.run_id.in_(chosen), *OWNER_NAMES, *_COUNTED_RUN)
    return connection.execute(query).all()


def _read_variants(
    connection: Connection, applications: Set[Application]
) -> Mapping[Application, list[str]]:
    """Return the variants of each application."""
    names = {each.application for each in applications}
    query = select(plan_variants.c.variant_id, *OWNER_NAMES)
    variants: dict[Application, list[str]] = {each: [] for each in applications}
    for variant_id, *owner in connection.execute(
        query.where(among(plan_variants.c.application, names))
    ):
        if (application := Application(*owner)) in variants:
            variants[application].append(variant_id)
    return variants


def _read_newest_of(
    connection: Connection, variant_ids: Sequence[str], most: int
) -> list[_CountedRun]:
    """Return the newest runs of some variants."""
    query = _select_newest_runs(among(outcomes.c.variant_id, variant_ids), *_COUNTED_RUN)
    return [_CountedRun(*row) for row in connection.execute(query.limit(most))]


def _select_newest_runs(condition: ColumnElement[bool], *columns: Any) -> Select[Any]:
    """Return the query for `columns` of the runs with a start that match, the newest first."""
    started_at = outcomes.c.started_at
    query = _select_runs_with_plan(*columns).where(condition, IS_CURRENT, started_at.is_not(None))
    return query.order_by(started_at.desc(), outcomes.c.run_id.desc())


def _split_runs(newest: Iterable[_CountedRun]) -> Iterator[dict[str, str]]:
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
