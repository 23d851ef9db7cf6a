"""The state of a run at an instant: its progress, and the statuses of its tests.

A run's life is made of stages: it starts, goes forward in `STEPS` steps, ends, and, where it ended
unresolved, changes each time that a person decides. Within a stage nothing changes.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from etl.sandbox import dice
from etl.sandbox.plan_catalog import PlanTest, plan_test
from etl.sandbox.runs import Fate, Run

STEPS = 4  # of a run under way; the first is its start
FIRST_DECISION = timedelta(hours=2)  # after the run's end, at the earliest
LAST_DECISION = timedelta(days=10)
MOST_DIFFERENCES = 6


class Status(StrEnum):
    """The statuses of tests, and of most runs."""

    PASSED = "passed"
    FAILED = "failed"
    ABORTED = "aborted"
    PENDING = "pending"
    UNRESOLVED = "unresolved"


@dataclass(frozen=True, slots=True)
class Decision:
    """A person's decision on an unresolved test."""

    at: datetime
    status: Status


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of a run's life without a change: from `since` until the next stage."""

    since: datetime
    step: int | None  # 0 to STEPS - 1 while the run is going, None when it is over


@dataclass(frozen=True, slots=True)
class TestState:
    """One test of a run in one stage, with the number of its checks of each status."""

    test: PlanTest
    status: Status
    checks: dict[Status, int]


def stages(run: Run) -> list[Stage]:
    """Return the run's stages, in order of time; the first begins with the run."""
    going = [Stage(run.after_ms(run.duration_ms * step // STEPS), step) for step in range(STEPS)]
    decided = {decision.at for decision in _differences(run).values() if decision is not None}
    return going + [Stage(instant, None) for instant in sorted({run.ended_at} | decided)]


def states(run: Run, stage: Stage) -> list[TestState]:
    """Return the run's tests in that stage, in the answer's order."""
    statuses = _over(run, stage.since) if stage.step is None else _going(run, stage.step)
    environments = len(run.plan.environments_of(run.number))
    tests = [plan_test(run.plan.plan_id, position) for position in range(len(statuses))]
    found = [
        TestState(test, status, _checks(test.pages * environments, status, run, position))
        for position, (test, status) in enumerate(zip(tests, statuses, strict=True))
    ]
    if stage.step:
        _pass_first_checks(found, stage.step)
    return found


def _pass_first_checks(found: list[TestState], step: int) -> None:
    """Mark the first checks of the first unfinished test as passed."""
    position = next(i for i, state in enumerate(found) if state.status is Status.PENDING)
    state = found[position]
    count = state.checks[Status.PENDING]
    passed = count * step // STEPS
    checks = {Status.PENDING: count - passed, Status.PASSED: passed}
    found[position] = TestState(state.test, state.status, checks)


def _going(run: Run, step: int) -> list[Status]:
    """Return each test's status while the run is going: they are done one after the other."""
    ends = _ends(run)
    done = len(ends) * step // STEPS
    return ends[:done] + [Status.PENDING] * (len(ends) - done)


def _over(run: Run, at: datetime) -> list[Status]:
    """Return each test's status after the run's end, with the decisions made by then."""
    statuses = _ends(run)
    for position, decision in _differences(run).items():
        if decision is not None and decision.at <= at:
            statuses[position] = decision.status
    return statuses


def _ends(run: Run) -> list[Status]:
    """Return each test's status when the run ends."""
    count = run.plan.tests_of(run.number)
    if run.fate is Fate.ABORTED:
        # After the last step: finished tests stay finished.
        cut = count * (STEPS - 1) // STEPS
        return _outcomes(run, cut) + [Status.ABORTED] * (count - cut)
    outcomes = _outcomes(run, count)
    for position in _differences(run):
        outcomes[position] = Status.UNRESOLVED
    return outcomes


def _outcomes(run: Run, count: int) -> list[Status]:
    """Return the outcomes of the run's first `count` tests before any decision."""
    plan_id = run.plan.plan_id
    fails = (plan_test(plan_id, i).fails(plan_id, i, run.number) for i in range(count))
    return [Status.FAILED if failed else Status.PASSED for failed in fails]


def _differences(run: Run) -> dict[int, Decision | None]:
    """Return the tests that end unresolved, by position, with their decisions, if any."""
    if run.fate is not Fate.DIFFERENT:
        return {}
    last = run.plan.tests_of(run.number) - 1
    wanted = dice.between(1, min(MOST_DIFFERENCES, last + 1), "differences", run.run_id)
    positions = {dice.between(0, last, "difference", run.run_id, i) for i in range(wanted)}
    manner = dice.chance("manner", run.run_id)
    if manner < 0.12:  # nobody ever looks at it
        return dict.fromkeys(sorted(positions))
    # Either all at one go, or each test at a time of its own.
    return {i: _decision(run, i, -1 if manner < 0.5 else i) for i in sorted(positions)}


def _decision(run: Run, position: int, sitting: int) -> Decision:
    """Return the decision on a test; those of the same `sitting` fall at the same instant."""
    luck = dice.chance("decided after", run.run_id, sitting)
    after = FIRST_DECISION + (LAST_DECISION - FIRST_DECISION) * (luck * luck)
    accepted = dice.chance("accepted", run.run_id, position) < 0.7
    return Decision(
        at=run.after_ms(run.duration_ms + after // timedelta(milliseconds=1)),
        status=Status.PASSED if accepted else Status.FAILED,
    )


def _checks(count: int, status: Status, run: Run, position: int) -> dict[Status, int]:
    """Return how many of a test's `count` checks have which status; all others have none."""
    if status is Status.PASSED or status is Status.PENDING:
        return {status: count}
    # The same ones when a person turns unresolved to failed.
    touched = dice.between(1, max(1, count // 2), "touched", run.run_id, position)
    return {status: touched, Status.PASSED: count - touched}
