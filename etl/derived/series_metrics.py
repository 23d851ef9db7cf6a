"""The last results of each test: counts, rates, flips, streaks and classes.

Pure: takes the outcomes of a plan's runs and returns rows. The definitions are in docs/REPORTS.md.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import chain, groupby, islice, pairwise
from typing import NamedTuple

from etl.config.settings import Rules
from etl.derived.metrics import DECIDED, WORDS, Counts, count
from etl.derived.plans import NamedTest, PlanRun, Roster

LEAST_DECIDED = 5
"""So many decided results have to be in the window before a failure is new, or for always."""
LONGEST_WINDOW = 1000
"""A window ends after so many results, however few of them are decided."""


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
