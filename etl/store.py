"""Put answers into the tables, and keep what they replace as history.

The caller owns the transaction, and holds the runs' leases: of one run, answers come here one
after another, the later one fetched later.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import zstandard
from sqlalchemy import Connection, Row, Table, and_, delete, select, tuple_, update

from etl import bulk
from etl.lifecycle import Seen
from etl.normalize import Drift, Rows, RunRow
from etl.schema import (
    COUNTERS,
    counts,
    drift,
    environments,
    payloads,
    rejects,
    revisions,
    runs,
    test_revisions,
    tests,
    tracked_runs,
    warnings,
)

ENCODING = "zstd"
RUN_COLUMNS = (*RunRow._fields[:-1], "revision", "content_hash", "changed_at", "gone_at", "extra")


class Body(NamedTuple):
    """An answer's body as it rests: compressed, with the size and hash of what was received."""

    compressed: bytes
    size: int
    sha256: str


class Answer(NamedTuple):
    """An accepted answer, ready to be stored."""

    run_id: str
    source: str
    fetched_at: datetime
    body: Body
    content_hash: str
    rows: Rows


class Reject(NamedTuple):
    """An answer that could not be accepted, with its body as received."""

    run_id: str
    fetched_at: datetime
    http_status: int
    reason: str
    body: bytes
    sha256: str


class Archived(NamedTuple):
    """What the archive has of a run."""

    run_id: str
    revision: int
    content_hash: str
    status: str | None
    started_at: datetime | None
    ended_at: datetime | None
    changed_at: datetime
    gone_at: datetime | None
    first_tracked_at: datetime
    last_fetched_at: datetime | None

    def seen(self) -> Seen:
        """Return what `lifecycle` decides by.

        Times from the answer count only as far as they can be: not after we saw what they tell.
        """
        over_since = min(self.ended_at or self.changed_at, self.changed_at)
        return Seen(
            self.status,
            began_at=min(self.started_at or self.first_tracked_at, self.changed_at),
            over_since=over_since,
            changed_at=self.changed_at if self.revision > 1 else over_since,
        )


class Saved(NamedTuple):
    """How an answer changed the archive: `is_new`, or of another content, or neither."""

    is_new: bool
    is_changed: bool
    archived: Archived


def compress(body: bytes, sha256: str) -> Body:
    """Return `body` as it is kept; `sha256` is that of the bytes that were received."""
    return Body(zstandard.compress(body, 3), len(body), sha256)


def decompress(compressed: bytes, encoding: str) -> bytes:
    """Return a payload's bytes. Raises ValueError for an encoding this version does not know."""
    if encoding != ENCODING:
        raise ValueError(f"unknown encoding {encoding!r}")
    return zstandard.decompress(compressed)


def archived(connection: Connection, run_ids: Sequence[str]) -> dict[str, Archived]:
    """Return what is known of those of `run_ids` that were archived before, by run ID."""
    query = (
        select(
            runs.c.run_id,
            runs.c.revision,
            runs.c.content_hash,
            runs.c.status,
            runs.c.started_at,
            runs.c.ended_at,
            runs.c.changed_at,
            runs.c.gone_at,
            tracked_runs.c.first_tracked_at,
            tracked_runs.c.last_fetched_at,
        )
        .join(tracked_runs, tracked_runs.c.run_id == runs.c.run_id)
        .where(runs.c.run_id.in_(run_ids))
    )
    return {row.run_id: Archived._make(row) for row in connection.execute(query)}


def fingerprints(connection: Connection, run_ids: Sequence[str]) -> dict[str, str]:
    """Return the sha256 of each run's newest payload: the same bytes again are no news."""
    query = (
        select(payloads.c.run_id, payloads.c.sha256)
        .join(
            runs,
            and_(runs.c.run_id == payloads.c.run_id, runs.c.revision == payloads.c.revision),
        )
        .where(payloads.c.run_id.in_(run_ids))
    )
    return dict(connection.execute(query).all())


def save(connection: Connection, answers: Sequence[Answer]) -> dict[str, Saved]:
    """Store `answers`, one a run, and return by run ID what that changed.

    The same content again changes nothing; other content opens a new revision.
    """
    before = archived(connection, [answer.run_id for answer in answers])
    new = [answer for answer in answers if answer.run_id not in before]
    changed = [
        answer
        for answer in answers
        if answer.run_id in before and before[answer.run_id].content_hash != answer.content_hash
    ]
    _supersede(connection, changed, before)
    _update_runs(connection, changed, before)
    bulk.insert(connection, runs, [_new_run(answer) for answer in new])
    _insert_children(connection, [*new, *changed], before)
    _put_drift(connection, new + changed)
    unmark_gone(connection, list(before))
    after = archived(connection, [answer.run_id for answer in new + changed])
    return {
        answer.run_id: Saved(
            answer.run_id not in before,
            answer.run_id in before and answer.run_id in after,
            after.get(answer.run_id) or before[answer.run_id]._replace(gone_at=None),
        )
        for answer in answers
    }


