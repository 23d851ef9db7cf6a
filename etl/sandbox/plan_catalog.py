"""The simulated applications: their plans, with environments and tests.

All of it is the same in each run of a plan; `life` derives the results of a run.
"""

from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from etl.sandbox import dice


class Environment(NamedTuple):
    """Where a run's tests are shown; the fields are the API's."""

    name: str
    os: str
    viewport: str
    device: str
    browser: str


class Ids(Enum):
    """Whether a plan's generated ids and names are the same in all of its runs."""

    STABLE = "stable"
    FRESH = "fresh"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPlan:
    """A test plan. Run number n is the plan's n-th, counted from 0."""

    plan_id: str = ""
    application: str
    name: str
    ids: Ids = Ids.STABLE
    environments: tuple[Environment, ...]
    next_environments: tuple[Environment, ...] = ()  # from run 10 on; none: no change
    tests: int  # in run 0
    runs_per_new_test: int = 0  # runs after which the plan grows by one test; 0: never
    duration_ms: int  # of run 0, give or take
    slowdown: float = 0.0  # each run takes longer by this share of `duration_ms`
    weight: int = 1  # relative frequency of its runs

    def environments_of(self, number: int) -> tuple[Environment, ...]:
        """Return the environments of run `number`."""
        return (
            self.next_environments if self.next_environments and number >= 10 else self.environments
        )

    def tests_of(self, number: int) -> int:
        """Return how many tests run `number` has."""
        grown = number // self.runs_per_new_test if self.runs_per_new_test else 0
        return self.tests + grown


class Behaviour(Enum):
    """The pattern of a test's outcomes over a plan's runs."""

    STABLE = "stable"  # passes
    FLAKY = "flaky"  # fails now and then, without a reason
    REGRESSING = "regressing"  # fails from some run on, until it is repaired; then again
    BROKEN = "broken"  # always fails


@dataclass(frozen=True, slots=True)
class PlanTest:
    """A test as its plan knows it. `pages` is how many checks it makes in each environment."""

    test_id: str
    name: str
    type: str
    sitemap: str
    pages: int
    behaviour: Behaviour
    fail_share: float  # of a flaky test's runs
    period: int  # a regressing test fails in the last `broken_for` of every `period` runs
    broken_for: int
    offset: int

    def fails(self, plan_id: str, position: int, number: int) -> bool:
        """Tell whether the test fails in the plan's run `number`."""
        if self.behaviour is Behaviour.FLAKY:
            return dice.chance("flaky", plan_id, position, number) < self.fail_share
        if self.behaviour is Behaviour.REGRESSING:
            return (number + self.offset) % self.period >= self.period - self.broken_for
        return self.behaviour is Behaviour.BROKEN


@lru_cache(maxsize=8192)
def plan_test(plan_id: str, position: int) -> PlanTest:
    """Return the plan's test at `position`, counted from 0."""
    key = (plan_id, position)
    kind = dice.pick(TYPES, "type", *key)
    period = dice.between(12, 30, "period", *key)
    return PlanTest(
        test_id=dice.uuid4("test", *key),
        name=_test_name(plan_id, position),
        type=kind,
        sitemap=dice.pick(SITEMAPS, "sitemap", *key) if kind == "sitemap_test" else "",
        pages=dice.between(1, 5, "pages", *key),
        behaviour=dice.pick(BEHAVIOURS, "behaviour", *key),
        fail_share=0.15 + 0.4 * dice.chance("fail share", *key),
        period=period,
        broken_for=dice.between(1, 5, "broken for", *key),
        offset=dice.between(0, period - 1, "offset", *key),
    )


def _test_name(plan_id: str, position: int) -> str:
    """Return a name that no other of the plan's first 1,000 tests has, at least."""
    shift = dice.between(0, len(AREAS) * len(ACTIONS) - 1, "names", plan_id)
    turn, place = divmod(position + shift, len(AREAS) * len(ACTIONS))
    action, area = divmod(place, len(AREAS))
    suffix = f" ({turn + 1})" if turn else ""
    return f"{AREAS[area]}: {ACTIONS[action]}{suffix}"


TYPES = ("sitemap_test",) * 3 + ("custom_flow_test", "custom_flow_test", "url_list_test")

SITEMAPS = (
    "",
    "https://www.example.com/sitemap.xml",
    "https://shop.example.com/sitemap-products.xml",
    "https://shop.example.com/sitemap-größen.xml",
)

# Of 50 tests, 43 are stable.
BEHAVIOURS = (
    (Behaviour.STABLE,) * 43
    + (Behaviour.FLAKY,) * 3
    + (Behaviour.REGRESSING,) * 3
    + (Behaviour.BROKEN,)
)

AREAS = (
    "Home page",
    "Product list",
    "Product page",
    "Search",
    "Basket",
    "Checkout",
    "Zahlung & Überweisung",
    "Account",
    "Größentabelle",
    "Newsletter",
    "Café finder",
    "ヘルプ",
)

ACTIONS = (
    "opens",
    "shows prices",
    "filters by colour",
    "sorts by price",
    "keeps the cookie choice",
    "shows an empty state",
    "shows an error",
    "works signed in",
    "works signed out",
    "prints",
)

