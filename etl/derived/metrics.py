"""What the numbers of the reports mean: the one place that computes them.

Pure: takes the outcomes of a plan's runs and returns rows. `aggregates` keeps them in tables for
BI tools, `reports` prints them, now or as of any moment. The definitions are in docs/REPORTS.md.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import chain, groupby, islice, pairwise
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from etl.config.settings import Rules

LETTERS = {"passed": "P", "failed": "F", "aborted": "A", "unresolved": "U", "pending": "N"}
"""How a test's status stands in a strip of outcomes; any other word is a `?`."""
UNKNOWN = "?"
WORDS = {letter: word for word, letter in LETTERS.items()}
DECIDED = frozenset("PF")
MEASURED_STATUSES = frozenset({"passed", "failed", "unresolved"})
"""Only such runs were over by themselves, so that their durations mean something."""

RECENT = timedelta(days=7)
BEFORE = timedelta(days=28)
LEAST_MEASURED = 5
"""So many durations have to be there before one can be called slow."""
LEAST_DECIDED = 5
"""So many decided results have to be in the window before a failure is new, or for always."""


LONGEST_WINDOW = 1000
"""A window ends after so many results, however few of them are decided."""


class Counts(NamedTuple):
    """How many results there are of each kind: P, F, A, U and N of docs/REPORTS.md."""

    passed: int = 0
    failed: int = 0
    aborted: int = 0
    unresolved: int = 0
    pending: int = 0

    @property
    def decided(self) -> int:
        """P + F."""
        return self.passed + self.failed


class Rates(NamedTuple):
    """Rates from 0 to 1; None where nothing that they count is there."""

    pass_rate: float | None
    pass_rate_strict: float | None
    decided_share: float | None
    pass_rate_low: float | None
    pass_rate_high: float | None


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


def strip_of(statuses: Iterable[str | None]) -> str:
    """Return a letter for each status, in their order."""
    letters = LETTERS
    return "".join([letters.get(status or "", UNKNOWN) for status in statuses])


def count(outcomes: str) -> Counts:
    """Count the letters of a strip; those of unknown words are left out."""
    return Counts(*[outcomes.count(letter) for letter in "PFAUN"])


