"""The derived rows of a run, from all its contents in their order.

Pure: what the archive says of a run follows from its payloads and from when they were seen, and
here is how. `store` adds a content at a time by these rules; `rebuild` applies them to all.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from etl.answers.payload import OPEN_STATUS
from etl.answers.rows import COUNTERS, Rows
from etl.derived.metrics import (
    MILLISECOND,
    Counts,
    compute_rates,
    count_letters,
    encode_strip,
    read_checks,
)
from etl.derived.period_metrics import Period, build_period
from etl.derived.plans import Plan, build_plan, hash_parts

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
    "outcomes",
    "status_changes",
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


def derived(
    owner: Owner, stretches: Sequence[Stretch], id_keyed: Collection[str]
) -> dict[str, list[Row]]:
    """Return all derived rows of a run by table, each in the order of its table's columns.

    `id_keyed` are the applications whose tests keep their ids from run to run.
    """
    first, last = stretches[0], stretches[-1]
    pairs = list(pairwise(stretches))
    ends = [*(new.observed_at for _, new in pairs), None]
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
        "outcomes": [
            outcome_row(owner.run_id, stretch, superseded_at, outcome_of(stretch.rows, id_keyed))
            for stretch, superseded_at in zip(stretches, ends, strict=True)
        ],
        "status_changes": [
            row for old, new in pairs for row in changed_statuses(owner.run_id, as_before(old), new)
        ],
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
        test.position: (test.test_id, test.name, test.status, *count_letters[3:8])
        for test, count_letters in zip(rows.tests, rows.counts[1:], strict=True)
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


# --- what reports count ---------------------------------------------------------------------


def variant_row(rows: Rows) -> Row:
    """Return the row of `plan_variants` that an answer belongs to."""
    run = rows.run
    return _variant_row(build_plan(run.application, run.name), run.environment_signature)


@lru_cache(maxsize=256)  # plans recur
def _variant_row(plan: Plan, environment_signature: str) -> Row:
    variant_id = hash_parts([plan.application, plan.plan, environment_signature])
    return (variant_id, plan.plan_id, plan.application, plan.plan, environment_signature)


def roster_row(rows: Rows, id_keyed: Collection[str]) -> tuple[str, str]:
    """Return the row of `rosters` that lists an answer's tests: its key and the list, as JSON."""
    keeps_ids = build_plan(rows.run.application, None).application in id_keyed
    tests = msgspec.json.encode(
        [(test.name, test.type, test.test_id) for test in rows.tests]
        if keeps_ids
        else [(test.name, test.type) for test in rows.tests]
    )
    return hashlib.sha256(tests).hexdigest()[:32], tests.decode()


class Outcome(NamedTuple):
    """How the tests of an answer ended: a letter for each (`strip`), and what that counts.

    `variant` and `roster` are the rows of `plan_variants` and `rosters` that it refers to.
    """

    variant: Row
    roster: Row
    strip: str
    tests: Counts
    checks: Counts
    period: Period | None
    """What it adds to its day, None where the answer names no day."""


def outcome_of(rows: Rows, id_keyed: Collection[str]) -> Outcome:
    """Return what an answer counts."""
    strip = encode_strip([test.status for test in rows.tests])
    checks = read_checks(rows.counts[0]._asdict())
    day = rows.run.started_on
    return Outcome(
        variant_row(rows),
        roster_row(rows, id_keyed),
        strip,
        count_letters(strip),
        checks,
        build_period(day, strip, checks) if day else None,
    )


def outcome_row(
    run_id: str, stretch: Stretch, superseded_at: datetime | None, outcome: Outcome
) -> Row:
    """Return the row of `outcomes`."""
    run, tests, checks = stretch.rows.run, outcome.tests, outcome.checks
    return (
        run_id,
        stretch.revision,
        stretch.observed_at,
        superseded_at,
        outcome.variant[0],
        outcome.roster[0],
        outcome.strip,
        run.status,
        run.started_at,
        run.started_on,
        run.ended_at,
        run.duration_ms,
        *(getattr(checks, name) for name in COUNTERS),
        compute_rates(checks).pass_rate,
        *(getattr(tests, name) for name in COUNTERS),
        len(outcome.strip) - sum(tests),
        *compute_rates(tests),
    )


class Before(NamedTuple):
    """What a run was, until a change; `opened_at` is when it was over, for a person to decide."""

    status: str | None
    opened_at: datetime
    last_seen_at: datetime
    tests: Mapping[int, TestState]


def as_before(stretch: Stretch) -> Before:
    """Return a stretch that is over as `changed_statuses` wants it."""
    return Before(
        stretch.rows.run.status,
        stretch.rows.run.ended_at or stretch.observed_at,
        stretch.last_seen_at or stretch.observed_at,
        test_states(stretch.rows),
    )


def changed_statuses(run_id: str, old: Before, new: Stretch) -> list[Row]:
    """Return a row of `status_changes` for the run, and for each of its tests, that has another.

    What was unresolved was decided within two bounds: after `last_seen_at`, and at the latest
    when we saw it (docs/REPORTS.md).
    """
    before = {0: (None, old.status)} | {
        position: (state[1], state[2]) for position, state in old.tests.items()
    }
    after = {0: (None, new.rows.run.status)} | {
        test.position: (test.name, test.status) for test in new.rows.tests
    }
    shortest = max(old.last_seen_at - old.opened_at, timedelta(0)) // MILLISECOND
    longest = max(new.observed_at - old.opened_at, timedelta(0)) // MILLISECOND
    rows: list[Row] = []
    for position in sorted(before.keys() | after.keys()):
        name, was = before.get(position, (None, None))
        new_name, becomes = after.get(position, (name, None))
        if was != becomes:
            decided = (old.opened_at, shortest, longest) if was == OPEN_STATUS else (None,) * 3
            rows.append(
                (
                    run_id,
                    new.revision,
                    position,
                    new_name,
                    was,
                    becomes,
                    old.last_seen_at,
                    new.observed_at,
                    *decided,
                )
            )
    return rows
