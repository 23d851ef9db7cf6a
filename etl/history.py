"""The derived rows of a run, from all its contents in their order.

Pure: what the archive says of a run follows from its payloads and from when they were seen, and
here is how. `store` adds a content at a time by these rules; `rebuild` applies them to all.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from etl.normalize import Rows

Row = tuple[Any, ...]
TestState = tuple[Any, ...]
"""A test as history keeps it: test_id, name, status and the five counters."""

NOTHING: TestState = (None,) * 8

DERIVED = (
    "runs",
    "environments",
    "tests",
    "counts",
    "revisions",
    "test_revisions",
    "warnings",
)
"""The tables that follow from the payloads, a table after those that it refers to."""


class Stretch(NamedTuple):
    """A stretch of time in which a run's content was the same. `last_seen_at` when it is over."""

    revision: int
    observed_at: datetime
    last_seen_at: datetime | None
    content_hash: str
    rows: Rows


class Owner(NamedTuple):
    """What the ledger says of a run, and no payload tells."""

    run_id: str
    source: str
    gone_at: datetime | None


def derived(owner: Owner, stretches: Sequence[Stretch]) -> dict[str, list[Row]]:
    """Return all derived rows of a run by table, each in the order of its table's columns."""
    first, last = stretches[0], stretches[-1]
    pairs = list(pairwise(stretches))
    return {
        "runs": [run_row(owner, last, first.observed_at)],
        "environments": [tuple(row) for row in last.rows.environments],
        "tests": [tuple(row) for row in last.rows.tests],
        "counts": [tuple(row) for row in last.rows.counts],
        "revisions": [
            *(revision_row(owner.run_id, old, new.observed_at) for old, new in pairs),
            revision_row(owner.run_id, last, None),
        ],
        "test_revisions": [
            row
            for old, new in pairs
            for row in differing_tests(
                owner.run_id, old.revision, test_states(old.rows), test_states(new.rows)
            )
        ],
        "warnings": [row for stretch in stretches for row in warning_rows(owner.run_id, stretch)],
    }


def run_row(owner: Owner, current: Stretch, archived_at: datetime) -> Row:
    """Return the row of `runs`."""
    run = current.rows.run
    return (
        owner.run_id,
        owner.source,
        *run[:-1],
        current.revision,
        current.content_hash,
        archived_at,
        current.observed_at,
        owner.gone_at,
        run.extra,
    )


def revision_row(run_id: str, stretch: Stretch, superseded_at: datetime | None) -> Row:
    """Return the row of `revisions`."""
    run, own = stretch.rows.run, stretch.rows.counts[0]
    return (
        run_id,
        stretch.revision,
        stretch.observed_at,
        stretch.last_seen_at,
        superseded_at,
        run.status,
        run.started_at,
        run.duration_ms,
        own.failed,
        own.passed,
        own.aborted,
        own.pending,
        own.unresolved,
        own.total,
        stretch.content_hash,
    )


def warning_rows(run_id: str, stretch: Stretch) -> list[Row]:
    """Return the rows of `warnings`."""
    return [(run_id, stretch.revision, *warned) for warned in stretch.rows.warnings]


def test_states(rows: Rows) -> dict[int, TestState]:
    """Return each test of an answer as history would keep it, by position."""
    return {
        test.position: (test.test_id, test.name, test.status, *count[3:8])
        for test, count in zip(rows.tests, rows.counts[1:], strict=True)
    }


def differing_tests(
    run_id: str, revision: int, old: Mapping[int, TestState], new: Mapping[int, TestState]
) -> list[Row]:
    """Return the rows of `test_revisions` that keep `old`, where `new` is not the same.

    A test that only `new` has gets a row as well: it was `absent` from `revision`.
    """
    return [
        (run_id, revision, position, *old.get(position, NOTHING), position not in old)
        for position in sorted(old.keys() | new.keys())
        if old.get(position) != new.get(position)
    ]
