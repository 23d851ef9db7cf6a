"""The only runs of new plans, whose derived rows follow from the answer in memory."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, select

from etl.answers.outcome import Answer
from etl.archive.history import RunOutcome
from etl.db.schema import among, labels
from etl.derived.first_runs import FirstRun, lock_new_plans
from etl.derived.identity_rules import IdentityRules
from etl.derived.outcome_reader import COMMIT_LABEL
from etl.derived.plans import IdentityRule, Plan, PlanRun, Roster
from etl.derived.stored_series import find_plans_of_only_runs


class NewOutcome(NamedTuple):
    """The outcome of new content, and whether the run is new, too."""

    answer: Answer
    is_new: bool
    outcome: RunOutcome

    @property
    def plan(self) -> Plan:
        """The plan of the run."""
        _, _, *plan, _ = self.outcome.variant
        return Plan(*plan)


def select_only_runs(
    connection: Connection, derived: Sequence[NewOutcome], replaced_variants: Collection[str]
) -> list[NewOutcome]:
    """Return those that are the first and only run of their plan.

    Locks these plans, and those whose only run is of `replaced_variants` (`lock_new_plans`).
    """
    runs_of = Counter(each.plan for each in derived)
    alone = [each for each in derived if each.is_new and runs_of[each.plan] == 1]
    others = find_plans_of_only_runs(connection, replaced_variants)
    new = lock_new_plans(connection, {each.plan for each in alone}, others)
    return [each for each in alone if each.plan in new]


def build_first_runs(
    connection: Connection, only: Sequence[NewOutcome], rules: IdentityRules
) -> list[FirstRun]:
    """Return the plans' first runs, except those whose aggregates only a refresh can write.

    Runs without a start, which most aggregates omit, and those whose tests need rows in `series`.
    """
    run_ids = [each.answer.run_id for each in only]
    query = select(labels.c.run_id, labels.c.value).where(
        among(labels.c.run_id, run_ids), labels.c.name == COMMIT_LABEL
    )
    commits = dict(connection.execute(query).all()) if run_ids else {}
    without_series = [
        each
        for each in only
        if rules.for_plan(each.plan) == IdentityRule() and each.answer.named.are_distinct
    ]
    found = ((each, _build_plan_run(each, commits)) for each in without_series)
    return [FirstRun(each.plan, run, each.answer.named.keys) for each, run in found if run]


def _build_plan_run(new: NewOutcome, commits: Mapping[str, str]) -> PlanRun | None:
    """Return a run as `outcome_reader` would read it, without its tests; None without a start."""
    answer, outcome = new.answer, new.outcome
    run = answer.rows.run
    if run.started_at is None:
        return None
    return PlanRun(
        answer.run_id,
        outcome.variant[0],
        run.status,
        run.started_at,
        run.started_on,
        run.duration_ms,
        outcome.checks,
        outcome.strip,
        Roster(outcome.roster[0], (), ()),
        commits.get(answer.run_id),
    )
