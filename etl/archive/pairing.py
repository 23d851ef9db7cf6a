"""Pair the tests of two revisions of a run.

Pure. A test keeps its history when it moves in the answer or is renamed.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from etl.answers.rows import Rows


class TestContent(NamedTuple):
    """A test of a revision; `counters` are its five, in the order of the tables' columns."""

    position: int
    test_id: str | None
    name: str | None
    type: str | None
    status: str | None
    counters: tuple[int | None, ...]

    @property
    def kept(self) -> tuple[Any, ...]:
        """The content that `test_revisions` keeps: test_id, name, status and the counters."""
        return (self.test_id, self.name, self.status, *self.counters)


ABSENT_TEST = TestContent(0, None, None, None, None, (None,) * 5)


class TestPair(NamedTuple):
    """A test before and after; None where it was not there yet, or left."""

    old: TestContent | None
    new: TestContent | None

    @property
    def has_new_status(self) -> bool:
        """Whether the status differs; a test without a status is like none."""
        return (self.old or ABSENT_TEST).status != (self.new or ABSENT_TEST).status


def read_tests(rows: Rows) -> list[TestContent]:
    """Return the tests of an answer, in its order."""
    return [
        TestContent(test.position, test.test_id, test.name, test.type, test.status, own[3:8])
        for test, own in zip(rows.tests, rows.counts[1:], strict=True)
    ]


def pair_tests(old: Sequence[TestContent], new: Sequence[TestContent]) -> list[TestPair]:
    """Pair tests by id, the rest by name and type, and equal ones by their order."""
    by_id = _match(old, new, _read_id)
    rest_old = [test for test in old if test.position not in by_id]
    matched = {test.position for test in by_id.values()}
    rest_new = [test for test in new if test.position not in matched]
    partners = by_id | _match(rest_old, rest_new, _read_name)
    matched = {test.position for test in partners.values()}
    pairs = [TestPair(test, partners.get(test.position)) for test in old]
    return pairs + [TestPair(None, test) for test in new if test.position not in matched]


def _match(
    old: Sequence[TestContent],
    new: Sequence[TestContent],
    read_key: Callable[[TestContent], Hashable],
) -> dict[int, TestContent]:
    """Return the partner of each test of `old` that has one, by position."""
    partners: defaultdict[Hashable, deque[TestContent]] = defaultdict(deque)
    for test in new:
        partners[read_key(test)].append(test)
    return {
        test.position: partners[key].popleft()
        for test in old
        if (key := read_key(test)) is not None and partners.get(key)
    }


def _read_id(test: TestContent) -> Hashable:
    return test.test_id or None


def _read_name(test: TestContent) -> Hashable:
    return (test.name, test.type)
