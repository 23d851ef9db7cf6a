"""Put answers into the tables, and keep what they replace as history.

The caller owns the transaction, and holds the runs' leases: of one run, answers come here one
after another, the later one fetched later.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, Table, and_, delete, select, update

from etl.answers.outcome import Answer
from etl.answers.rows import COUNTERS, Rows
from etl.archive.archived_runs import Archived, archived
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
from etl.archive.schema_drift import put_drift
from etl.db import bulk
from etl.db.schema import (
    among,
    counts,
    environments,
    outcomes,
    payloads,
    plan_variants,
    revisions,
    rosters,
    runs,
    status_changes,
    test_revisions,
    tests,
    warnings,
)
from etl.derived import refresh
from etl.derived.identity_rules import lock_identities_shared, read_id_keyed
from etl.derived.plans import Plan, build_plan


class Saved(NamedTuple):
    """How an answer changed the archive: `is_new`, or of another content, or neither.

    `archived` is what the archive has of the run now.
    """

    is_new: bool
    is_changed: bool
    archived: Archived


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
    closed = refresh.read_contributions(connection, [answer.run_id for answer in changed])
    status_rows = _supersede(connection, changed, stretches, before)
    outcomes_now = _insert_new(connection, [*new, *changed], stretches, before)
    bulk.insert(connection, status_changes, status_rows)
    put_drift(connection, new + changed)
    refresh.apply_contributions(connection, [_noted(each) for each in outcomes_now], closed)
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
    lock_identities_shared(connection, {application_of(each) for each in rows})
    id_keyed = read_id_keyed(connection)
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


def _noted(outcome: Outcome) -> refresh.Contribution:
    variant_id, _, application, plan, _ = outcome.variant
    return refresh.Contribution(
        Plan(application, plan), variant_id, outcome.roster[0], outcome.period
    )


def application_of(rows: Rows) -> str:
    """Return the application of an answer, named as identities and reports name it."""
    return build_plan(rows.run.application, rows.run.name).application


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