def _observed_at(answer: Answer, before: Mapping[str, Archived]) -> datetime:
    """Return when the content was first seen: never before the last look, whatever the clock."""
    known = before.get(answer.run_id)
    if known is None or known.last_fetched_at is None:
        return answer.fetched_at
    return max(answer.fetched_at, known.last_fetched_at)


def _revision(answer: Answer, before: Mapping[str, Archived]) -> int:
    known = before.get(answer.run_id)
    return known.revision + 1 if known else 1


def _new_run(answer: Answer) -> tuple[Any, ...]:
    run = answer.rows.run
    at = answer.fetched_at
    return (
        answer.run_id,
        answer.source,
        *run[:-1],
        1,
        answer.content_hash,
        at,
        at,
        None,
        run.extra,
    )


def _update_runs(
    connection: Connection, changed: Sequence[Answer], before: Mapping[str, Archived]
) -> None:
    rows = [
        (
            *answer.rows.run[:-1],
            _revision(answer, before),
            answer.content_hash,
            _observed_at(answer, before),
            None,
            answer.rows.run.extra,
            answer.run_id,
        )
        for answer in changed
    ]
    bulk.update(connection, runs, RUN_COLUMNS, rows)


def _supersede(
    connection: Connection, changed: Sequence[Answer], before: Mapping[str, Archived]
) -> None:
    """End the open stretches, keep the tests that differ, and clear the way for the new rows."""
    if not changed:
        return
    ends = []
    for answer in changed:
        known = before[answer.run_id]
        observed_at = _observed_at(answer, before)
        ends.append(
            (known.last_fetched_at or observed_at, observed_at, answer.run_id, known.revision)
        )
    bulk.update(connection, revisions, ("last_seen_at", "superseded_at"), ends)
    run_ids = [answer.run_id for answer in changed]
    old_tests = _current_tests(connection, run_ids)
    bulk.insert(
        connection,
        test_revisions,
        [
            row
            for answer in changed
            for row in differing_tests(
                answer.run_id,
                before[answer.run_id].revision,
                old_tests.get(answer.run_id, {}),
                test_states(answer.rows),
            )
        ],
    )
    for table in (counts, tests, environments):
        connection.execute(delete(table).where(table.c.run_id.in_(run_ids)))


TestState = tuple[Any, ...]
"""A test as history keeps it: test_id, name, status and the five counters."""


def _current_tests(
    connection: Connection, run_ids: Sequence[str]
) -> dict[str, dict[int, TestState]]:
    query = (
        select(
            tests.c.run_id,
            tests.c.position,
            tests.c.test_id,
            tests.c.name,
            tests.c.status,
            *[counts.c[name] for name in COUNTERS],
        )
        .join(
            counts,
            and_(counts.c.run_id == tests.c.run_id, counts.c.test_position == tests.c.position),
        )
        .where(tests.c.run_id.in_(run_ids))
    )
    states: dict[str, dict[int, TestState]] = {}
    for run_id, position, *state in connection.execute(query):
        states.setdefault(run_id, {})[position] = tuple(state)
    return states


def test_states(rows: Rows) -> dict[int, TestState]:
    """Return each test of an answer as history would keep it, by position."""
    return {
        test.position: (test.test_id, test.name, test.status, *count[3:8])
        for test, count in zip(rows.tests, rows.counts[1:], strict=True)
    }


def differing_tests(
    run_id: str, revision: int, old: Mapping[int, TestState], new: Mapping[int, TestState]
) -> list[tuple[Any, ...]]:
    """Return the rows of `test_revisions` that keep `old`, where `new` is not the same.

    A test that only `new` has gets a row as well: it was `absent` from `revision`.
    """
    nothing: TestState = (None,) * (3 + len(COUNTERS))
    return [
        (run_id, revision, position, *old.get(position, nothing), position not in old)
        for position in sorted(old.keys() | new.keys())
        if old.get(position) != new.get(position)
    ]


