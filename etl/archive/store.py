"""Store answers in the tables, and keep the content that they replace as history.

The caller owns the transaction and holds the runs' leases, so that the answers of one run are
stored one after another, in the order in which they were fetched.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, Table, and_, delete, exists, func, select

from etl.answers.outcome import Answer
from etl.answers.payload import OPEN_STATUS
from etl.answers.rows import COUNTERS, Row
from etl.archive import new_plans
from etl.archive.archived_runs import ArchivedRun, read_archived
from etl.archive.history import (
    LedgerFields,
    PreviousState,
    Revision,
    RunOutcome,
    build_outcome_row,
    build_revision_row,
    build_run_row,
    build_warning_rows,
    derive_outcome,
    find_differing_tests,
    find_status_changes,
    name_application,
)
from etl.archive.new_plans import NewOutcome
from etl.archive.pairing import TestContent, read_tests
from etl.archive.payload_batches import read_history
from etl.archive.schema_drift import record_drift
from etl.archive.waits import find_opened_at, trace_open
from etl.config.settings import Rules
from etl.db import bulk
from etl.db.schema import (
    IS_CURRENT,
    among,
    counts,
    environment_combinations,
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
from etl.derived.first_runs import FirstRun, insert_aggregates
from etl.derived.identity_rules import IdentityRules, lock_identities_shared
from etl.derived.marks import DirtyMark, add_marks
from etl.derived.stored_series import write_rows_of_only_runs
from etl.ledger.leases import clear_gone


class StoredAnswer(NamedTuple):
    """The effect of an answer: a new run, changed content, or neither.

    `archived` is the state of the run in the archive afterwards.
    """

    is_new: bool
    is_changed: bool
    archived: ArchivedRun


class _Change(NamedTuple):
    """An answer with new content: the run before it, and the revision that it opens."""

    answer: Answer
    before: ArchivedRun | None
    opened: Revision


def store_answers(
    connection: Connection, answers: Sequence[Answer], rules: Rules
) -> dict[str, StoredAnswer]:
    """Store `answers`, at most one a run, and return their effects by run ID.

    The same content again is a no-op; other content opens a new revision, and marks the
    aggregates that it changes. Those of a plan's first run are computed by `rules` and inserted.

    Locks, in this order: the test-identity rules (`lock_identities_shared`), then the plans that
    have no run yet, or whose only run changes (`new_plans.select_only_runs`), then names; the runs'
    rows in the ledger are locked by the caller before.
    """
    if not answers:
        return {}
    before = read_archived(connection, [answer.run_id for answer in answers])
    changes = [
        _Change(answer, known, _open_revision(answer, known))
        for answer in answers
        if not (known := before.get(answer.run_id)) or known.content_hash != answer.content_hash
    ]
    replaced = [(change.before, change.opened) for change in changes if change.before]
    marks = _mark_replaced(connection, [change for change in changes if change.before])
    derived = _derive_outcomes(connection, changes, {mark.variant_id for mark in marks})
    status_rows = _close_revisions(connection, replaced)
    open_runs = _read_open_runs(connection, changes)
    _insert_contents(connection, changes)
    first, opened_marks = _insert_outcomes(connection, changes, open_runs, derived)
    insert_aggregates(connection, first, rules)
    add_marks(connection, marks | opened_marks)
    bulk.insert(connection, status_changes, status_rows)
    record_drift(connection, [change.answer for change in changes])
    fetched_at = {answer.run_id: answer.fetched_at for answer in answers}
    clear_gone(connection, {each: fetched_at[each] for each in before if before[each].gone_at})
    unchanged = {
        run_id: StoredAnswer(is_new=False, is_changed=False, archived=known._replace(gone_at=None))
        for run_id, known in before.items()
    }
    return unchanged | {
        change.answer.run_id: StoredAnswer(
            is_new=change.before is None,
            is_changed=change.before is not None,
            archived=_describe_archived(change),
        )
        for change in changes
    }


def _describe_archived(change: _Change) -> ArchivedRun:
    """Return what `read_archived` would return after a change."""
    known, opened, run = change.before, change.opened, change.opened.rows.run
    return ArchivedRun(
        change.answer.run_id,
        opened.number,
        opened.content_hash,
        run.status,
        run.started_at,
        run.ended_at,
        archived_at=known.archived_at if known else opened.observed_at,
        changed_at=opened.observed_at,
        gone_at=None,
        context_changed_at=known.context_changed_at if known else None,
        last_fetched_at=known.last_fetched_at if known else None,
    )


def _open_revision(answer: Answer, known: ArchivedRun | None) -> Revision:
    """Return the revision that an answer opens, while it is the current one."""
    observed_at = answer.fetched_at
    if known is not None and known.last_fetched_at is not None:
        # Never before the previous fetch, even if the clock was set back.
        observed_at = max(observed_at, known.last_fetched_at)
    revision = known.revision + 1 if known else 1
    return Revision(revision, observed_at, None, answer.content_hash, answer.rows)


def _close_revisions(
    connection: Connection, replaced: Sequence[tuple[ArchivedRun, Revision]]
) -> list[Row]:
    """Close the current revisions, keep the tests that differ, and delete the replaced rows.

    Returns the rows of `status_changes`, which refer to revisions that are not inserted yet.
    """
    if not replaced:
        return []
    run_ids = [known.run_id for known, _ in replaced]
    ends, last_seen, superseded, kept, status_rows = [], [], [], [], []
    old_tests = _read_current_tests(connection, run_ids)
    open_since = _read_open_since(connection, replaced, old_tests)
    for known, opened in replaced:
        run_id = known.run_id
        seen_at = known.last_fetched_at or opened.observed_at
        ends.append((seen_at, opened.observed_at, run_id, known.revision))
        last_seen.append((seen_at, run_id, known.revision))
        superseded.append((opened.observed_at, run_id, known.revision))
        old = old_tests.get(run_id, [])
        kept += find_differing_tests(run_id, known.revision, old, read_tests(opened.rows))
        previous = PreviousState(
            known.status, known.changed_at, seen_at, known.ended_at, old, open_since.get(run_id, {})
        )
        status_rows += find_status_changes(run_id, previous, opened)
    bulk.update(connection, revisions, ("last_seen_at", "superseded_at"), ends)
    bulk.update(connection, payloads, ("last_seen_at",), last_seen)
    bulk.update(connection, outcomes, ("superseded_at",), superseded)
    bulk.insert(connection, test_revisions, kept)
    for table in (counts, tests, environments):
        connection.execute(delete(table).where(among(table.c.run_id, run_ids)))
    return status_rows


def _read_current_tests(
    connection: Connection, run_ids: Sequence[str]
) -> dict[str, list[TestContent]]:
    """Return the tests of runs, in the order of the answer."""
    query = (
        select(
            tests.c.run_id,
            tests.c.position,
            tests.c.test_id,
            tests.c.name,
            tests.c.type,
            tests.c.status,
            *[counts.c[name] for name in COUNTERS],
        )
        .join(
            counts,
            and_(counts.c.run_id == tests.c.run_id, counts.c.test_position == tests.c.position),
        )
        .where(among(tests.c.run_id, run_ids))
        .order_by(tests.c.run_id, tests.c.position)
    )
    found: dict[str, list[TestContent]] = {}
    for run_id, position, test_id, name, kind, status, *counters in connection.execute(query):
        test = TestContent(position, test_id, name, kind, status, tuple(counters))
        found.setdefault(run_id, []).append(test)
    return found


def _read_open_since(
    connection: Connection,
    replaced: Sequence[tuple[ArchivedRun, Revision]],
    old_tests: Mapping[str, Sequence[TestContent]],
) -> dict[str, Mapping[int, datetime]]:
    """Return when the open tests of runs were first seen open, by run ID and position.

    Reads the earlier payloads, of runs without an end whose tests may have been open in them.
    """
    found: dict[str, Mapping[int, datetime]] = {}
    for known, _ in replaced:
        statuses = [known.status, *(test.status for test in old_tests.get(known.run_id, []))]
        if known.ended_at is None and known.revision > 1 and OPEN_STATUS in statuses:
            for since in trace_open(read_history(connection, known.run_id)):
                found[known.run_id] = since
    return found


def _read_open_runs(connection: Connection, changes: Sequence[_Change]) -> dict[str, datetime]:
    """Return since when runs have had an open test, of those changed ones whose end is unknown."""
    run_ids = [
        each.answer.run_id for each in changes if each.before and not each.answer.rows.run.ended_at
    ]
    if not run_ids:
        return {}
    earlier = outcomes.alias()
    is_between = and_(
        earlier.c.run_id == outcomes.c.run_id,
        earlier.c.revision >= outcomes.c.revision,
        earlier.c.tests_unresolved == 0,
    )
    first = func.min(outcomes.c.observed_at, type_=outcomes.c.observed_at.type)
    query = select(outcomes.c.run_id, first).where(
        among(outcomes.c.run_id, run_ids), ~exists().where(is_between)
    )
    return dict(connection.execute(query.group_by(outcomes.c.run_id)).all())


def _find_opened_at(change: _Change, open_runs: Mapping[str, datetime]) -> datetime | None:
    """Return since when a run waits for a decision by its new content, None if it does not."""
    opened = change.opened
    since = open_runs.get(change.answer.run_id)
    return find_opened_at(opened.observed_at, opened.rows, since)


def _mark_replaced(connection: Connection, changes: Sequence[_Change]) -> set[DirtyMark]:
    """Return the marks of the variants that runs are of before their changes."""
    opened = {change.answer.run_id: change.opened.number for change in changes}
    query = select(outcomes.c.run_id, outcomes.c.variant_id)
    current = query.where(among(outcomes.c.run_id, opened), IS_CURRENT)
    rows = connection.execute(current).all() if opened else []
    return {DirtyMark(variant_id, run_id, opened[run_id]) for run_id, variant_id in rows}


def _insert_contents(connection: Connection, changes: Sequence[_Change]) -> None:
    """Insert the new content: run, children, revision, payload and warnings."""
    bulk.insert(connection, runs, [_build_run_row(each) for each in changes if not each.before])
    _update_runs(connection, [_build_run_row(each) for each in changes if each.before])
    rows = [change.answer.rows for change in changes]
    bulk.insert(connection, environments, [row for each in rows for row in each.environments])
    bulk.insert(connection, tests, [row for each in rows for row in each.tests])
    bulk.insert(connection, counts, [row for each in rows for row in each.counts])
    opened = [(change.answer.run_id, change.opened) for change in changes]
    bulk.insert(connection, revisions, [build_revision_row(*each, None) for each in opened])
    bulk.insert(connection, payloads, [_build_payload_row(change) for change in changes])
    warning_rows = [row for each in opened for row in build_warning_rows(*each)]
    bulk.insert(connection, warnings, warning_rows)


class _Derived(NamedTuple):
    """The outcomes of changes, those that are the only run of a new plan, and the rules."""

    outcomes: list[NewOutcome]
    only: list[NewOutcome]
    rules: IdentityRules


def _derive_outcomes(
    connection: Connection, changes: Sequence[_Change], replaced_variants: Collection[str]
) -> _Derived:
    """Return the outcomes of changes, before anything of `replaced_variants` is changed.

    Series that follow from the tests of a variant's only run get rows of their own now.
    """
    answers = [change.answer for change in changes]
    lock_identities_shared(connection, {name_application(a.source, a.rows) for a in answers})
    rules = IdentityRules(connection)
    derived = [
        NewOutcome(
            each.answer,
            each.before is None,
            derive_outcome(each.answer.source, each.opened, rules.ids_until, each.answer.named),
        )
        for each in changes
    ]
    only = new_plans.select_only_runs(connection, derived, replaced_variants)
    write_rows_of_only_runs(connection, replaced_variants)
    return _Derived(derived, only, rules)


def _insert_outcomes(
    connection: Connection,
    changes: Sequence[_Change],
    open_runs: Mapping[str, datetime],
    derived: _Derived,
) -> tuple[list[FirstRun], set[DirtyMark]]:
    """Insert the outcomes of new contents, and return the first runs of plans, and marks.

    The other variants are marked: those of first runs are derived from the answer in memory.
    """
    _insert_names(connection, [each.outcome for each in derived.outcomes])
    outcome_rows = [
        build_outcome_row(
            each.answer.run_id, each.opened, None, _find_opened_at(each, open_runs), new.outcome
        )
        for each, new in zip(changes, derived.outcomes, strict=True)
    ]
    bulk.insert(connection, outcomes, outcome_rows)
    first = new_plans.build_first_runs(connection, derived.only, derived.rules)
    first_ids = {each.run.run_id for each in first}
    return first, {
        DirtyMark(new.outcome.variant[0], each.answer.run_id, each.opened.number)
        for each, new in zip(changes, derived.outcomes, strict=True)
        if each.answer.run_id not in first_ids
    }


def _build_run_row(change: _Change) -> Row:
    context_changed_at = change.before.context_changed_at if change.before else None
    fields = LedgerFields(change.answer.run_id, change.answer.source, None, context_changed_at)
    archived_at = change.before.archived_at if change.before else change.opened.observed_at
    return build_run_row(fields, change.opened, archived_at)


def _insert_names(connection: Connection, run_outcomes: Sequence[RunOutcome]) -> None:
    """Insert the plan variants and rosters that outcomes refer to.

    A variant that exists has its combination of environments.
    """
    missing = _insert_missing(connection, plan_variants, [each.variant for each in run_outcomes])
    combinations = [each.combination for each in run_outcomes if each.variant[0] in missing]
    _insert_missing(connection, environment_combinations, combinations)
    _insert_missing(connection, rosters, [each.roster for each in run_outcomes])


def _insert_missing(connection: Connection, table: Table, rows: Sequence[Row]) -> list[str]:
    """Insert the rows whose keys do not exist yet, and lock the others until commit.

    Returns the keys that were missing.

    Sorted by key: an insert waits for a concurrent one with the same key until that commits, so
    two transactions that insert several keys in different orders would wait for each other. The
    lock is that of a foreign key: nobody deletes a name before our rows refer to it.
    """
    if not rows:
        return []
    by_key = {row[0]: row for row in rows}
    [key] = table.primary_key.columns
    query = select(key).where(among(key, by_key)).order_by(key)
    known = set(connection.scalars(query.with_for_update(read=True, key_share=True)).all())
    missing = sorted(by_key.keys() - known)
    bulk.insert_missing(connection, table, [by_key[key] for key in missing])
    return missing


def _update_runs(connection: Connection, rows: Sequence[Row]) -> None:
    """Overwrite rows of `runs`, except their key, source and archived_at."""
    names = [column.name for column in runs.columns]
    kept = {"run_id", "source", "archived_at"}
    chosen = [index for index, name in enumerate(names) if name not in kept]
    values = [(*(row[index] for index in chosen), row[0]) for row in rows]
    bulk.update(connection, runs, [names[index] for index in chosen], values)


def _build_payload_row(change: _Change) -> Row:
    run_id, opened = change.answer.run_id, change.opened
    return (run_id, opened.number, *change.answer.body, opened.observed_at, None)
