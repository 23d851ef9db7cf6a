"""Read the outcomes of runs, with their rosters, for the metrics."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, and_, select, tuple_

from etl.db.schema import IS_CURRENT, among, labels, outcomes, rosters
from etl.derived.metrics import Counts
from etl.derived.plans import IdentityRule, NamedTest, Plan, PlanRun, Roster, build_roster

COMMIT_LABEL = "commit"
"""The label that decides whether a flaky test is confirmed."""
PAGE_RUNS = 200
MAX_PAGE_RUNS = 1000


class Variant(NamedTuple):
    """A plan under one set of environments."""

    variant_id: str
    plan_id: str
    source: str
    application: str
    plan: str
    environment_signature: str

    @property
    def names(self) -> Plan:
        """The names of its plan."""
        return Plan(self.source, self.application, self.plan)


def select_plan_runs(condition: ColumnElement[bool]) -> Select[Any]:
    """Return the query for the runs that match `condition`; `read_plan_run` reads its rows."""
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


class RosterCache:
    """The rosters of one plan that were read so far, by id."""

    def __init__(self, connection: Connection, rule: IdentityRule) -> None:
        self._connection = connection
        self._rule = rule
        self._rosters: dict[str, Roster] = {}

    def load(self, roster_ids: Iterable[str]) -> None:
        """Read those of the rosters that were not read yet."""
        missing = sorted(set(roster_ids) - self._rosters.keys())
        if missing:
            query = select(rosters.c.roster_id, rosters.c.tests)
            for row in self._connection.execute(query.where(among(rosters.c.roster_id, missing))):
                tests = _parse_tests(row.tests)
                self._rosters[row.roster_id] = build_roster(row.roster_id, tests, self._rule)

    def __getitem__(self, roster_id: str) -> Roster:
        return self._rosters[roster_id]


@lru_cache(maxsize=8)
def _parse_tests(tests: str) -> tuple[NamedTest, ...]:
    return tuple(NamedTest(*each) for each in msgspec.json.decode(tests))


def read_plan_run(row: Sequence[Any], cache: RosterCache) -> PlanRun:
    """Convert a row of `select_plan_runs`."""
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
        cache[roster_id],
        commit,
    )


class NewestRuns:
    """The runs of a variant in their current revisions, newest first, read page by page.

    Can be iterated more than once; the first page is read once.
    """

    def __init__(self, connection: Connection, variant_id: str, cache: RosterCache) -> None:
        self._connection = connection
        self._variant_id = variant_id
        self._cache = cache
        self._first_page: list[PlanRun] | None = None

    def __iter__(self) -> Iterator[PlanRun]:
        if self._first_page is None:
            self._first_page = self._read_page(None, PAGE_RUNS)
        page, size = self._first_page, PAGE_RUNS
        while page:
            yield from page
            if len(page) < size:
                return
            size = min(4 * size, MAX_PAGE_RUNS)
            page = self._read_page(page[-1], size)

    def _read_page(self, after: PlanRun | None, size: int) -> list[PlanRun]:
        condition = and_(outcomes.c.variant_id == self._variant_id, IS_CURRENT)
        if after:
            place = tuple_(outcomes.c.started_at, outcomes.c.run_id)
            condition = and_(condition, place < (after.started_at, after.run_id))
        newest_first = (outcomes.c.started_at.desc(), outcomes.c.run_id.desc())
        rows = self._connection.execute(
            select_plan_runs(condition).order_by(*newest_first).limit(size)
        ).all()
        self._cache.load(row.roster_id for row in rows)
        return [read_plan_run(row, self._cache) for row in rows]