def _insert_children(
    connection: Connection, answers: Sequence[Answer], before: Mapping[str, Archived]
) -> None:
    numbered = [(answer, _revision(answer, before)) for answer in answers]

    def insert(table: Table, rows: Iterable[tuple[Any, ...]]) -> None:
        bulk.insert(connection, table, list(rows))

    insert(environments, (row for answer in answers for row in answer.rows.environments))
    insert(tests, (row for answer in answers for row in answer.rows.tests))
    insert(counts, (row for answer in answers for row in answer.rows.counts))
    insert(
        revisions,
        (
            _revision_row(answer, revision, _observed_at(answer, before))
            for answer, revision in numbered
        ),
    )
    insert(
        payloads,
        (
            (
                answer.run_id,
                revision,
                answer.body.compressed,
                ENCODING,
                answer.body.size,
                answer.body.sha256,
                answer.fetched_at,
            )
            for answer, revision in numbered
        ),
    )
    insert(
        warnings,
        (
            (answer.run_id, revision, *warned)
            for answer, revision in numbered
            for warned in answer.rows.warnings
        ),
    )


def _revision_row(answer: Answer, revision: int, observed_at: datetime) -> tuple[Any, ...]:
    run, own = answer.rows.run, answer.rows.counts[0]
    return (
        answer.run_id,
        revision,
        observed_at,
        None,
        None,
        run.status,
        run.started_at,
        run.duration_ms,
        own.failed,
        own.passed,
        own.aborted,
        own.pending,
        own.unresolved,
        own.total,
        answer.content_hash,
    )


def _put_drift(connection: Connection, answers: Sequence[Answer]) -> None:
    """Keep for each novelty the earliest sight, by run ID among equals, whatever the order."""
    first: dict[Drift, tuple[datetime, str]] = {}
    for answer in answers:
        for novelty in answer.rows.drift:
            sight = (answer.fetched_at, answer.run_id)
            first[novelty] = min(sight, first.get(novelty, sight))
    if not first:
        return
    known = {
        Drift(row.path, row.json_type): (row.first_seen_at, row.first_run_id)
        for row in _drift_rows(connection, list(first))
    }
    fresh = [
        {
            "path": novelty.path,
            "json_type": novelty.json_type,
            "first_run_id": run_id,
            "first_seen_at": seen_at,
        }
        for novelty, (seen_at, run_id) in sorted(first.items())
        if novelty not in known or (seen_at, run_id) < known[novelty]
    ]
    if fresh:
        insert = bulk.upsert_into(connection, drift)
        given, kept = insert.excluded, drift.c
        # As Python compares texts; PostgreSQL would go by the language of the database.
        by_code_point = "C" if connection.dialect.name == "postgresql" else "BINARY"
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=[kept.path, kept.json_type],
                set_={"first_run_id": given.first_run_id, "first_seen_at": given.first_seen_at},
                where=tuple_(given.first_seen_at, given.first_run_id.collate(by_code_point))
                < tuple_(kept.first_seen_at, kept.first_run_id),
            ),
            fresh,
        )


def _drift_rows(connection: Connection, novelties: Sequence[Drift]) -> list[Row[Any]]:
    rows: list[Row[Any]] = []
    for start in range(0, len(novelties), 500):
        paths = {novelty.path for novelty in novelties[start : start + 500]}
        rows += connection.execute(select(drift).where(drift.c.path.in_(paths)))
    return rows


def mark_gone(connection: Connection, run_ids: Sequence[str], now: datetime) -> None:
    """Note when the API first denied having runs that are archived; their rows stay."""
    connection.execute(
        update(runs).where(runs.c.run_id.in_(run_ids), runs.c.gone_at.is_(None)).values(gone_at=now)
    )


def unmark_gone(connection: Connection, run_ids: Sequence[str]) -> None:
    """Take the note back for runs that the API has again."""
    connection.execute(
        update(runs)
        .where(runs.c.run_id.in_(run_ids), runs.c.gone_at.is_not(None))
        .values(gone_at=None)
    )


def reject(connection: Connection, rejected: Sequence[Reject]) -> None:
    """Keep what could not be accepted; the same bad answer of the same run once."""
    if rejected:
        connection.execute(
            bulk.upsert_into(connection, rejects).on_conflict_do_nothing(),
            [{"id": _reject_id(each), **each._asdict()} for each in rejected],
        )


def _reject_id(rejected: Reject) -> str:
    key = f"{rejected.run_id}\n{rejected.sha256}\n{rejected.http_status}"
    return hashlib.sha256(key.encode()).hexdigest()[:32]
