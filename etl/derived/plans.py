"""Plans, the tests in them, and the keys by which both are known again in other runs.

Pure: reads no clock, file, network or database.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from etl.derived.metrics import Counts


class Plan(NamedTuple):
    """A plan of an application, by names without blanks at their ends; "" where there is none."""

    application: str
    plan: str

    @property
    def plan_id(self) -> str:
        """The key of the plan in the tables."""
        return _plan_id(self)


class NamedTest(NamedTuple):
    """A test as a roster lists it; `test_id` only where ids repeat from run to run."""

    name: str | None
    type: str | None
    test_id: str | None = None


class Naming(NamedTuple):
    """How the tests of a plan are known again in another run.

    By their id where an application's ids repeat, else by name and type; `renamed` leads from
    old names to new ones.
    """

    by_id: bool = False
    renamed: Mapping[str, str] = MappingProxyType({})


class Roster(NamedTuple):
    """The tests of a run, in their order; `keys` are the same for the same test of another run.

    A key can be there more than once.
    """

    roster_id: str
    keys: tuple[str, ...]
    tests: tuple[NamedTest, ...]


def as_roster(roster_id: str, tests: Iterable[NamedTest], naming: Naming) -> Roster:
    """Return a list of tests with what makes each the same from run to run."""
    named = tuple(_named(test, naming) for test in tests)
    return Roster(roster_id, tuple(_key(test, naming) for test in named), named)


def _named(test: NamedTest, naming: Naming) -> NamedTest:
    """Return a test as `naming` knows it: by its newest name, and with an id if that repeats."""
    name = naming.renamed.get(test.name, test.name) if test.name else test.name
    return NamedTest(name, test.type, test.test_id if naming.by_id else None)


def _key(test: NamedTest, naming: Naming) -> str:
    if naming.by_id and test.test_id:
        return test.test_id
    return canonical([test.name, test.type])


class PlanRun(NamedTuple):
    """A run as one revision of it says; `outcomes` has a letter for each test of the roster."""

    run_id: str
    variant_id: str
    status: str | None
    started_at: datetime
    started_on: date | None
    duration_ms: int | None
    checks: Counts
    outcomes: str
    roster: Roster
    commit: str | None


def canonical(parts: Sequence[str | None]) -> str:
    """Return `parts` as JSON, the same text for the same parts."""
    return msgspec.json.encode(parts).decode()


def digest(parts: Sequence[str | None]) -> str:
    """Return a key of 32 hexadecimal digits for `parts`."""
    return short_hash(canonical(parts))


@lru_cache(maxsize=1024)  # plans recur
def _plan_id(plan: Plan) -> str:
    return digest([plan.application, plan.plan])


def short_hash(text: str) -> str:
    """Return 32 hexadecimal digits that stand for `text`."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def as_plan(application: str | None, name: str | None) -> Plan:
    """Return the plan that a run is of. The API sends names with blanks at their ends."""
    return Plan((application or "").strip(), (name or "").strip())
