"""Put answers into the tables, and keep what they replace as history.

The caller owns the transaction, and holds the runs' leases: of one run, answers come here one
after another, the later one fetched later.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, and_, delete, select, text, tuple_, update

from etl.answers.outcome import Answer, Reject
from etl.answers.rows import Drift, Rows
from etl.archive.history import (
    Before,
    Outcome,
    Owner,
    Row,
    Stretch,
    TestState,
    changed_statuses,
    differing_tests,
    outcome_of,
    outcome_row,
    revision_row,
    run_row,
    test_states,
    warning_rows,
)
from etl.db import bulk
from etl.db.schema import (
    COUNTERS,
    among,
    counts,
    drift,
    environments,
    identities,
    outcomes,
    payloads,
    plan_variants,
    rejects,
    revisions,
    rosters,
    runs,
    status_changes,
    test_revisions,
    tests,
    tracked_runs,
    warnings,
)
from etl.derived import refresh
from etl.derived.plans import Plan, as_plan
from etl.ledger.lifecycle import Seen


class Archived(NamedTuple):
    """What the archive has of a run."""

    run_id: str
    revision: int
    content_hash: str
    status: str | None
    started_at: datetime | None
    ended_at: datetime | None
    archived_at: datetime
    changed_at: datetime
    gone_at: datetime | None
    last_fetched_at: datetime | None

    def seen(self, first_tracked_at: datetime) -> Seen:
        """Return what `lifecycle` decides by."""
        return _seen(self, first_tracked_at)


def _seen(run: Any, first_tracked_at: datetime) -> Seen:
    """Return what a row of `runs` tells `lifecycle`.

    Times from the answer count only as far as they can be: not after we saw what they tell.
    """
    over_since = min(run.ended_at or run.changed_at, run.changed_at)
    return Seen(
        run.status,
        began_at=min(run.started_at or first_tracked_at, run.changed_at),
        over_since=over_since,
        changed_at=run.changed_at if run.revision > 1 else over_since,
    )


class Saved(NamedTuple):
    """How an answer changed the archive: `is_new`, or of another content, or neither.

    `archived` is what the archive has of the run now.
    """

    is_new: bool
    is_changed: bool
    archived: Archived


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
            runs.c.archived_at,
            runs.c.changed_at,
            runs.c.gone_at,
            tracked_runs.c.last_fetched_at,
        )
        .join(tracked_runs, tracked_runs.c.run_id == runs.c.run_id)
        .where(among(runs.c.run_id, run_ids))
    )
    return {row.run_id: Archived._make(row) for row in connection.execute(query).all()}


class Known(NamedTuple):
    """What an answer of an archived run is held against: the newest one's content and bytes."""

    seen: Seen
    fingerprint: str
    """The sha256 of its payload: the same bytes again are no news."""


def known(connection: Connection, first_tracked_at: Mapping[str, datetime]) -> dict[str, Known]:
    """Return the newest answers of those of the runs that were archived before, by run ID."""
    query = (
        select(
            runs.c.run_id,
            runs.c.revision,
            runs.c.status,
            runs.c.started_at,
            runs.c.ended_at,
            runs.c.changed_at,
            payloads.c.sha256,
        )
        .join(
            payloads,
            and_(payloads.c.run_id == runs.c.run_id, payloads.c.revision == runs.c.revision),
        )
        .where(among(runs.c.run_id, first_tracked_at))
    )
    return {
        row.run_id: Known(_seen(row, first_tracked_at[row.run_id]), row.sha256)
        for row in connection.execute(query).all()
    }


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
    stretches = {
        answer.run_id: _stretch(answer, before.get(answer.run_id)) for answer in new + changed
    }
    closed = refresh.noted(connection, [answer.run_id for answer in changed])
    status_rows = _supersede(connection, changed, stretches, before)
    outcomes_now = _insert_new(connection, [*new, *changed], stretches, before)
    bulk.insert(connection, status_changes, status_rows)
    _put_drift(connection, new + changed)
    refresh.note(connection, [_noted(each) for each in outcomes_now], closed)
    if back := [run_id for run_id, known in before.items() if known.gone_at]:
        unmark_gone(connection, back)
    unchanged = {
        run_id: Saved(is_new=False, is_changed=False, archived=known._replace(gone_at=None))
        for run_id, known in before.items()
        if run_id not in stretches
    }
    return unchanged | {
        run_id: Saved(
            is_new=run_id not in before,
            is_changed=run_id in before,
            archived=_archived_now(run_id, opened, before.get(run_id)),
        )
        for run_id, opened in stretches.items()
    }


