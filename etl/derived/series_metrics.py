"""The last results of each test: flips, streaks and classes. Definitions: docs/REPORTS.md."""

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import chain, groupby, islice, pairwise
from typing import NamedTuple

from etl.config.settings import Rules
from etl.derived.metrics import DECIDED, Counts, count_letters
from etl.derived.plans import NamedTest, PlanRun, Roster, RunResults

SeriesRun = PlanRun | RunResults

MIN_DECIDED = 5
"""The fewest decided results in a window that can make a failure new, or a test always failing."""
UNDECIDED_SHARE = 3
"""The most undecided results that a window shows, for each decided one that it can have."""


class Verdict(NamedTuple):
    """The judgement of the newest results of a test, independent of their runs.

    Counts and flips are those of the window: the last `Rules.window_results` decided results and
    the results between them, the newest if there are many. `recent` has the window's letters,
    oldest first. `flips` is None if nothing is decided. Places count results, the newest is 0:
    those in the window, of the first failure of the streak, and of the newest flip.
    """

    counts: Counts
    flips: int | None
    flip_rate: float | None
    health: float | None
    is_flaky: bool
    is_regression: bool
    is_new_failure: bool
    is_always_failing: bool
    is_recovered: bool
    fail_streak: int
    recent: str
    window: Sequence[int]
    streak_place: int | None
    flip_place: int | None

    @property
    def decided(self) -> int:
        """P + F in the window."""
        return self.counts.decided


def require_decided(rules: Rules) -> int:
    """Return the fewest decided results that allow a class: all of a window that is shorter."""
    return _shorten(MIN_DECIDED, rules)


def _shorten(least: int, rules: Rules) -> int:
    """Return a minimum of decided results; a window below `MIN_DECIDED` only has to be full."""
    return min(least, rules.window_results) if rules.window_results < MIN_DECIDED else least


@lru_cache(maxsize=4096)  # most series are alike: all passed
def judge_results(letters: str, rules: Rules) -> Verdict:
    """Judge the newest results of a test, newest first (docs/REPORTS.md)."""
    size = rules.window_results
    decided = [place for place, letter in enumerate(letters) if letter in DECIDED][:size]
    window = _find_window(letters, decided, size)
    shown = "".join([letters[place] for place in window])
    flips = [place for place, older in pairwise(decided) if letters[place] != letters[older]]
    counts = count_letters(shown)
    flip_rate = len(flips) / (len(decided) - 1) if len(decided) > 1 else None
    newest = "".join([letters[place] for place in decided[:2]])
    is_judged = len(decided) >= require_decided(rules)
    since_pass = letters.partition("P")[0]
    return Verdict(
        counts,
        len(flips) if decided else None,
        flip_rate,
        health=None if flip_rate is None else counts.passed / len(decided) * (1 - flip_rate),
        is_flaky=flip_rate is not None
        and len(decided) >= _shorten(rules.flaky_min_results, rules)
        and len(flips) >= rules.flaky_min_flips
        and flip_rate >= rules.flaky_min_flip_rate,
        is_regression=newest == "FP",
        is_new_failure=newest == "FP" and is_judged and counts.failed == 1,
        is_always_failing=is_judged and counts.passed == 0,
        is_recovered=newest == "PF",
        fail_streak=since_pass.count("F"),
        recent=shown[::-1],
        window=window,
        streak_place=since_pass.rfind("F") if "F" in since_pass else None,
        flip_place=flips[0] if flips else None,
    )


def _find_window(letters: str, decided: Sequence[int], results: int) -> Sequence[int]:
    """Return the places in `letters` that the window shows, which ends at the last decided one."""
    size = decided[-1] + 1 if len(decided) == results else len(letters)
    if size - len(decided) <= UNDECIDED_SHARE * results:
        return range(size)
    undecided = [place for place in range(size) if letters[place] not in DECIDED]
    hidden = set(undecided[UNDECIDED_SHARE * results :])
    return [place for place in range(size) if place not in hidden]


class _RunBlock(NamedTuple):
    """Consecutive runs, newest first, each with the same number of results of a test."""

    runs: Sequence[SeriesRun]
    results: int


