"""Plans, their tests, and the keys that identify both from run to run.

Pure: reads no clock, file, network or database.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from etl.answers.payload import encode_canonical
from etl.answers.test_names import hash_key
from etl.derived.metrics import Counts


class Application(NamedTuple):
    """An application of an account (source); its name is stripped, and "" if missing."""

    source: str
    application: str


class Plan(NamedTuple):
    """A plan of an application; its name is stripped, and "" if missing.

    Equal names in two accounts are two plans.
    """

    source: str
    application: str
    plan: str

    @property
    def plan_id(self) -> str:
        """The key of the plan in the tables."""
        return _compute_plan_id(self)

    @property
    def owner(self) -> Application:
        """The application that the plan belongs to."""
        return Application(self.source, self.application)


class NamedTest(NamedTuple):
    """A test in a roster; `test_id` is set only where ids repeat from run to run."""

    name: str | None
    type: str | None
    test_id: str | None = None


class IdentityRule(NamedTuple):
    """The rule that identifies the tests of a plan from run to run.

    By id where the application's ids repeat (`by_id`), else by name and type. `renamed` maps old
    names to new ones.
    """

    by_id: bool = False
    renamed: Mapping[str, str] = MappingProxyType({})


class Roster(NamedTuple):
    """The tests of a run, in their order; the same test has the same key in every run.

    A key can occur more than once.
    """

    roster_id: str
    keys: tuple[str, ...]
    tests: tuple[NamedTest, ...]


class TestIdentities(dict[NamedTest, tuple[str, NamedTest]]):
    """The key of each test under an identity rule, and the test as the rule names it.

    Computed once per test: most tests of a roster are in the next one too.
    """

    def __init__(self, rule: IdentityRule) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, test: NamedTest) -> tuple[str, NamedTest]:
        """Return a test under its newest name, without its id unless ids repeat.

        The key is a hash of its id if ids repeat, else of its name and type.
        """
        by_id, renamed = self._rule
        named = test
        if test.name and test.name in renamed:
            named = named._replace(name=renamed[test.name])
        if test.test_id is not None and not by_id:
            named = named._replace(test_id=None)
        parts = (named.test_id,) if named.test_id else (named.name, named.type)
        self[test] = found = hash_key(parts).hex(), named
        return found

    def build_roster(self, roster_id: str, tests: Iterable[NamedTest]) -> Roster:
        """Return a list of tests with their keys."""
        identified = [self[test] for test in tests]
        keys, named = zip(*identified, strict=True) if identified else ((), ())
        return Roster(roster_id, keys, named)


class PlanRun(NamedTuple):
    """A run according to one of its revisions; `outcomes` has a letter for each test."""

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


class RunResults(NamedTuple):
    """The part of a `PlanRun` that series are computed from."""

    run_id: str
    started_at: datetime
    outcomes: str
    roster: Roster
    commit: str | None


def hash_parts(parts: Sequence[str | None]) -> str:
    """Return a key of 32 hexadecimal digits for `parts`."""
    return hash_text(encode_canonical(parts))


@lru_cache(maxsize=1024)  # plans recur
def _compute_plan_id(plan: Plan) -> str:
    return hash_parts(plan)


def hash_text(text: str) -> str:
    """Return a hash of `text`, in 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def build_plan(source: str, application: str | None, name: str | None) -> Plan:
    """Return the plan of a run. The API sends names with blanks at their ends."""
    return Plan(source, (application or "").strip(), (name or "").strip())


@lru_cache(maxsize=1024)
def environments_text(signature: str) -> str:
    """Return an environment signature for people: "Windows 10 / chrome / 1200x800; ..."."""
    return "; ".join(environment_text(each) for each in json.loads(signature))


def environment_text(identity: Sequence[str | None]) -> str:
    """Return (OS, browser, device, viewport) for people, without missing parts."""
    return " / ".join(part for part in identity if part) or "-"