def _archived_now(run_id: str, opened: Stretch, known: Archived | None) -> Archived:
    """Return what `archived` would, after a stretch was opened."""
    run = opened.rows.run
    return Archived(
        run_id,
        opened.revision,
        opened.content_hash,
        run.status,
        run.started_at,
        run.ended_at,
        archived_at=known.archived_at if known else opened.observed_at,
        changed_at=opened.observed_at,
        gone_at=None,
        last_fetched_at=known.last_fetched_at if known else None,
    )


def _stretch(answer: Answer, known: Archived | None) -> Stretch:
    """Return the stretch that an answer opens, as it is while it is the run's current one."""
    observed_at = answer.fetched_at
    if known is not None and known.last_fetched_at is not None:
        # Never before the last look, whatever the clock says.
        observed_at = max(observed_at, known.last_fetched_at)
    revision = known.revision + 1 if known else 1
    return Stretch(revision, observed_at, None, answer.content_hash, answer.rows)


def _supersede(
    connection: Connection,
    changed: Sequence[Answer],
    stretches: Mapping[str, Stretch],
    before: Mapping[str, Archived],
) -> list[Row]:
    """End the open stretches, keep the tests that differ, and clear the way for the new rows.

    Returns rows of `status_changes`, which refer to the revisions that are still to come.
    """
    if not changed:
        return []
    run_ids = [answer.run_id for answer in changed]
    ends, last_seen, superseded, kept, status_rows = [], [], [], [], []
    old_tests = _current_tests(connection, run_ids)
    for run_id in run_ids:
        known, opened = before[run_id], stretches[run_id]
        seen_at = known.last_fetched_at or opened.observed_at
        ends.append((seen_at, opened.observed_at, run_id, known.revision))
        last_seen.append((seen_at, run_id, known.revision))
        superseded.append((opened.observed_at, run_id, known.revision))
        old, new = old_tests.get(run_id, {}), test_states(opened.rows)
        kept += differing_tests(run_id, known.revision, old, new)
        opened_at = known.ended_at or known.changed_at
        before_change = Before(known.status, opened_at, seen_at, old)
        status_rows += changed_statuses(run_id, before_change, opened)
    bulk.update(connection, revisions, ("last_seen_at", "superseded_at"), ends)
    bulk.update(connection, payloads, ("last_seen_at",), last_seen)
    bulk.update(connection, outcomes, ("superseded_at",), superseded)
    bulk.insert(connection, test_revisions, kept)
    for table in (counts, tests, environments):
        connection.execute(delete(table).where(among(table.c.run_id, run_ids)))
    return status_rows


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
        .where(among(tests.c.run_id, run_ids))
    )
    states: dict[str, dict[int, TestState]] = {}
    for run_id, position, *state in connection.execute(query):
        states.setdefault(run_id, {})[position] = tuple(state)
    return states


def _insert_new(
    connection: Connection,
    answers: Sequence[Answer],
    stretches: Mapping[str, Stretch],
    before: Mapping[str, Archived],
) -> list[Outcome]:
    """Write what the answers say now: run, children, the open stretch and its payload."""
    run_rows = []
    for answer in answers:
        opened, known = stretches[answer.run_id], before.get(answer.run_id)
        archived_at = known.archived_at if known else opened.observed_at
        run_rows.append(run_row(Owner(answer.run_id, answer.source, None), opened, archived_at))
    is_known = [row[0] in before for row in run_rows]
    bulk.insert(
        connection, runs, [row for row, known in zip(run_rows, is_known, strict=True) if not known]
    )
    _update_runs(connection, [row for row, known in zip(run_rows, is_known, strict=True) if known])
    rows = [answer.rows for answer in answers]
    bulk.insert(connection, environments, [row for each in rows for row in each.environments])
    bulk.insert(connection, tests, [row for each in rows for row in each.tests])
    bulk.insert(connection, counts, [row for each in rows for row in each.counts])
    opened_by = [(answer, stretches[answer.run_id]) for answer in answers]
    bulk.insert(
        connection,
        revisions,
        [revision_row(answer.run_id, opened, None) for answer, opened in opened_by],
    )
    rely_on_identities(connection, {application_of(each) for each in rows})
    id_keyed = id_keyed_applications(connection)
    opened_outcomes = [outcome_of(each, id_keyed) for each in rows]
    _put_names(connection, opened_outcomes)
    bulk.insert(
        connection,
        outcomes,
        [
            outcome_row(answer.run_id, opened, None, outcome)
            for (answer, opened), outcome in zip(opened_by, opened_outcomes, strict=True)
        ],
    )
    bulk.insert(connection, payloads, [_payload_row(*pair) for pair in opened_by])
    bulk.insert(
        connection,
        warnings,
        [row for answer, opened in opened_by for row in warning_rows(answer.run_id, opened)],
    )
    return opened_outcomes