class Series:
    """The newest results of one test of a variant, collected backwards in time until decided."""

    __slots__ = ("blocks", "letters", "rules", "test", "test_key")

    def __init__(self, test_key: str, test: NamedTest, rules: Rules) -> None:
        self.test_key = test_key
        self.test = test
        self.rules = rules
        self.letters = ""
        self.blocks: list[_RunBlock] = []

    @property
    def is_decided(self) -> bool:
        """Tell whether older results no longer matter.

        Failures older than the last pass do not belong to the streak.
        """
        passed = self.letters.count("P")
        return passed > 0 and passed + self.letters.count("F") >= self.rules.window_results

    @property
    def verdict(self) -> Verdict:
        """The judgement of the results."""
        return judge_results(self.letters, self.rules)

    @property
    def results(self) -> Hashable:
        """Equal for series of one computation with the same results in the same runs."""
        return (self.letters, *map(id, self.blocks))

    def run_at(self, place: int) -> SeriesRun:
        """Return the run of a result; the newest result has place 0."""
        for block in self.blocks:
            size = len(block.runs) * block.results
            if place < size:
                return block.runs[place // block.results]
            place -= size
        raise IndexError(place)

    @property
    def last_started_at(self) -> datetime:
        """The start of the newest run."""
        return self.blocks[0].runs[0].started_at

    @property
    def is_confirmed_flaky(self) -> bool:
        """Tell whether one commit both passed and failed, which no change of code explains."""
        verdict = self.verdict
        if not verdict.flips:
            return False
        seen: defaultdict[str, set[str]] = defaultdict(set)
        for place in verdict.window:
            commit, letter = self.run_at(place).commit, self.letters[place]
            if commit is not None and letter in DECIDED:
                seen[commit].add(letter)
        return any(letters == DECIDED for letters in seen.values())


def compute_series(
    runs: Iterable[SeriesRun],
    rules: Rules,
    wanted: Collection[str] | None = None,
    seen_since: datetime | None = None,
) -> list[Series]:
    """Return the series of one variant: those of the `wanted` test keys, or all.

    Leaves out those without a run since `seen_since`.
    `runs` are those of the variant, newest (by started_at, then run_id) first; stops reading
    them as soon as older runs no longer matter.
    """
    found: dict[str, Series] = {}
    done: set[str] = set()
    for part in _split_by_roster(runs, rules.window_results + 2):
        roster = part[0].roster
        if seen_since and part[0].started_at < seen_since:
            wanted = found.keys()
        places = _find_places(roster, wanted, done)
        strips = [run.outcomes for run in part] if places else []
        columns = list(map("".join, zip(*strips, strict=True)))
        once = _RunBlock(part, 1)
        for key, positions in places.items():
            series = found.get(key)
            if series is None:
                series = found[key] = Series(key, roster.tests[positions[0]], rules)
            if len(positions) == 1:
                series.letters += columns[positions[0]]
                series.blocks.append(once)
            else:
                series.letters += _interleave([columns[position] for position in positions])
                series.blocks.append(_RunBlock(part, len(positions)))
            if series.is_decided:
                done.add(key)
        if wanted is not None and len(done) == len(wanted):
            break
    return list(found.values())


def _split_by_roster(runs: Iterable[SeriesRun], size: int) -> Iterator[list[SeriesRun]]:
    """Yield blocks of consecutive runs with the same roster, in growing sizes."""
    for _, group in groupby(runs, key=lambda run: run.roster.roster_id):
        while part := list(islice(group, size)):
            yield part
            size = min(2 * size, 1000)


def _find_places(
    roster: Roster, wanted: Collection[str] | None, done: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """Return the places of each wanted test in a roster, the last one first."""
    places: dict[str, tuple[int, ...]] = {}
    for place, key in enumerate(roster.keys):
        if key not in done and (wanted is None or key in wanted):
            places[key] = (place, *places[key]) if key in places else (place,)
    return places


def _interleave(columns: Sequence[str]) -> str:
    """Join the results of a test that occurs `len(columns)` times in each run."""
    return "".join(chain.from_iterable(zip(*columns, strict=True)))
