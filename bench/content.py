"""Generate the answers of the bench's API: plausible runs, always the same ones.

Three kinds of names. `recurring`: each run of a plan has the plan's tests and environments; only
the newest runs have tests that wait for a decision. `unique`: each run is a plan of its own, with
names, tests and environments of its own, as in the first backfill of many applications. `mixed`:
a few plans make most of the runs, many plans make few; tests are renamed now and then, and 15 % of
them wait for a decision.

Test ids recur in half of the applications and are new in every run of the others.
"""

import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

NAMES = ("recurring", "unique", "mixed")
PLANS = 21
APPLICATIONS = 4
MIXED_PLANS = 200
MIXED_APPLICATIONS = 25
RUNS_PER_APPLICATION = 5
"""Of unique runs: each is the only run of its plan."""
RENAMED_EVERY = 2000
"""After this number of runs, every tenth test of a mixed plan gets another name."""
MIXED_UNRESOLVED = 0.15
CHANGED_EVERY = 20
"""5 % of the runs change: every twentieth, which with 21 plans is one of each in turn."""
NEWEST = 0.03
"""The share of runs, those of the last month, in which tests are still unresolved."""
YEARS = timedelta(days=3 * 365)
RUNS_IN_YEARS = 100_000

COUNTERS = ("failed", "passed", "aborted", "pending", "unresolved")
STATUSES = ("passed", "failed", "unresolved", "aborted")
STATUS_WEIGHTS = (940, 30, 20, 10)
ENVIRONMENTS = (
    ("Windows 11", "1920x1080", "Desktop", "Chrome"),
    ("Linux", "1440x900", "Desktop", "Firefox"),
    ("macOS 14", "1440x900", "Desktop", "Safari"),
    ("Windows 11", "1366x768", "Desktop", "Edge"),
    ("iOS 17", "390x844", "iPhone 15", "Safari"),
    ("Android 14", "412x915", "Pixel 8", "Chrome"),
    ("iOS 17", "820x1180", "iPad Air", "Safari"),
    ("Linux", "1280x720", "Desktop", "Chrome"),
)
PAGES = ("Sign in", "Search", "Basket", "Checkout", "Account", "Invoice", "Settings", "Start page")
STEPS = (
    "shows all prices",
    "keeps the layout",
    "accepts a card",
    "lists all entries",
    "is in order",
)


class Profile(NamedTuple):
    """The size of each run."""

    name: str
    environments: int
    tests: int


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("small", 3, 3),
        Profile("medium", 5, 50),
        Profile("large", 8, 2000),
        Profile("growth", 5, 100),
    )
}


class History(NamedTuple):
    """Three years until `ends_at` with 91 runs a day, or their last part with fewer `runs`."""

    ends_at: datetime = datetime(2026, 10, 1, tzinfo=UTC)
    runs: int = RUNS_IN_YEARS

    def started_at(self, index: int) -> datetime:
        """Return the start of run number `index`; numbers beyond the last run start over."""
        return self.ends_at - YEARS * ((self.runs - index % self.runs) / RUNS_IN_YEARS)

    def is_newest(self, index: int) -> bool:
        """Tell if the run is so new that some of its tests wait for a decision."""
        return index % self.runs >= (1 - NEWEST) * self.runs