CHROME = Environment("Chrome", "Linux", "1440x900", "Desktop", "Chrome")
CHROME_SMALL = Environment("Chrome", "Linux", "1024x768", "Desktop", "Chrome")
CHROME_WINDOWS = Environment("Chrome on Windows", "Windows 11", "1920x1080", "Desktop", "Chrome")
FIREFOX = Environment("Firefox", "Linux", "1440x900", "Desktop", "Firefox")
FIREFOX_TALL = Environment("firefox_m3k9zq2ue", "Linux", "690x1490", "Desktop", "Firefox")
EDGE = Environment("Edge", "Windows 11", "1366x768", "Desktop", "Edge")
SAFARI = Environment("Safari", "macOS 14", "1680x1050", "Desktop", "Safari")
PHONE = Environment("Phone", "Android 14", "412x915", "Pixel 8", "Chrome")
IPHONE = Environment("iPhone", "iOS 17", "393x852", "iPhone 15", "Safari")
TABLET = Environment("Tablet", "iPadOS 17", "820x1180", "iPad Air", "Safari")

EVERYWHERE = (CHROME, CHROME_SMALL, CHROME_WINDOWS, FIREFOX, EDGE, SAFARI, PHONE, TABLET)

MINUTE_MS = 60_000

# Two runs of every 300 are of this one: see `runs`.
CRAWL = SandboxPlan(
    application="Storefront",
    name="Catalogue crawl",
    environments=(CHROME,),
    tests=2000,
    duration_ms=52 * MINUTE_MS,
)

PLANS = (
    SandboxPlan(
        application="Storefront",
        name="Nightly",
        environments=(CHROME, FIREFOX, PHONE),
        next_environments=(CHROME, FIREFOX, PHONE, IPHONE),
        tests=58,
        runs_per_new_test=4,
        duration_ms=24 * MINUTE_MS,
        slowdown=0.015,
        weight=4,
    ),
    SandboxPlan(
        application="Storefront",
        name="Checkout smoke",
        environments=(CHROME,),
        tests=8,
        runs_per_new_test=15,
        duration_ms=4 * MINUTE_MS,
        weight=6,
    ),
    SandboxPlan(
        application="Storefront",
        name="Product pages",
        environments=EVERYWHERE,
        tests=24,
        runs_per_new_test=8,
        duration_ms=31 * MINUTE_MS,
        weight=3,
    ),
    SandboxPlan(
        application="Booking portal",
        name="Search and book",
        ids=Ids.FRESH,
        environments=(CHROME, CHROME_SMALL),
        tests=30,
        runs_per_new_test=6,
        duration_ms=14 * MINUTE_MS,
        slowdown=0.03,
        weight=3,
    ),
    SandboxPlan(
        application="Booking portal",
        name="Smoke",
        ids=Ids.FRESH,
        environments=(CHROME_WINDOWS,),
        tests=3,
        duration_ms=2 * MINUTE_MS,
        weight=5,
    ),
    SandboxPlan(
        application="Booking portal",
        name="Buchung auf Deutsch: Überblick",
        ids=Ids.FRESH,
        environments=(FIREFOX_TALL, EDGE),
        tests=18,
        runs_per_new_test=10,
        duration_ms=9 * MINUTE_MS,
        weight=2,
    ),
    SandboxPlan(
        application="Member area",
        name="Sign-in",
        environments=(SAFARI,),
        tests=1,
        duration_ms=1 * MINUTE_MS,
        weight=4,
    ),
    SandboxPlan(
        application="Member area",
        name="Account settings",
        environments=(CHROME, SAFARI),
        next_environments=(CHROME, EDGE, SAFARI),
        tests=14,
        runs_per_new_test=12,
        duration_ms=7 * MINUTE_MS,
        weight=3,
    ),
    SandboxPlan(
        application="Member area",
        name="Release check",
        environments=(CHROME, FIREFOX, EDGE, SAFARI, PHONE),
        tests=52,
        runs_per_new_test=5,
        duration_ms=38 * MINUTE_MS,
        weight=2,
    ),
    SandboxPlan(
        application="Café guide",
        name="Landing pages",
        ids=Ids.FRESH,
        environments=(PHONE, IPHONE, TABLET),
        tests=48,
        duration_ms=19 * MINUTE_MS,
        slowdown=0.01,
        weight=2,
    ),
    SandboxPlan(
        application="Café guide",
        name="Kontakt & Impressum",
        environments=(FIREFOX,),
        tests=5,
        duration_ms=3 * MINUTE_MS,
        weight=3,
    ),
)


def make_plans(seed: int) -> tuple[SandboxPlan, ...]:
    """Return the catalogue's plans with the ids that `seed` gives them; the crawl is the last."""
    return tuple(_identified(plan, seed) for plan in (*PLANS, CRAWL))


def uniform_plan(environments: int, tests: int, seed: int) -> SandboxPlan:
    """Return a plan of that size, for benchmarks."""
    turns = (divmod(i, len(EVERYWHERE)) for i in range(environments))
    plan = SandboxPlan(
        application="Benchmark",
        name=f"{environments} environments, {tests} tests",
        environments=tuple(
            EVERYWHERE[place]._replace(name=f"{EVERYWHERE[place].name} {turn + 1}")
            for turn, place in turns
        ),
        tests=tests,
        duration_ms=8 * MINUTE_MS,
    )
    return _identified(plan, seed)


def _identified(plan: SandboxPlan, seed: int) -> SandboxPlan:
    return replace(plan, plan_id=dice.uuid4("plan", seed, plan.application, plan.name))
