"""Read the outcomes of runs, with their lists of tests, as the metrics take them."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    select,
    tuple_,
)

from etl.db.schema import (
    IS_CURRENT,
    labels,
    outcomes,
    rosters,
)
from etl.derived.metrics import Counts
from etl.derived.plans import NamedTest, Naming, PlanRun, Roster, as_roster

COMMIT_LABEL = "commit"
"""The label that makes a flaky test a confirmed one."""
PAGE_RUNS = 200
LONGEST_PAGE_RUNS = 1000


class Variant(NamedTuple):
    """A plan under one set of environments."""

    variant_id: str
    plan_id: str
    application: str
    plan: str
    environment_signature: str


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
