"""Read the outcomes of runs, with their rosters, for the metrics."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, and_, select, tuple_

from etl.db.schema import IS_CURRENT, among, labels, outcomes, plan_variants, rosters
from etl.derived.metrics import Counts
from etl.derived.plans import IdentityRule, NamedTest, Plan, PlanRun, Roster, TestIdentities

COMMIT_LABEL = "commit"
"""The label that decides whether a flaky test is confirmed."""
PAGE_RUNS = 200
MAX_PAGE_RUNS = 1000
_ROSTER_DECODER = msgspec.json.Decoder(tuple[NamedTest, ...])
NEWEST_FIRST = (outcomes.c.started_at.desc(), outcomes.c.run_id.desc())
OLDEST_FIRST = (outcomes.c.started_at, outcomes.c.run_id)


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


RUN_COLUMNS = (
    outcomes.c.run_id,
    outcomes.c.variant_id,
    outcomes.c.status,
    outcomes.c.started_at,
    outcomes.c.started_on,
    outcomes.c.duration_ms,
    *[outcomes.c[f"checks_{name}"] for name in Counts._fields],
    outcomes.c.outcomes,
)
IS_COMMIT = and_(labels.c.run_id == outcomes.c.run_id, labels.c.name == COMMIT_LABEL)


def select_plan_runs(condition: ColumnElement[bool]) -> Select[Any]:
    """Return the query for the runs that match `condition`; `read_plan_run` reads its rows."""
    return (
        select(*RUN_COLUMNS, outcomes.c.roster_id, labels.c.value)
        .outerjoin(labels, IS_COMMIT)
        .where(condition, outcomes.c.started_at.is_not(None))
    )


class RosterCache:
    """The rosters of one plan that were read so far, by id."""

    def __init__(self, connection: Connection, rule: IdentityRule) -> None:
        self._connection = connection
        self._identities = TestIdentities(rule)
        self._rosters: dict[str, Roster] = {}

    def load(self, roster_ids: Iterable[str]) -> None:
        """Read those of the rosters that were not read yet."""
        load_rosters(self._connection, [(self, set(roster_ids))])

    def missing(self, roster_ids: Set[str]) -> Set[str]:
        """Return those of the rosters that were not read yet."""
        return roster_ids - self._rosters.keys()

    def add(self, roster_id: str, tests: Iterable[NamedTest]) -> None:
        """Add a row of `rosters`."""
        self._rosters[roster_id] = self._identities.build_roster(roster_id, tests)

    def __getitem__(self, roster_id: str) -> Roster:
        return self._rosters[roster_id]


def load_rosters(connection: Connection, wanted: Iterable[tuple[RosterCache, Set[str]]]) -> None:
    """Read the rosters that each cache lacks, with one statement for all of them."""
    caches: defaultdict[str, list[RosterCache]] = defaultdict(list)
    for cache, roster_ids in wanted:
        for roster_id in cache.missing(roster_ids):
            caches[roster_id].append(cache)
    if caches:
        query = select(rosters.c.roster_id, rosters.c.tests)
        for row in connection.execute(query.where(among(rosters.c.roster_id, sorted(caches)))):
            tests = _ROSTER_DECODER.decode(row.tests)
            for cache in caches[row.roster_id]:
                cache.add(row.roster_id, tests)


def read_plan_run(row: Sequence[Any], cache: RosterCache) -> PlanRun:
    """Convert a row of `select_plan_runs`."""
    *_, roster_id, commit = row
    return build_plan_run(row, cache[roster_id], commit)


def build_plan_run(row: Sequence[Any], roster: Roster, commit: str | None) -> PlanRun:
    """Return the run of a row that begins with `RUN_COLUMNS`."""
    run_id, variant_id, status, started_at, started_on, duration_ms, *checks, strip = row[
        : len(RUN_COLUMNS)
    ]
    return PlanRun(
        run_id,
        variant_id,
        status,
        started_at,
        started_on,
        duration_ms,
        Counts(*checks),
        strip,
        roster,
        commit,
    )


class NewestRuns:
    """The runs of a variant in their current revisions, newest first, read page by page.

    Can be iterated more than once; the first page is read once.
    """

    def __init__(
        self,
        connection: Connection,
        variant_id: str,
        cache: RosterCache,
        first_page: Sequence[PlanRun] | None = None,
    ) -> None:
        self._connection = connection
        self._variant_id = variant_id
        self._cache = cache
        self._first_page = first_page

    @property
    def only(self) -> PlanRun | None:
        """The run of a variant that has one run with a start."""
        return self._page[0] if len(self._page) == 1 else None

    @property
    def _page(self) -> Sequence[PlanRun]:
        if self._first_page is None:
            self._first_page = self._read_page(None, PAGE_RUNS)
        return self._first_page

    def __iter__(self) -> Iterator[PlanRun]:
        page, size = self._page, PAGE_RUNS
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
        query = select_plan_runs(condition).order_by(*NEWEST_FIRST).limit(size)
        rows = self._connection.execute(query).all()
        self._cache.load(row.roster_id for row in rows)
        return [read_plan_run(row, self._cache) for row in rows]


def read_newest_runs(
    connection: Connection, caches: Mapping[str, RosterCache]
) -> dict[str, NewestRuns]:
    """Return the newest runs of variants, whose caches are given by variant.

    Reads the runs of variants that have few together: most variants of a young archive do.
    """
    few = _find_small(connection, list(caches))
    in_order = (outcomes.c.variant_id, *NEWEST_FIRST)
    chosen = and_(among(outcomes.c.variant_id, few), IS_CURRENT)
    rows = connection.execute(select_plan_runs(chosen).order_by(*in_order)).all() if few else []
    by_variant: dict[str, list[Any]] = {variant_id: [] for variant_id in few}
    for row in rows:
        by_variant[row.variant_id].append(row)
    load_rosters(
        connection,
        [(caches[each], {row.roster_id for row in rows}) for each, rows in by_variant.items()],
    )
    pages = {
        variant_id: [read_plan_run(row, caches[variant_id]) for row in rows]
        for variant_id, rows in by_variant.items()
    }
    return {
        variant_id: NewestRuns(connection, variant_id, cache, pages.get(variant_id))
        for variant_id, cache in caches.items()
    }


def _find_small(connection: Connection, variant_ids: Collection[str]) -> list[str]:
    """Return the variants whose runs fit in one page, in order."""
    last_of_page = (
        select(outcomes.c.run_id)
        .where(outcomes.c.variant_id == plan_variants.c.variant_id, IS_CURRENT)
        .limit(1)
        .offset(PAGE_RUNS - 1)
        .scalar_subquery()
    )
    query = select(plan_variants.c.variant_id).where(
        among(plan_variants.c.variant_id, variant_ids), last_of_page.is_(None)
    )
    return sorted(connection.scalars(query))
