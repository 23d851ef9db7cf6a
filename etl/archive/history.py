"""The derived rows of a run, from all its revisions in order.

Pure: they follow from the payloads and the times at which these were seen. `store` adds one
revision at a time by these rules; `replay` and `verify` apply them to all.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

from etl.answers.payload import OPEN_STATUS
from etl.answers.rows import Row, Rows
from etl.answers.test_names import NamedTests, hash_roster
from etl.archive.pairing import ABSENT_TEST, TestContent, TestPair, pair_tests, read_tests
from etl.archive.waits import trace_open, trace_open_runs
from etl.derived.metrics import (
    MILLISECOND,
    Counts,
    compute_rates,
    count_letters,
    encode_strip,
    read_checks,
)
from etl.derived.plans import Application, Plan, build_plan, environments_text, hash_parts

DERIVED_TABLES = (
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
"""The tables derived from payloads; each stands after the tables that it refers to."""

NEVER = datetime.min.replace(tzinfo=UTC)
CHANGED, ADDED, LEFT = "changed", "added", "left"
"""The kinds of rows in `status_changes`."""


class Revision(NamedTuple):
    """The content of a run during one span of time; `last_seen_at` is None while it is current."""

    number: int
    observed_at: datetime
    last_seen_at: datetime | None
    content_hash: str
    rows: Rows


class LedgerFields(NamedTuple):
    """The columns of `runs` that come from the ledger, not from a payload."""

    run_id: str
    source: str
    gone_at: datetime | None
    context_changed_at: datetime | None
    """When a label or gone_at last changed after the run was archived."""


def derive_rows(
    fields: LedgerFields, revisions: Sequence[Revision], ids_until: Mapping[Application, datetime]
) -> dict[str, list[Row]]:
    """Return all derived rows of a run by table, each in the order of its table's columns.

    `ids_until` has the times until which tests are identified by id, by application.
    """
    first, last = revisions[0], revisions[-1]
    pairs = list(pairwise(revisions))
    answers = [(each.observed_at, each.rows) for each in revisions]
    ends = [*(new.observed_at for _, new in pairs), None]
    return {
        "runs": [build_run_row(fields, last, first.observed_at)],
        "environments": [tuple(row) for row in last.rows.environments],
        "tests": [tuple(row) for row in last.rows.tests],
        "counts": [tuple(row) for row in last.rows.counts],
        "revisions": [
            *(build_revision_row(fields.run_id, old, new.observed_at) for old, new in pairs),
            build_revision_row(fields.run_id, last, None),
        ],
        "test_revisions": [
            row
            for old, new in pairs
            for row in find_differing_tests(
                fields.run_id, old.number, read_tests(old.rows), read_tests(new.rows)
            )
        ],
        "warnings": [
            row for revision in revisions for row in build_warning_rows(fields.run_id, revision)
        ],
        "outcomes": [
            build_outcome_row(
                fields.run_id,
                revision,
                superseded_at,
                opened_at,
                derive_outcome(fields.source, revision, ids_until),
            )
            for revision, superseded_at, opened_at in zip(
                revisions, ends, trace_open_runs(answers), strict=True
            )
        ],
        "status_changes": [
            row
            for (old, new), since in zip(pairs, trace_open(answers), strict=False)
            for row in find_status_changes(fields.run_id, describe_previous(old, since), new)
        ],
    }


def build_run_row(fields: LedgerFields, current: Revision, archived_at: datetime) -> Row:
    """Return the row of `runs`."""
    run = current.rows.run
    return (
        fields.run_id,
        fields.source,
        *run[:-1],
        current.number,
        current.content_hash,
        archived_at,
        current.observed_at,
        max(current.observed_at, fields.context_changed_at or current.observed_at),
        fields.gone_at,
        run.extra,
    )


def build_revision_row(run_id: str, revision: Revision, superseded_at: datetime | None) -> Row:
    """Return the row of `revisions`."""
    run, own = revision.rows.run, revision.rows.counts[0]
    return (
        run_id,
        revision.number,
        revision.observed_at,
        revision.last_seen_at,
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
        revision.content_hash,
    )


def build_warning_rows(run_id: str, revision: Revision) -> list[Row]:
    """Return the rows of `warnings`."""
    return [(run_id, revision.number, *warned) for warned in revision.rows.warnings]


def find_differing_tests(
    run_id: str, revision: int, old: Sequence[TestContent], new: Sequence[TestContent]
) -> list[Row]:
    """Return the rows of `test_revisions` that keep the tests of `old` that differ in `new`.

    Compares them by position. A test that only `new` has gets a row too: it was `absent` from
    `revision`.
    """
    before, after = ({test.position: test.kept for test in tests} for tests in (old, new))
    return [
        (
            run_id,
            revision,
            position,
            *before.get(position, ABSENT_TEST.kept),
            position not in before,
        )
        for position in sorted(before.keys() | after.keys())
        if before.get(position) != after.get(position)
    ]


# --- outcomes -------------------------------------------------------------------------------


@lru_cache(maxsize=256)  # plans recur
def build_variant_row(plan: Plan, environment_signature: str) -> Row:
    """Return the row of `plan_variants` for a plan under one set of environments."""
    variant_id = hash_parts([*plan, environment_signature])
    return (variant_id, plan.plan_id, *plan, environment_signature)


@lru_cache(maxsize=256)  # sets of environments recur
def build_combination_row(environment_signature: str) -> Row:
    """Return the row of `environment_combinations`: what all its environments have in common."""
    environments = json.loads(environment_signature)
    shared = [
        values[0] if len(set(values)) == 1 else None for values in zip(*environments, strict=True)
    ] or [None] * 4
    text = environments_text(environment_signature)
    return (environment_signature, text, len(environments), *shared)


def build_roster_row(rows: Rows, *, with_ids: bool) -> tuple[str, str]:
    """Return the row of `rosters` for an answer's tests: its key and the tests as JSON."""
    return hash_roster(
        [(test.name, test.type, test.test_id) for test in rows.tests]
        if with_ids
        else [(test.name, test.type) for test in rows.tests]
    )


