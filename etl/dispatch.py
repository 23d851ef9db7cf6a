"""Decide which request may be sent when, and whether the pass goes on at all.

Pure: time comes in as an argument, nothing is sent here. A pass starts by probing, one request
at a time, and does so again after each failure that may mean that the API is down; while it
answers, as many requests are under way as are configured. So a dead API or a refused key costs
a handful of requests, and a single bad run never stops the others.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from etl.ledger import Claim

FAILED_PROBES = 5
"""So many probes in a row without an answer: the API is down."""
DIFFERENT_RUNS = 3
"""Where the API answered before, they must be of so many runs: one or two may be bad themselves."""
DENIED_AT_FIRST = 5
"""So many 403 before any other answer: it is the key that is refused, not the runs."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


class Halt(Enum):
    """Why a pass stops before its work is done; the rest stays due."""

    DOWN = "down"
    """The API does not answer."""
    BUSY = "busy"
    """The API asks for more patience than `api.max_wait_s`."""
    REFUSED = "refused"
    """The API refuses the key."""
    INTERRUPTED = "interrupted"
    """A person or the system asked us to stop."""


class Limits(NamedTuple):
    """How hard the API may be asked. `max_requests_per_second` 0 is no limit."""

    connections: int
    max_requests_per_second: float
    attempts: int
    max_wait_s: float


class Trouble(NamedTuple):
    """A request without a good answer. `wait_s` is what the API asked for, `chance` is 0 to 1."""

    reason: str
    wait_s: float | None
    is_busy: bool
    chance: float


@dataclass(eq=False)
class Job:
    """A claimed run on its way."""

    claim: Claim
    attempts: int = 0
    is_probe: bool = False
    trouble: Trouble | None = None
    denial: str | None = None


class Dispatcher:
    """Hands out the jobs of one pass. Every job comes back through one of the four verdicts.

    `finished` then lists the jobs whose end is decided: with `trouble` or `denial` when that is
    what they ended with.
    """

    def __init__(self, limits: Limits) -> None:
        self.halt: Halt | None = None
        self.halt_reason = ""
        self.in_flight = 0
        self.sent = 0
        self._limits = limits
        self._ready: deque[Job] = deque()
        self._denied: list[Job] = []
        self._exhausted: list[Job] = []
        self._finished: list[Job] = []
        self._is_probing = True
        self._has_heard = False
        self._failed_probes: list[Job] = []
        self._not_before = 0.0

    @property
    def waiting(self) -> int:
        """How many jobs wait to be sent."""
        return len(self._ready)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, and nothing will be without more jobs."""
        return self.in_flight == 0 and (not self._ready or self.halt is not None)

    def offer(self, claims: Iterable[Claim]) -> None:
        """Take runs over that are to be fetched."""
        self._ready.extend(Job(claim) for claim in claims)

    def take(self, now: float) -> Job | None:
        """Return a job that may be sent `now` (seconds of any steady clock), if there is one."""
        if self.halt or not self._ready or now < self._not_before:
            return None
        if self.in_flight >= (1 if self._is_probing else self._limits.connections):
            return None
        if rate := self._limits.max_requests_per_second:
            self._not_before = max(now, self._not_before) + 1 / rate
        job = self._ready.popleft()
        job.attempts += 1
        job.is_probe = self._is_probing
        job.trouble = None
        self.in_flight += 1
        self.sent += 1
        return job

    def wait_s(self, now: float) -> float | None:
        """Return in how many seconds `take` may succeed; None: not before a job comes back."""
        if self.halt or not self._ready:
            return None
        if self.in_flight >= (1 if self._is_probing else self._limits.connections):
            return None
        return max(0.0, self._not_before - now)

    def answered(self, job: Job) -> None:
        """Note any answer that shows the API alive and the key accepted."""
        self.in_flight -= 1
        self._has_heard = True
        self._is_probing = False
        self._failed_probes = []
        self._finished.append(job)
        self._decide_held_back()

    def denied(self, job: Job, reason: str) -> None:
        """Note a 403: this run's failure, unless a pass begins with nothing else."""
        self.in_flight -= 1
        self._failed_probes = []
        job.denial = reason
        self._denied.append(job)
        if self._has_heard:
            self._is_probing = False
            self._decide_held_back()
        elif len(self._denied) >= DENIED_AT_FIRST:
            self.stop(Halt.REFUSED, f"the first {DENIED_AT_FIRST} answers were all 403")

    def troubled(self, job: Job, trouble: Trouble, now: float) -> None:
        """Note a failure that passes: try again later, in this pass or in another one."""
        self.in_flight -= 1
        job.trouble = trouble
        if trouble.is_busy:
            self._has_heard = True
            self._failed_probes = []
        else:
            # Those under way when the trouble began are part of it, and no further evidence.
            self._failed_probes += [job] * job.is_probe
            self._is_probing = True
            # The next probe is any run: a few bad ones ahead of all others must not look like
            # an API that is down, today and in each pass to come.
            self._ready.rotate(-int(trouble.chance * len(self._ready)))
        self._pause(job, trouble, now)
        if self._is_down():
            self.stop(Halt.DOWN, trouble.reason)
        elif job.attempts < self._limits.attempts:
            self._ready.append(job)
        else:
            self._exhausted.append(job)

    def stop(self, halt: Halt, reason: str) -> None:
        """Hand out no more jobs; the first reason counts."""
        if self.halt is None:
            self.halt, self.halt_reason = halt, reason

    def returned(self) -> None:
        """Note that a job came back without any verdict: the pass is being stopped."""
        self.in_flight -= 1

    def finish(self) -> None:
        """Decide about the jobs held back, when there is nothing left to learn from."""
        if self.halt is None and self._exhausted and not self._has_heard and not self._denied:
            trouble = self._exhausted[-1].trouble
            self.stop(Halt.DOWN, trouble.reason if trouble else "")
        if self.halt is None:
            self._decide_held_back()

    def finished(self) -> list[Job]:
        """Return the jobs decided since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def _is_down(self) -> bool:
        if len(self._failed_probes) < FAILED_PROBES:
            return False
        return not self._has_heard or len(set(self._failed_probes)) >= DIFFERENT_RUNS

    def _decide_held_back(self) -> None:
        self._finished += self._denied
        self._finished += self._exhausted
        self._denied, self._exhausted = [], []

    def _pause(self, job: Job, trouble: Trouble, now: float) -> None:
        steps = max(len(self._failed_probes), job.attempts) - 1
        pause_s = min(FIRST_PAUSE_S * 2**steps, LONGEST_PAUSE_S) * (1 - trouble.chance / 2)
        if trouble.wait_s is not None:
            pause_s = max(pause_s, trouble.wait_s)
            if trouble.wait_s > self._limits.max_wait_s:
                self.stop(Halt.BUSY, f"the API asks to wait {trouble.wait_s:.0f} s")
        self._not_before = max(self._not_before, now + pause_s)
