"""The simulated world behind the sandbox: seed, run id and time give the API's answer.

Reads no clock, file or network: the same seed, run id and time give the same bytes in every process
and on every machine. Nothing but the runs that `execute` started is ever added to a world.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from etl.sandbox import dice, life, render
from etl.sandbox.plan_catalog import uniform_plan
from etl.sandbox.runs import RealisticRuns, Run, RunCollection, UniformRuns, execute_plan


@dataclass(frozen=True, slots=True)
class Shape:
    """How large each run of a uniform world is; a ValueError if it has nothing."""

    environments: int
    tests: int

    def __post_init__(self) -> None:
        if self.environments < 1 or self.tests < 1:
            raise ValueError(f"{self}: give at least one environment and one test")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An answer's bytes, and how long they stay the same: from `since` until `until`, excluded."""

    body: bytes
    since: datetime
    until: datetime | None  # None: for good

    def holds(self, at: datetime) -> bool:
        """Tell whether the answer at that time is this one."""
        return self.since <= at and (self.until is None or at < self.until)


class World:
    """All runs of one seed, and the API's answer for each of them at any time.

    `end` is the instant at which a sandbox's clock starts: most runs are over by then, some are
    under way or wait for a person, and some are still to come. With a `shape`, all runs are of that
    size, decided and over, and there may be any number of them: none is kept in memory.
    """

    def __init__(
        self, *, end: datetime, seed: int = 1, runs: int = 300, shape: Shape | None = None
    ) -> None:
        self.seed = seed
        self.end = _utc(end)
        self._scheduled = _runs_of_world(self.end, runs, seed, shape)
        self.plans = {plan.plan_id: plan for plan in self._scheduled.plans}
        self._executed: dict[str, Run] = {}
        self._executed_of: Counter[str] = Counter()

    def runs(self, at: datetime) -> Iterator[Run]:
        """Yield the runs that have started by `at`, older ones first, executed ones last."""
        at = _utc(at)
        for runs in (self._scheduled, list(self._executed.values())):
            yield from (run for run in runs if run.started_at <= at)

    def run(self, run_id: str) -> Run | None:
        """Return the run with that id, started or not."""
        return self._executed.get(run_id) or self._scheduled.find(run_id)

    def answer(self, run_id: str, at: datetime) -> bytes | None:
        """Return the API's JSON for the run at that time; None: the run does not exist yet."""
        snapshot = self.snapshot(run_id, at)
        return snapshot.body if snapshot else None

    def snapshot(self, run_id: str, at: datetime) -> Snapshot | None:
        """Return the `answer` with the time for which it holds."""
        at = _utc(at)
        run = self.run(run_id)
        if run is None or at < run.started_at:
            return None
        stages = life.stages(run)
        place = bisect_right([stage.since for stage in stages], at) - 1
        until = stages[place + 1].since if place + 1 < len(stages) else None
        return Snapshot(render.body(run, stages[place]), stages[place].since, until)

    def changes(self, run_id: str) -> list[datetime]:
        """Return the instants at which the run's answer changes, ascending; its start is the first.

        From the last one on it is final. An unknown run never changes.
        """
        run = self.run(run_id)
        return [stage.since for stage in life.stages(run)] if run else []

    def read_token(self, run_id: str) -> str:
        """Return the token with which a key without read permission may read the run."""
        return dice.token(32, "read token", self.seed, run_id)

    def execute(self, plan_id: str, at: datetime) -> Run:
        """Start a run of the plan; KeyError for an unknown plan.

        The id depends on the seed and on how many were started before, and on nothing else.
        """
        plan = self.plans[plan_id]
        run = execute_plan(
            plan,
            index=len(self._scheduled) + len(self._executed),
            number=self._scheduled.count(plan) + self._executed_of[plan_id],
            at=_utc(at),
            seed=self.seed,
        )
        self._executed[run.run_id] = run
        self._executed_of[plan_id] += 1
        return run


def _runs_of_world(end: datetime, runs: int, seed: int, shape: Shape | None) -> RunCollection:
    if shape is None:
        return RealisticRuns(end=end, runs=runs, seed=seed)
    plan = uniform_plan(shape.environments, shape.tests, seed)
    return UniformRuns(end=end, runs=runs, seed=seed, plan=plan)


def _utc(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ValueError(f"{instant} has no time zone; give an aware datetime")
    return instant.astimezone(UTC)
