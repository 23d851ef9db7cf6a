"""The last results of each test: flips, streaks and classes. Definitions: docs/REPORTS.md."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import chain, groupby, islice, pairwise
from typing import NamedTuple

from etl.config.settings import Rules
from etl.derived.metrics import DECIDED, WORDS, Counts, count_letters
from etl.derived.plans import NamedTest, PlanRun, Roster

MIN_DECIDED = 5
"""The fewest decided results in a window that can make a failure new, or a test always failing."""
UNDECIDED_SHARE = 3
"""The most undecided results that a window shows, for each decided one that it can have."""


class Series(NamedTuple):
    """The last results of one test of a variant.

    Counts and flips are those of the window: the last `Rules.window_results` decided results and
    the results between them, the newest if there are many. `recent` has the window's letters,
    oldest first. `flips` is None if nothing is decided.
    """

    test_key: str
    test: NamedTest
    counts: Counts
    flips: int | None
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
    streak_since_run_id: str | None
    last_flip_at: datetime | None
    last_flip_run_id: str | None
    recent: str
    last_status: str | None
    last_run_id: str
    last_started_at: datetime
    window_starts_at: datetime


class WindowVerdict(NamedTuple):
    """The judgement of a window of results, independent of their runs."""

    counts: Counts
    flips: int | None
    flip_rate: float | None
    health: float | None
    is_flaky: bool
    is_regression: bool
    is_new_failure: bool
    is_always_failing: bool
    is_recovered: bool


def require_decided(rules: Rules) -> int:
    """Return the fewest decided results that allow a class: all of a window that is shorter."""
    return _shorten(MIN_DECIDED, rules)


def _shorten(least: int, rules: Rules) -> int:
    """Return a minimum of decided results; a window below `MIN_DECIDED` only has to be full."""
    return min(least, rules.window_results) if rules.window_results < MIN_DECIDED else least


@lru_cache(maxsize=4096)  # most windows are alike: all passed
def judge_window(recent: str, rules: Rules) -> WindowVerdict:
    """Judge a window of results, oldest first (docs/REPORTS.md)."""
    counts = count_letters(recent)
    decided = [letter for letter in recent if letter in DECIDED]
    flips = sum(before != after for before, after in pairwise(decided))
    flip_rate = flips / (len(decided) - 1) if len(decided) > 1 else None
    last, before = [*reversed(decided), "", ""][:2]
    is_regression = (before, last) == ("P", "F")
    is_judged = len(decided) >= require_decided(rules)
    return WindowVerdict(
        counts,
        flips if decided else None,
        flip_rate,
        health=None if flip_rate is None else counts.passed / len(decided) * (1 - flip_rate),
        is_flaky=flip_rate is not None
        and len(decided) >= _shorten(rules.flaky_min_results, rules)
        and flips >= rules.flaky_min_flips
        and flip_rate >= rules.flaky_min_flip_rate,
        is_regression=is_regression,
        is_new_failure=is_regression and is_judged and counts.failed == 1,
        is_always_failing=is_judged and counts.passed == 0,
        is_recovered=(before, last) == ("F", "P"),
    )


class _RunBlock(NamedTuple):
    """Consecutive runs, newest first, each with the same number of results of a test."""

    runs: Sequence[PlanRun]
    results: int


class _SeriesTail:
    """The newest results of a series, collected backwards in time until the series is decided."""

    __slots__ = ("blocks", "letters", "test")

    def __init__(self, test: NamedTest) -> None:
        self.test = test
        self.letters = ""
        self.blocks: list[_RunBlock] = []

    def run_at(self, index: int) -> PlanRun:
        """Return the run of a result; the newest result has index 0."""
        for block in self.blocks:
            size = len(block.runs) * block.results
            if index < size:
                return block.runs[index // block.results]
            index -= size
        raise IndexError(index)


@lru_cache(maxsize=4096)
def _window_size(letters: str, results: int) -> int | None:
    """Return the length of the window in the newest `letters`, None if it needs older ones too."""
    decided = 0
    for index, letter in enumerate(letters, start=1):
        decided += letter in DECIDED
        if decided == results:
            return index
    return None


@lru_cache(maxsize=4096)
def _find_window(letters: str, results: int) -> Sequence[int]:
    """Return the places in `letters`, newest first, that the window shows."""
    size = _window_size(letters, results) or len(letters)
    undecided = [place for place in range(size) if letters[place] not in DECIDED]
    hidden = set(undecided[UNDECIDED_SHARE * results :])
    return [place for place in range(size) if place not in hidden] if hidden else range(size)


def compute_series(
    runs: Iterable[PlanRun], rules: Rules, wanted: Collection[str] | None = None
) -> list[Series]:
    """Return the series of one variant: those of the `wanted` test keys, or all.

    `runs` are those of the variant, newest (by started_at, then run_id) first; stops reading
    them as soon as older runs no longer matter.
    """
    tails: dict[str, _SeriesTail] = {}
    done: set[str] = set()
    open_places: dict[str, dict[str, list[int]]] = {}
    for part in _split_by_roster(runs, rules.window_results + 2):
        roster = part[0].roster
        if roster.roster_id not in open_places:
            open_places[roster.roster_id] = _find_positions(roster, wanted)
        places = open_places[roster.roster_id]
        columns = list(zip(*[run.outcomes for run in part], strict=True))
        for key in [key for key in places if key in done]:
            del places[key]
        for key, positions in places.items():
            tail = tails.get(key)
            if tail is None:
                tail = tails[key] = _SeriesTail(roster.tests[positions[0]])
            tail.letters += _interleave([columns[position] for position in positions])
            tail.blocks.append(_RunBlock(part, len(positions)))
            # Failures older than the last pass do not belong to the streak.
            if "P" in tail.letters and _window_size(tail.letters, rules.window_results) is not None:
                done.add(key)
        if wanted is not None and len(done) == len(wanted):
            break
    return [_build_series(key, tail, rules) for key, tail in tails.items()]


def _split_by_roster(runs: Iterable[PlanRun], size: int) -> Iterator[list[PlanRun]]:
    """Yield blocks of consecutive runs with the same roster, in growing sizes."""
    for _, group in groupby(runs, key=lambda run: run.roster.roster_id):
        while part := list(islice(group, size)):
            yield part
            size = min(2 * size, 1000)


def _find_positions(roster: Roster, wanted: Collection[str] | None) -> dict[str, list[int]]:
    """Return the positions of each wanted test in a roster, the last one first."""
    places: dict[str, list[int]] = {}
    for index, key in enumerate(roster.keys):
        if wanted is None or key in wanted:
            places.setdefault(key, []).insert(0, index)
    return places


def _interleave(columns: Sequence[Sequence[str]]) -> str:
    """Join the results of a test that occurs `len(columns)` times in each run."""
    if len(columns) == 1:
        return "".join(columns[0])
    return "".join(chain.from_iterable(zip(*columns, strict=True)))


def _build_series(key: str, tail: _SeriesTail, rules: Rules) -> Series:
    window = _find_window(tail.letters, rules.window_results)
    recent = "".join([tail.letters[place] for place in reversed(window)])
    verdict = judge_window(recent, rules)
    since_pass = tail.letters.partition("P")[0]
    first_failed = since_pass.rfind("F")
    newest = tail.run_at(0)
    streak_run = tail.run_at(first_failed) if first_failed >= 0 else None
    flip_run = _find_last_flip(tail, window) if verdict.flips else None
    return Series(
        key,
        tail.test,
        verdict.counts,
        verdict.flips,
        verdict.flip_rate,
        verdict.health,
        verdict.is_flaky,
        bool(verdict.flips) and _is_confirmed(tail, window),
        verdict.is_regression,
        verdict.is_new_failure,
        verdict.is_always_failing,
        verdict.is_recovered,
        since_pass.count("F"),
        streak_run.started_at if streak_run else None,
        streak_run.run_id if streak_run else None,
        flip_run.started_at if flip_run else None,
        flip_run.run_id if flip_run else None,
        recent,
        WORDS.get(recent[-1]),
        newest.run_id,
        newest.started_at,
        tail.run_at(window[-1]).started_at,
    )


def _find_last_flip(tail: _SeriesTail, window: Sequence[int]) -> PlanRun | None:
    """Return the run of the newest decided result that differs from the decided one before it."""
    decided = [place for place in window if tail.letters[place] in DECIDED]
    for place, older in pairwise(decided):
        if tail.letters[place] != tail.letters[older]:
            return tail.run_at(place)
    return None


def _is_confirmed(tail: _SeriesTail, window: Sequence[int]) -> bool:
    """Return whether one commit both passed and failed, which no change of code explains."""
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for place in window:
        commit, letter = tail.run_at(place).commit, tail.letters[place]
        if commit is not None and letter in DECIDED:
            seen[commit].add(letter)
    return any(letters == DECIDED for letters in seen.values())