class Offer(NamedTuple):
    """The runs of an API: `runs` of them from number `first`, in steps of `every`.

    In `content` "changed", every twentieth run differs from "unchanged": a person has decided its
    first test.
    """

    profile: Profile
    runs: int
    content: str = "unchanged"
    first: int = 0
    every: int = 1
    history: History = History()
    names: str = "recurring"

    def indexes(self) -> range:
        """Return the numbers of the runs."""
        return range(self.first, self.first + self.runs * self.every, self.every)

    def run_ids(self) -> list[str]:
        """Return the IDs of the runs, in order."""
        return [run_id(index) for index in self.indexes()]

    def answer(self, index: int) -> bytes:
        """Return the API's answer for one run."""
        plan = self._plan(index)
        dice = random.Random(f"{self.profile.name} run {index}")
        statuses = self._statuses(dice, index)
        tests: list[dict[str, Any]] = [
            {
                "id": test_id if plan.keeps_test_ids else _uuid(dice),
                "name": name,
                "status": status,
                "type": "custom_test",
                "sitemap": "",
                "results": _checks(status, checks),
            }
            for (test_id, name, checks), status in zip(plan.tests, statuses, strict=True)
        ]
        result = {
            "id": run_id(index),
            "name": plan.name,
            "application": plan.application,
            "status": _worst(statuses),
            "environments": plan.environments,
            "started_at": _json_time(self.history.started_at(index)),
            "duration": 20_000 + 900 * self.profile.tests + dice.randrange(9_000),
            "results": {name: sum(test["results"][name] for test in tests) for name in COUNTERS},
            "tests": tests,
        }
        return msgspec.json.encode({"result": result})

    def _plan(self, index: int) -> "_Plan":
        if self.names == "unique":
            return _make_unique_plan(self.profile, index)
        if self.names == "mixed":
            return _make_mixed_plan(self.profile, _choose_mixed(index), index // RENAMED_EVERY)
        return _make_plan(self.profile, index % PLANS)

    def _statuses(self, dice: random.Random, index: int) -> list[str]:
        statuses = dice.choices(STATUSES, STATUS_WEIGHTS, k=self.profile.tests)
        if self.names == "mixed":
            open_tests = [dice.random() < MIXED_UNRESOLVED for _ in statuses]
            statuses = [
                "unresolved" if is_open else each
                for is_open, each in zip(open_tests, statuses, strict=True)
            ]
        elif not self.history.is_newest(index):
            statuses = ["passed" if each == "unresolved" else each for each in statuses]
        if index % CHANGED_EVERY == 0:
            decision = "failed" if index % (3 * CHANGED_EVERY) == 0 else "passed"
            statuses[0] = decision if self.content == "changed" else "unresolved"
        return statuses


class Totals(NamedTuple):
    """The expected rows and a sum of the values in a database that has archived these runs."""

    runs: int
    environments: int
    tests: int
    counts: int
    checks_passed: int


def run_id(index: int) -> str:
    """Return the ID of run number `index`."""
    return _uuid(random.Random(f"run {index}"))


def totals(bodies: Iterable[bytes]) -> Totals:
    """Count the content of answers, independently of the generator."""
    runs = environments = tests = checks_passed = 0
    for body in bodies:
        result = msgspec.json.decode(body)["result"]
        runs += 1
        environments += len(result["environments"])
        tests += len(result["tests"])
        checks_passed += result["results"]["passed"]
        checks_passed += sum(test["results"]["passed"] for test in result["tests"])
    return Totals(runs, environments, tests, runs + tests, checks_passed)


class _Plan(NamedTuple):
    name: str
    application: str
    keeps_test_ids: bool
    environments: list[dict[str, str]]
    tests: list[tuple[str, str, int]]


@cache
def _make_plan(profile: Profile, number: int) -> _Plan:
    dice = random.Random(f"{profile.name} plan {number}")
    application = number % APPLICATIONS
    environments = _choose_environments(dice, profile)

    tests = _make_tests(dice, profile)
    return _Plan(
        f"Plan {number + 1}",
        f"Application {application + 1}",
        application % 2 == 0,
        environments,
        tests,
    )


def _make_unique_plan(profile: Profile, index: int) -> _Plan:
    """Return the plan of one run: no name, test or set of environments occurs in another run."""
    dice = random.Random(f"{profile.name} unique plan {index}")
    environments = _choose_environments(dice, profile)
    environments[0] |= {"viewport": f"{800 + index // 1000}x{600 + index % 1000}"}
    tests = [
        (test_id, f"{name}, flow {index}", checks)
        for test_id, name, checks in _make_tests(dice, profile)
    ]
    application = index // RUNS_PER_APPLICATION
    names = f"Plan {index + 1}", f"Application {application + 1}"
    return _Plan(*names, application % 2 == 0, environments, tests)


@lru_cache(maxsize=2 * MIXED_PLANS)
def _make_mixed_plan(profile: Profile, number: int, renamed: int) -> _Plan:
    """Return a plan whose tests were `renamed` times renamed."""
    plan = _make_plan(profile, number)
    tests = [
        (test_id, f"{name}, version {renamed}" if place % 10 == 0 else name, checks)
        for place, (test_id, name, checks) in enumerate(plan.tests)
    ]
    application = number % MIXED_APPLICATIONS
    names = f"Plan {number + 1}", f"Application {application + 1}"
    return _Plan(*names, application % 2 == 0, plan.environments, tests)


def _choose_mixed(index: int) -> int:
    """Return the plan of a mixed run: plan n is n times as rare as the first one."""
    [number] = random.Random(f"mixed {index}").choices(range(MIXED_PLANS), cum_weights=_WEIGHTS)
    return number


_WEIGHTS = list(accumulate(1 / (number + 1) for number in range(MIXED_PLANS)))


def _choose_environments(dice: random.Random, profile: Profile) -> list[dict[str, str]]:
    return [
        {
            "name": f"{browser} on {os}",
            "os": os,
            "viewport": viewport,
            "device": device,
            "browser": browser,
        }
        for os, viewport, device, browser in dice.sample(ENVIRONMENTS, profile.environments)
    ]


def _make_tests(dice: random.Random, profile: Profile) -> list[tuple[str, str, int]]:
    return [
        (
            _uuid(dice),
            f"{dice.choice(PAGES)} {position} {dice.choice(STEPS)}",
            profile.environments * dice.randint(1, 4),
        )
        for position in range(1, profile.tests + 1)
    ]


def _checks(status: str, checks: int) -> dict[str, int]:
    """Return a test's counters: if it did not pass, one of its checks did not."""
    counted = dict.fromkeys(COUNTERS, 0)
    counted["passed"] = checks
    if status != "passed":
        counted["passed"] -= 1
        counted[status] += 1
    return counted


def _worst(statuses: list[str]) -> str:
    worst_first = ("unresolved", "failed", "aborted")
    return next((status for status in worst_first if status in statuses), "passed")


def _json_time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _uuid(dice: random.Random) -> str:
    digits = f"{dice.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