def _noted(outcome: Outcome) -> refresh.Noted:
    variant_id, _, application, plan, _ = outcome.variant
    return refresh.Noted(Plan(application, plan), variant_id, outcome.roster[0], outcome.period)


def application_of(rows: Rows) -> str:
    """Return the application of an answer, named as identities and reports name it."""
    return as_plan(rows.run.application, rows.run.name).application


def rely_on_identities(connection: Connection, applications: Collection[str]) -> None:
    """Have what tests of these applications are known by stay as it is until the commit."""
    _lock(connection, "pg_advisory_xact_lock_shared", applications)


def change_identity(connection: Connection, application: str) -> None:
    """Wait until all is committed that relies on what an application's tests are known by.

    Who stores runs after our commit sees what we decide, and what was stored before it we see.
    """
    _lock(connection, "pg_advisory_xact_lock", [application])


def _lock(connection: Connection, function: str, applications: Collection[str]) -> None:
    if connection.dialect.name == "postgresql" and applications:  # SQLite has one writer at a time
        names = "unnest(CAST(:names AS text[])) AS name"
        statement = f"SELECT {function}(hashtextextended('identity ' || name, 0)) FROM {names}"  # noqa: S608  our functions
        connection.execute(text(statement), {"names": sorted(applications)})


def id_keyed_applications(connection: Connection) -> frozenset[str]:
    """Return the applications whose tests keep their ids from run to run."""
    query = select(identities.c.application).where(identities.c.key_kind == "id")
    return frozenset(connection.scalars(query))


def _put_names(connection: Connection, opened: Sequence[Outcome]) -> None:
    """Keep what `outcomes` refers to: plans with their environments, and lists of tests."""
    _add_missing(connection, plan_variants, {each.variant[0]: each.variant for each in opened})
    _add_missing(connection, rosters, {each.roster[0]: each.roster for each in opened})


def _add_missing(connection: Connection, table: Table, rows: Mapping[str, Row]) -> None:
    """Add the rows whose keys are not there, in an order that lets nobody wait in a circle."""
    [key] = table.primary_key.columns
    known = set(connection.scalars(select(key).where(among(key, rows))).all())
    bulk.add_missing(connection, table, [rows[found] for found in sorted(rows.keys() - known)])


def _update_runs(connection: Connection, rows: Sequence[Row]) -> None:
    """Write rows of `runs` over those that are there, but for key, source and archived_at."""
    names = [column.name for column in runs.columns]
    kept = {"run_id", "source", "archived_at"}
    chosen = [index for index, name in enumerate(names) if name not in kept]
    values = [(*(row[index] for index in chosen), row[0]) for row in rows]
    bulk.update(connection, runs, [names[index] for index in chosen], values)


def _payload_row(answer: Answer, opened: Stretch) -> Row:
    body = answer.body
    at = opened.observed_at
    return (
        answer.run_id,
        opened.revision,
        body.compressed,
        body.encoding,
        body.size,
        body.sha256,
        at,
        None,
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


def _drift_rows(connection: Connection, novelties: Sequence[Drift]) -> list[Any]:
    rows: list[Any] = []
    for start in range(0, len(novelties), 500):
        paths = {novelty.path for novelty in novelties[start : start + 500]}
        rows += connection.execute(select(drift).where(drift.c.path.in_(paths)))
    return rows


def mark_gone(connection: Connection, run_ids: Sequence[str], now: datetime) -> None:
    """Note when the API first denied having runs that are archived; their rows stay."""
    connection.execute(
        update(runs)
        .where(among(runs.c.run_id, run_ids), runs.c.gone_at.is_(None))
        .values(gone_at=now)
    )


def unmark_gone(connection: Connection, run_ids: Sequence[str]) -> None:
    """Take the note back for runs that the API has again."""
    connection.execute(
        update(runs)
        .where(among(runs.c.run_id, run_ids), runs.c.gone_at.is_not(None))
        .values(gone_at=None)
    )


def reject(connection: Connection, rejected: Sequence[Reject]) -> None:
    """Keep what could not be accepted; the same bad answer of the same run once."""
    if rejected:
        connection.execute(
            bulk.upsert_into(connection, rejects).on_conflict_do_nothing(),
            [_reject_row(each) for each in rejected],
        )


def _reject_row(rejected: Reject) -> dict[str, Any]:
    return {
        "id": _reject_id(rejected),
        "run_id": rejected.run_id,
        "fetched_at": rejected.fetched_at,
        "http_status": rejected.http_status,
        "reason": rejected.message,
        "body": rejected.body,
        "sha256": rejected.sha256,
    }


def _reject_id(rejected: Reject) -> str:
    key = f"{rejected.run_id}\n{rejected.sha256}\n{rejected.http_status}"
    return hashlib.sha256(key.encode()).hexdigest()[:32]
