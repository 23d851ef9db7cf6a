"""Classify each test of two runs by its status before and after."""

from collections import defaultdict
from collections.abc import Mapping
from enum import StrEnum
from itertools import zip_longest
from typing import NamedTuple

from etl.derived.metrics import WORDS
from etl.derived.plans import Roster


class Class(StrEnum):
    """The change of a test; each test of both runs has exactly one."""

    NEW_FAILURE = "new_failure"
    """Passed, and failed."""
    STILL_FAILING = "still_failing"
    FIXED = "fixed"
    """Failed, and passed."""
    BECAME_OPEN = "became_open"
    """Is unresolved, and was not."""
    CLOSED = "closed"
    """Was unresolved, and passed, failed or was aborted."""
    ADDED = "added"
    REMOVED = "removed"
    OTHER = "other"
    """Anything else, such as a test that is pending, or that was aborted and passed."""
    STILL_PASSING = "still_passing"


_DECIDED = {
    "PF": Class.NEW_FAILURE,
    "FF": Class.STILL_FAILING,
    "FP": Class.FIXED,
    "PP": Class.STILL_PASSING,
}


class Compared(NamedTuple):
    """A test of two runs; its words are missing where it is not in the run."""

    what: Class
    test: str | None
    type: str | None
    from_status: str | None
    to_status: str | None


def classify(before: str | None, after: str | None) -> Class:
    """Return the class of a test by its letters in two runs; None is a run without it."""
    if before is None:
        return Class.ADDED
    if after is None:
        return Class.REMOVED
    if after == "U" and before != "U":
        return Class.BECAME_OPEN
    if before == "U" and after in {"P", "F", "A"}:
        return Class.CLOSED
    return _DECIDED.get(before + after, Class.OTHER)


class RunTests(NamedTuple):
    """The tests of a run with a letter for each, and the words of the unknown ones by position."""

    roster: Roster
    outcomes: str
    unknown: Mapping[int, str | None]


def compare(before: RunTests, after: RunTests) -> list[Compared]:
    """Compare the tests of two runs; new failures come first.

    Tests are the same by their key; where a key is there more than once, by their order.
    """
    old, new = _by_key(before), _by_key(after)
    keys = [*new, *(key for key in old if key not in new)]
    found = [
        _compared(*pair) for key in keys for pair in zip_longest(old.get(key, []), new.get(key, []))
    ]
    order = list(Class)
    return sorted(found, key=lambda each: order.index(each.what))


class _Place(NamedTuple):
    """A test in a run, with its letter."""

    name: str | None
    type: str | None
    letter: str
    word: str | None


def _by_key(run: RunTests) -> dict[str, list[_Place]]:
    places: defaultdict[str, list[_Place]] = defaultdict(list)
    listed = zip(run.roster.keys, run.roster.tests, run.outcomes, strict=True)
    for position, (key, test, letter) in enumerate(listed, start=1):
        word = WORDS.get(letter) or run.unknown.get(position)
        places[key].append(_Place(test.name, test.type, letter, word))
    return dict(places)


def _compared(old: _Place | None, new: _Place | None) -> Compared:
    before, after = old and old.letter, new and new.letter
    test = new or old
    return Compared(
        classify(before, after),
        test and test.name,
        test and test.type,
        old and old.word,
        new and new.word,
    )