def name_application(source: str, rows: Rows) -> Application:
    """Return the application of an account's answer, as identities and reports name it."""
    return build_plan(source, rows.run.application, rows.run.name).owner


class RunOutcome(NamedTuple):
    """The results of an answer's tests: a letter for each (`strip`), and their counts.

    `variant` and `roster` are the rows of `plan_variants` and `rosters` that it refers to.
    """

    variant: Row
    roster: Row
    strip: str
    tests: Counts
    checks: Counts

    @property
    def combination(self) -> Row:
        """The row of `environment_combinations` that its variant refers to."""
        return build_combination_row(self.variant[-1])


def derive_outcome(
    source: str,
    revision: Revision,
    ids_until: Mapping[Application, datetime],
    named: NamedTests | None = None,
) -> RunOutcome:
    """Return the outcome of an answer of an account; `named` are its tests, if known by then."""
    rows = revision.rows
    plan = build_plan(source, rows.run.application, rows.run.name)
    with_ids = revision.observed_at < ids_until.get(plan.owner, NEVER)
    strip = encode_strip([test.status for test in rows.tests])
    checks = read_checks(rows.counts[0]._asdict())
    return RunOutcome(
        build_variant_row(plan, rows.run.environment_signature),
        named[:2] if named and not with_ids else build_roster_row(rows, with_ids=with_ids),
        strip,
        count_letters(strip),
        checks,
    )


def build_outcome_row(
    run_id: str,
    revision: Revision,
    superseded_at: datetime | None,
    opened_at: datetime | None,
    outcome: RunOutcome,
) -> Row:
    """Return the row of `outcomes`; `opened_at` is None if no test is open."""
    run, tests, checks = revision.rows.run, outcome.tests, outcome.checks
    return (
        run_id,
        revision.number,
        revision.observed_at,
        superseded_at,
        outcome.variant[0],
        outcome.roster[0],
        outcome.strip,
        run.status,
        run.started_at,
        run.started_on,
        run.ended_at,
        opened_at,
        run.duration_ms,
        *checks.in_column_order,
        compute_rates(checks).pass_rate,
        *tests.in_column_order,
        len(outcome.strip) - sum(tests),
        *compute_rates(tests),
    )


class PreviousState(NamedTuple):
    """The state of a run before a change.

    `open_since` has the times when its open tests were first seen so, by position, where they
    differ from `observed_at`; they count only if the run's end is unknown.
    """

    status: str | None
    observed_at: datetime
    last_seen_at: datetime
    ended_at: datetime | None
    tests: Sequence[TestContent]
    open_since: Mapping[int, datetime]


def describe_previous(revision: Revision, open_since: Mapping[int, datetime]) -> PreviousState:
    """Return the state of a run in a closed revision."""
    run = revision.rows.run
    return PreviousState(
        run.status,
        revision.observed_at,
        revision.last_seen_at or revision.observed_at,
        run.ended_at,
        read_tests(revision.rows),
        open_since,
    )


def find_status_changes(run_id: str, old: PreviousState, new: Revision) -> list[Row]:
    """Return a row of `status_changes` for the run and each of its tests whose status changed.

    An unresolved one was decided between `last_seen_at` and the moment when we saw the change
    (docs/REPORTS.md). A test that left or was added was not decided.
    """
    statuses = old.status, new.rows.run.status
    of_run = TestPair(*[ABSENT_TEST._replace(status=status) for status in statuses])
    pairs = [of_run, *pair_tests(old.tests, read_tests(new.rows))]
    rows = [_build_change_row(run_id, old, new, pair) for pair in pairs if pair.has_new_status]
    return sorted(rows, key=itemgetter(2, 3))


def _build_change_row(run_id: str, old: PreviousState, new: Revision, pair: TestPair) -> Row:
    before, after = pair.old or ABSENT_TEST, pair.new or ABSENT_TEST
    kind = ADDED if pair.old is None else LEFT if pair.new is None else CHANGED
    test = before if kind == LEFT else after
    is_decision = kind == CHANGED and before.status == OPEN_STATUS
    return (
        run_id,
        new.number,
        kind,
        test.position,
        test.name,
        before.status,
        after.status,
        old.last_seen_at,
        new.observed_at,
        *(_measure_wait(old, before.position, new.observed_at) if is_decision else (None,) * 3),
    )


def _measure_wait(
    old: PreviousState, position: int, decided_by: datetime
) -> tuple[datetime, int, int]:
    """Return since when a test waited, and the bounds of the time until its decision, in ms."""
    opened_at = old.ended_at or old.open_since.get(position, old.observed_at)
    bounds = (max(each - opened_at, timedelta(0)) for each in (old.last_seen_at, decided_by))
    shortest, longest = (bound // MILLISECOND for bound in bounds)
    return opened_at, shortest, longest
