"""Find out since when a run and its tests wait for a decision, where the run's end is unknown.

Pure. They wait since they were first seen open, through later changes of other things.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime

from etl.answers.payload import OPEN_STATUS
from etl.answers.rows import Rows
from etl.archive.pairing import TestContent, pair_tests, read_tests


def trace_open(answers: Iterable[tuple[datetime, Rows]]) -> Iterator[dict[int, datetime]]:
    """Yield for each answer of a run when its open tests were first seen open, by position.

    Position 0 is the run's own status. `answers` are in order, each with the time when it was
    first seen.
    """
    tests: list[TestContent] = []
    since: dict[int, datetime] = {}
    for observed_at, rows in answers:
        before, tests = tests, read_tests(rows)
        pairs = [
            (old.position, new.position) for old, new in pair_tests(before, tests) if old and new
        ]
        earlier = {new: since[old] for old, new in [(0, 0), *pairs] if old in since}
        statuses = [(0, rows.run.status), *((test.position, test.status) for test in tests)]
        since = {
            position: earlier.get(position, observed_at)
            for position, status in statuses
            if status == OPEN_STATUS
        }
        yield since


def trace_open_runs(answers: Iterable[tuple[datetime, Rows]]) -> Iterator[datetime | None]:
    """Yield for each answer of a run since when the run waits; None without an open test."""
    since = None
    for observed_at, rows in answers:
        opened_at = find_opened_at(observed_at, rows, since)
        since = opened_at and (since or observed_at)
        yield opened_at


def find_opened_at(observed_at: datetime, rows: Rows, since: datetime | None) -> datetime | None:
    """Return since when a run waits for a decision, None if no test of the answer is open.

    `since` is when it was first seen with an open test, None if it had none in the answer before.
    """
    if not any(test.status == OPEN_STATUS for test in rows.tests):
        return None
    return rows.run.ended_at or since or observed_at