@lru_cache(maxsize=4096)
def rates(counts: Counts) -> Rates:
    """Return the rates of `counts`. Over groups, sum the counts first: rates are never averaged."""
    known = counts.decided + counts.aborted + counts.unresolved
    return Rates(
        pass_rate=_share(counts.passed, counts.decided),
        pass_rate_strict=_share(counts.passed, known),
        decided_share=_share(counts.decided, known + counts.pending),
        pass_rate_low=_share(counts.passed, known),
        pass_rate_high=_share(counts.passed + counts.unresolved, known),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


MOST_CHECKS = 10**12
"""A counter beyond it, or below 0, is no count of anything: reports leave it out."""


def checks_of(counters: Mapping[str, int | None]) -> Counts:
    """Return the API's counters of checks as far as they can be true; an unknown one is 0."""
    known = {name: counters.get(name) or 0 for name in Counts._fields}
    return Counts(**{name: n if 0 <= n <= MOST_CHECKS else 0 for name, n in known.items()})


def total(counts: Iterable[Counts]) -> Counts:
    """Add up counts."""
    return Counts(*[sum(column) for column in zip(*counts, strict=True)])


# --- series ---------------------------------------------------------------------------------


class Series(NamedTuple):
    """The last results of one test of a variant.

    The counts, rates and flips are those of the window: the last `Rules.window_results` decided
    results and what lies between them. `recent` has the window's letters, the oldest first.
    """

    test_key: str
    test: NamedTest
    counts: Counts
    flips: int
    flip_rate: float | None
    health: float | None
    is_flaky: bool
    is_confirmed_flaky: bool
    is_regression: bool
    is_new_failure: bool
    is_always_failing: bool
    is_recovered: bool
    fail_streak: int
    streak_since: datetime | None
    recent: str
    last_status: str | None
    last_run_id: str
    last_started_at: datetime
    window_starts_at: datetime


class Verdict(NamedTuple):
    """What a window of results says, whichever runs they are of."""

    counts: Counts
    flips: int
    flip_rate: float | None
    health: float | None
    is_flaky: bool
    is_regression: bool
    is_new_failure: bool
    is_always_failing: bool
    is_recovered: bool


@lru_cache(maxsize=4096)  # most tests have one of a few windows: all passed
def judge(recent: str, rules: Rules) -> Verdict:
    """Judge a window of results, the oldest first (docs/REPORTS.md)."""
    counts = count(recent)
    decided = [letter for letter in recent if letter in DECIDED]
    flips = sum(before != after for before, after in pairwise(decided))
    flip_rate = flips / (len(decided) - 1) if len(decided) > 1 else None
    last, before = [*reversed(decided), "", ""][:2]
    is_regression = (before, last) == ("P", "F")
    is_judged = len(decided) >= LEAST_DECIDED
    return Verdict(
        counts,
        flips,
        flip_rate,
        health=None if flip_rate is None else counts.passed / len(decided) * (1 - flip_rate),
        is_flaky=flip_rate is not None
        and len(decided) >= rules.flaky_min_results
        and flips >= rules.flaky_min_flips
        and flip_rate >= rules.flaky_min_flip_rate,
        is_regression=is_regression,
        is_new_failure=is_regression and is_judged and counts.failed == 1,
        is_always_failing=is_judged and counts.passed == 0,
        is_recovered=(before, last) == ("F", "P"),
    )


class _Part(NamedTuple):
    """Runs that follow each other, the newest first, each with so many results of a test."""

    runs: Sequence[PlanRun]
    results: int


class _Tail:
    """The newest results of a series, gathered from the newest on until they say all."""

    __slots__ = ("letters", "parts", "test")

    def __init__(self, test: NamedTest) -> None:
        self.test = test
        self.letters = ""
        self.parts: list[_Part] = []

    def run(self, index: int) -> PlanRun:
        """Return the run that a result is of; the newest is number 0."""
        for part in self.parts:
            size = len(part.runs) * part.results
            if index < size:
                return part.runs[index // part.results]
            index -= size
        raise IndexError(index)


@lru_cache(maxsize=4096)
def _window(letters: str, results: int) -> int | None:
    """Return how many of the newest `letters` the window has, None if it needs older ones, too."""
    decided = 0
    for index, letter in enumerate(letters[:LONGEST_WINDOW], start=1):
        decided += letter in DECIDED
        if decided == results or index == LONGEST_WINDOW:
            return index
    return None


def series_of(
    runs: Iterable[PlanRun], rules: Rules, wanted: Collection[str] | None = None
) -> list[Series]:
    """Return the series of one variant: those of the `wanted` test keys, or all.

    `runs` are those of the variant, the newest (by started_at, then run_id) first; older ones
    are only read as far as they matter to what is wanted.
    """
    tails: dict[str, _Tail] = {}
    done: set[str] = set()
    open_places: dict[str, dict[str, list[int]]] = {}
    for part in _parts(runs, rules.window_results + 2):
        roster = part[0].roster
        if roster.roster_id not in open_places:
            open_places[roster.roster_id] = _places(roster, wanted)
        places = open_places[roster.roster_id]
        columns = list(zip(*[run.outcomes for run in part], strict=True))
        for key in [key for key in places if key in done]:
            del places[key]
        for key, positions in places.items():
            tail = tails.get(key)
            if tail is None:
                tail = tails[key] = _Tail(roster.tests[positions[0]])
            tail.letters += _interleaved([columns[position] for position in positions])
            tail.parts.append(_Part(part, len(positions)))
            # Once a pass is seen, no older failure belongs to the streak.
            if "P" in tail.letters and _window(tail.letters, rules.window_results) is not None:
                done.add(key)
        if wanted is not None and len(done) == len(wanted):
            break
    return [_series(key, tail, rules) for key, tail in tails.items()]


def _parts(runs: Iterable[PlanRun], size: int) -> Iterator[list[PlanRun]]:
    """Yield runs that follow each other and have the same roster, ever more of them at once."""
    for _, group in groupby(runs, key=lambda run: run.roster.roster_id):
        while part := list(islice(group, size)):
            yield part
            size = min(2 * size, 1000)


def _places(roster: Roster, wanted: Collection[str] | None) -> dict[str, list[int]]:
    """Return where each wanted test stands in a roster, its last place first."""
    places: dict[str, list[int]] = {}
    for index, key in enumerate(roster.keys):
        if wanted is None or key in wanted:
            places.setdefault(key, []).insert(0, index)
    return places


def _interleaved(columns: Sequence[Sequence[str]]) -> str:
    """Join the results of a test that is in each run as often as there are columns."""
    if len(columns) == 1:
        return "".join(columns[0])
    return "".join(chain.from_iterable(zip(*columns, strict=True)))


def _series(key: str, tail: _Tail, rules: Rules) -> Series:
    recent = tail.letters[: _window(tail.letters, rules.window_results)][::-1]
    verdict = judge(recent, rules)
    since_pass = tail.letters.partition("P")[0]
    first_failed = since_pass.rfind("F")
    newest = tail.run(0)
    return Series(
        key,
        tail.test,
        verdict.counts,
        verdict.flips,
        verdict.flip_rate,
        verdict.health,
        verdict.is_flaky,
        verdict.flips > 0 and _is_confirmed(tail, len(recent)),
        verdict.is_regression,
        verdict.is_new_failure,
        verdict.is_always_failing,
        verdict.is_recovered,
        since_pass.count("F"),
        tail.run(first_failed).started_at if first_failed >= 0 else None,
        recent,
        WORDS.get(recent[-1]),
        newest.run_id,
        newest.started_at,
        tail.run(len(recent) - 1).started_at,
    )


def _is_confirmed(tail: _Tail, window: int) -> bool:
    """Tell whether a commit both passed and failed: no change of the code explains that."""
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for index, letter in enumerate(tail.letters[:window]):
        commit = tail.run(index).commit
        if commit is not None and letter in DECIDED:
            seen[commit].add(letter)
    return any(letters == DECIDED for letters in seen.values())


# --- over time ------------------------------------------------------------------------------


class Period(NamedTuple):
    """The results of a plan's runs of a day or of a week; `first_day` is the day or its Monday."""

    first_day: date
    runs: int
    tests: int
    counts: Counts
    checks: Counts

    @property
    def unknown(self) -> int:
        """How many results have a word that is not documented."""
        return self.tests - sum(self.counts)


def as_period(day: date, outcomes: str, checks: Counts) -> Period:
    """Return what a run adds to its day."""
    return Period(day, 1, len(outcomes), count(outcomes), checks)


def weeks_of(days: Iterable[Period]) -> list[Period]:
    """Add up days by the week of ISO 8601 that they are in; its Monday stands for it."""
    return summed(day._replace(first_day=monday(day.first_day)) for day in days)


def monday(day: date) -> date:
    """Return the first day of the ISO 8601 week of `day`."""
    return day - timedelta(days=min(day.weekday(), day.toordinal() - 1))


def negative(period: Period) -> Period:
    """Return what takes `period` away when it is added."""
    return Period(
        period.first_day,
        -period.runs,
        -period.tests,
        Counts(*[-number for number in period.counts]),
        Counts(*[-number for number in period.checks]),
    )


def days_of(runs: Iterable[PlanRun]) -> list[Period]:
    """Return a row for each day of `runs`; those without a day are left out."""
    return summed(
        as_period(run.started_on, run.outcomes, run.checks)
        for run in runs
        if run.started_on is not None
    )


def summed(periods: Iterable[Period]) -> list[Period]:
    """Add up the periods that begin on the same day, in their order; nothing left, no row."""
    by_first_day: defaultdict[date, list[Period]] = defaultdict(list)
    for period in periods:
        by_first_day[period.first_day].append(period)
    sums = [_sum(by_first_day[first_day]) for first_day in sorted(by_first_day)]
    return [period for period in sums if any(_numbers(period))]


def _numbers(period: Period) -> tuple[int, ...]:
    return (period.runs, period.tests, *period.counts, *period.checks)


def _sum(periods: Sequence[Period]) -> Period:
    if len(periods) == 1:
        return periods[0]
    return Period(
        periods[0].first_day,
        sum(period.runs for period in periods),
        sum(period.tests for period in periods),
        total(period.counts for period in periods),
        total(period.checks for period in periods),
    )


# --- durations ------------------------------------------------------------------------------


class Durations(NamedTuple):
    """How long the runs of a variant take, counted back from its last measured run.

    Milliseconds; percentiles are by nearest rank. `change` is p50 of the last 7 days / p50 of
    the 28 days before - 1. `is_slow`: the last run took longer than the p95 of those of the
    `Rules.window_days` before it, with 5 of them or more.
    """

    measured: int
    p50_ms: int
    p95_ms: int
    p50_per_test_ms: int | None
    p50_last_7_days_ms: int
    p50_28_days_before_ms: int | None
    change: float | None
    last_run_id: str
    last_started_at: datetime
    last_duration_ms: int
    p95_before_last_ms: int | None
    is_slow: bool


def durations_of(runs: Iterable[PlanRun], rules: Rules) -> Durations | None:
    """Return the durations of one variant, None where no run of it was measured.

    `runs` are those of the variant, the newest (by started_at, then run_id) first; older ones
    are only read as far as they matter.
    """
    measured = _measured(runs, max(RECENT + BEFORE, timedelta(days=rules.window_days)))
    if not measured:
        return None
    month = timedelta(days=rules.window_days)
    windowed = [run for run in measured if run.age < month]
    durations = [run.duration_ms for run in windowed]
    before = [run.duration_ms for run in measured if RECENT <= run.age < RECENT + BEFORE]
    p50_recent = percentile([run.duration_ms for run in measured if run.age < RECENT], 50)
    p50_before = percentile(before, 50) if before else None
    per_test = [run.duration_ms // run.tests for run in windowed if run.tests]
    last, *others = durations
    p95_before_last = percentile(others, 95) if len(others) >= LEAST_MEASURED else None
    return Durations(
        len(windowed),
        percentile(durations, 50),
        percentile(durations, 95),
        percentile(per_test, 50) if per_test else None,
        p50_recent,
        p50_before,
        p50_recent / p50_before - 1 if p50_before else None,
        measured[0].run_id,
        measured[0].started_at,
        last,
        p95_before_last,
        is_slow=p95_before_last is not None and last > p95_before_last,
    )


class _Measured(NamedTuple):
    """A run with a duration that means something; `age` is that at the start of the last one."""

    run_id: str
    started_at: datetime
    age: timedelta
    duration_ms: int
    tests: int


def _measured(runs: Iterable[PlanRun], oldest: timedelta) -> list[_Measured]:
    """Return the runs that were measured, up to so much older than the newest of them."""
    found: list[_Measured] = []
    for run in runs:
        if run.status not in MEASURED_STATUSES or run.duration_ms is None:
            continue
        age = found[0].started_at - run.started_at if found else timedelta(0)
        if age > oldest:
            break
        found.append(_Measured(run.run_id, run.started_at, age, run.duration_ms, len(run.outcomes)))
    return found


def percentile(values: Collection[int], percent: int) -> int:
    """Return the smallest value that `percent` of `values` do not exceed (nearest rank).

    As PostgreSQL's `percentile_disc`. Raises IndexError when there are no values.
    """
    return sorted(values)[rank(len(values), percent) - 1]


def rank(values: int, percent: int) -> int:
    """Return which one of so many sorted values the percentile is, counted from 1."""
    return max(-(-percent * values // 100), 1)
