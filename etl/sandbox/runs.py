"""The runs of a world: the plan, start, duration and end of each."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol

from etl.sandbox import dice, quirks
from etl.sandbox.plan_catalog import SandboxPlan, make_plans
from etl.sandbox.quirks import Quirk

HISTORY = timedelta(days=120)  # before a world's `end`, all of its past runs
FUTURE = timedelta(days=7)  # after it, the runs that are still to come
RUNS_PER_CRAWL = 150
EXECUTED_MS = (120_000, 300_000)  # how long a run takes that was started by a call
UNIFORM_STEP = timedelta(minutes=2)

PLAIN_IDS = (
    "nightly/2024-{:05}-{}",
    "lauf {:05} / Größen {}",
    "run:{:05}%2F{}+retry?&=",
    "{:05}{}",
)


class Fate(Enum):
    """How a run ends when its time is over."""

    DECIDED = "decided"  # passed or failed
    DIFFERENT = "different"  # unresolved: a person has to accept or reject differences
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Run:
    """One run, from before it starts to after its end.

    `index` is its place in the world, `number` its place among its plan's runs; both from 0.
    """

    run_id: str
    index: int
    plan: SandboxPlan
    number: int
    started_at: datetime
    duration_ms: int
    fate: Fate
    quirks: frozenset[Quirk]

    @property
    def ended_at(self) -> datetime:
        """The instant of the run's end."""
        return self.after_ms(self.duration_ms)

    def after_ms(self, elapsed_ms: int) -> datetime:
        """Return the instant that many milliseconds after the start."""
        return self.started_at + timedelta(milliseconds=elapsed_ms)

    def elapsed_ms(self, at: datetime) -> int:
        """Return how many milliseconds after the start `at` is."""
        return (at - self.started_at) // timedelta(milliseconds=1)


class RunCollection(Protocol):
    """The runs that a world has by itself, without those that a call started."""

    plans: tuple[SandboxPlan, ...]

    def __iter__(self) -> Iterator[Run]: ...
    def __len__(self) -> int: ...

    def find(self, run_id: str) -> Run | None:
        """Return the run with that id."""

    def count(self, plan: SandboxPlan) -> int:
        """Return how many of the runs are of `plan`."""


class RealisticRuns:
    """Runs of all plans of the catalogue, ever more of them as time goes on.

    At `end` some are under way, some wait for a person, and some are still to come.
    """

    def __init__(self, *, end: datetime, runs: int, seed: int) -> None:
        self.plans = make_plans(seed)
        self._counts: Counter[str] = Counter()
        self._runs: dict[str, Run] = {}
        timetable = _Timetable(end, runs, seed)
        for index in range(runs):
            run = self._make(timetable, index, seed)
            self._runs[run.run_id] = run

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs.values())

    def __len__(self) -> int:
        return len(self._runs)

    def find(self, run_id: str) -> Run | None:
        """Return the run with that id."""
        return self._runs.get(run_id)

    def count(self, plan: SandboxPlan) -> int:
        """Return how many of the runs are of `plan`."""
        return self._counts[plan.plan_id]

    def _make(self, timetable: "_Timetable", index: int, seed: int) -> Run:
        plan = self._plan(index, seed)
        number = self.count(plan)
        self._counts[plan.plan_id] += 1
        fate = _fate("run", seed, index)
        duration_ms = _duration_ms(plan, number, fate)
        return Run(
            run_id=_run_id(index, seed),
            index=index,
            plan=plan,
            number=number,
            started_at=timetable.start(index, duration_ms),
            duration_ms=duration_ms,
            fate=fate,
            quirks=quirks.of(index),
        )

    def _plan(self, index: int, seed: int) -> SandboxPlan:
        *usual, crawl = self.plans
        if index % RUNS_PER_CRAWL == RUNS_PER_CRAWL // 2:
            return crawl
        weighted = [plan for plan in usual for _ in range(plan.weight)]
        return dice.pick(weighted, "plan of run", seed, index)


