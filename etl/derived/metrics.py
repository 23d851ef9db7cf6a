"""Counts, rates and percentiles: the one place that computes them.

Pure. `aggregates` stores their results in tables for BI tools, `reports` prints them, now or as of
any moment. The definitions are in docs/REPORTS.md.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import NamedTuple

LETTERS = {"passed": "P", "failed": "F", "aborted": "A", "unresolved": "U", "pending": "N"}
"""The letter of each status in a strip of outcomes; any other word is a `?`."""
UNKNOWN = "?"
WORDS = {letter: word for word, letter in LETTERS.items()}
DECIDED = frozenset("PF")

MILLISECOND = timedelta(milliseconds=1)


class Counts(NamedTuple):
    """The number of results of each kind: P, F, A, U and N of docs/REPORTS.md."""

    passed: int = 0
    failed: int = 0
    aborted: int = 0
    unresolved: int = 0
    pending: int = 0

    @property
    def decided(self) -> int:
        """P + F."""
        return self.passed + self.failed

    @property
    def in_column_order(self) -> tuple[int, ...]:
        """The counts in the order of the tables' columns."""
        return self.failed, self.passed, self.aborted, self.pending, self.unresolved


class Rates(NamedTuple):
    """Rates from 0 to 1; None where the denominator is 0."""

    pass_rate: float | None
    pass_rate_strict: float | None
    decided_share: float | None
    pass_rate_low: float | None
    pass_rate_high: float | None


def encode_strip(statuses: Iterable[str | None]) -> str:
    """Return a strip: a letter for each status, in their order."""
    letters = LETTERS
    return "".join([letters.get(status or "", UNKNOWN) for status in statuses])


def count_letters(outcomes: str) -> Counts:
    """Count the letters of a strip, except those of unknown words."""
    return Counts(*[outcomes.count(letter) for letter in "PFAUN"])


@lru_cache(maxsize=4096)
def compute_rates(counts: Counts) -> Rates:
    """Return the rates of `counts`. For groups, add the counts first: rates are never averaged."""
    known = counts.decided + counts.aborted + counts.unresolved
    return Rates(
        pass_rate=_divide(counts.passed, counts.decided),
        pass_rate_strict=_divide(counts.passed, known),
        decided_share=_divide(counts.decided, known + counts.pending),
        pass_rate_low=_divide(counts.passed, known),
        pass_rate_high=_divide(counts.passed + counts.unresolved, known),
    )


def _divide(part: int, whole: int) -> float | None:
    return part / whole if whole else None


MAX_CHECKS = 10**12
"""A counter above it, or below 0, cannot be true: reports leave it out."""


def read_checks(counters: Mapping[str, int | None]) -> Counts:
    """Return the API's counters of checks; an unknown or impossible one is 0."""
    known = {name: counters.get(name) or 0 for name in Counts._fields}
    return Counts(**{name: n if 0 <= n <= MAX_CHECKS else 0 for name, n in known.items()})


def add_counts(counts: Iterable[Counts]) -> Counts:
    """Add up counts."""
    return Counts(*[sum(column) for column in zip(*counts, strict=True)])


def percentile(values: Collection[int], percent: int) -> int:
    """Return the smallest value that `percent` of `values` do not exceed (nearest rank).

    As PostgreSQL's `percentile_disc`. Raises IndexError when there are no values.
    """
    return sorted(values)[rank(len(values), percent) - 1]


def rank(values: int, percent: int) -> int:
    """Return the position of a percentile among `values` sorted values, counted from 1."""
    return max(-(-percent * values // 100), 1)
