"""Counts, rates and percentiles: the one place that computes them.

Pure. `aggregates` keeps what follows from them in tables for BI tools, `reports` prints it, now
or as of any moment. The definitions are in docs/REPORTS.md.
"""

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

LETTERS = {"passed": "P", "failed": "F", "aborted": "A", "unresolved": "U", "pending": "N"}
"""How a test's status stands in a strip of outcomes; any other word is a `?`."""
UNKNOWN = "?"
WORDS = {letter: word for word, letter in LETTERS.items()}
DECIDED = frozenset("PF")


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


def percentile(values: Collection[int], percent: int) -> int:
    """Return the smallest value that `percent` of `values` do not exceed (nearest rank).

    As PostgreSQL's `percentile_disc`. Raises IndexError when there are no values.
    """
    return sorted(values)[rank(len(values), percent) - 1]


def rank(values: int, percent: int) -> int:
    """Return which one of so many sorted values the percentile is, counted from 1."""
    return max(-(-percent * values // 100), 1)