class _Timetable:
    """When the runs of a `RealisticRuns` world start."""

    def __init__(self, end: datetime, runs: int, seed: int) -> None:
        self.end = end
        self.seed = seed
        self.coming = runs // 25
        self.going = runs // 50
        self.past = runs - self.coming - self.going

    def start(self, index: int, duration_ms: int) -> datetime:
        """Return when run number `index` starts, to the millisecond."""
        luck = dice.chance("start", self.seed, index)
        if index < self.past:
            # Squared, so that runs become more frequent towards the end, as use of a tool grows;
            # by a product, because a power can differ in its last bit from machine to machine.
            place = 1 - (index + luck) / self.past
            before = HISTORY * (place * place) + timedelta(milliseconds=duration_ms)
            return _whole_ms(self.end - before)
        if index < self.past + self.going:
            return _whole_ms(self.end - timedelta(milliseconds=duration_ms) * (0.1 + 0.8 * luck))
        # The first ones come within minutes, the last ones after days.
        place = (index - self.past - self.going + 1) / self.coming
        return _whole_ms(self.end + FUTURE * (place * place * place))


class UniformRuns:
    """Any number of decided runs, all of one shape and over before `end`; none is kept.

    A run's id ends in its index, so that it can be made again from the id alone.
    """

    def __init__(self, *, end: datetime, runs: int, seed: int, plan: SandboxPlan) -> None:
        self.plans: tuple[SandboxPlan, ...] = (plan,)
        self._end = end
        self._length = runs
        self._seed = seed

    def __iter__(self) -> Iterator[Run]:
        return map(self._make, range(self._length))

    def __len__(self) -> int:
        return self._length

    def find(self, run_id: str) -> Run | None:
        """Return the run with that id."""
        try:
            index = int(run_id[-8:], 16)
        except ValueError:
            return None
        if not 0 <= index < self._length:
            return None
        run = self._make(index)
        return run if run.run_id == run_id else None

    def count(self, plan: SandboxPlan) -> int:
        """Return how many of the runs are of `plan`."""
        return self._length if plan in self.plans else 0

    def _make(self, index: int) -> Run:
        (plan,) = self.plans
        ended_at = self._end - UNIFORM_STEP * (self._length - index)
        return Run(
            run_id=f"{dice.uuid4('uniform', self._seed, index)[:-8]}{index:08x}",
            index=index,
            plan=plan,
            number=index,
            started_at=_whole_ms(ended_at - timedelta(milliseconds=plan.duration_ms)),
            duration_ms=plan.duration_ms,
            fate=Fate.DECIDED,
            quirks=frozenset(),
        )


def execute_plan(plan: SandboxPlan, *, index: int, number: int, at: datetime, seed: int) -> Run:
    """Return the run of `plan` that a call starts at `at`, as the world's run number `index`."""
    return Run(
        run_id=dice.uuid4("executed", seed, index),
        index=index,
        plan=plan,
        number=number,
        started_at=_whole_ms(at),
        duration_ms=dice.between(*EXECUTED_MS, "executed ms", seed, index),
        fate=_fate("executed", seed, index),
        quirks=frozenset(),
    )


def _run_id(index: int, seed: int) -> str:
    if Quirk.PLAIN_RUN_ID in quirks.of(index):
        form = PLAIN_IDS[index // Quirk.PLAIN_RUN_ID.value % len(PLAIN_IDS)]
        return form.format(index, dice.token(6, "plain id", seed, index))
    return dice.uuid4("run", seed, index)


def _fate(*key: dice.Part) -> Fate:
    luck = dice.chance("fate", *key)
    if luck < 0.04:
        return Fate.ABORTED
    return Fate.DIFFERENT if luck < 0.18 else Fate.DECIDED


def _duration_ms(plan: SandboxPlan, number: int, fate: Fate) -> int:
    """Return how long the run takes: it drifts and varies, and is short if aborted."""
    key = ("duration", plan.plan_id, number)
    factor = (1 + plan.slowdown * number) * (0.86 + 0.28 * dice.chance(*key))
    if dice.chance("slow", *key) < 0.03:
        factor *= 2
    if fate is Fate.ABORTED:
        factor *= 0.5
    return int(plan.duration_ms * factor)


def _whole_ms(instant: datetime) -> datetime:
    """Cut to milliseconds: the API's times have no more, and an answer must agree with them."""
    return instant.replace(microsecond=instant.microsecond // 1000 * 1000)
