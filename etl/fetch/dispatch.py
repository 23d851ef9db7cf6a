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

from etl.answers.outcome import Target, Trouble

FAILED_PROBES = 5
"""So many probes in a row without an answer: the API is down."""
DIFFERENT_RUNS = 3
"""Where the API answered before, they must be of so many runs: one or two may be bad themselves."""
DENIED_AT_FIRST = 5
"""So many 403 before any other answer: it is the key that is refused, not the runs."""
DENIED_REMEDY = "track each run with its read token, or use a key that may read"
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
REVIEW_S = 0.05
BUSY_ENOUGH = 0.95
"""With so much of a processor's time in use, another thread would gain nothing."""


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
    """How hard the API may be asked. 0 requests a second, or in all, is no limit."""

    connections: int
    max_requests_per_second: float
    attempts: int
    max_wait_s: float
    max_requests: int = 0


class Pace:
    """What all sources of a pass share: one rate, one number of connections, one budget."""

    def __init__(self, limits: Limits) -> None:
        self.in_flight = 0
        self.sent = 0
        self.impatience = ""
        """Why no more is sent at all: the API asks to wait for longer than we may."""
        self._limits = limits
        self._not_before = 0.0
        self._asked_until = 0.0

    @property
    def is_spent(self) -> bool:
        """Whether the pass has sent all the requests it may send."""
        return 0 < self._limits.max_requests <= self.sent

    @property
    def has_room(self) -> bool:
        """Whether one more request may be under way."""
        return self.in_flight < self._limits.connections

    def wait_s(self, now: float) -> float:
        """Return in how many seconds the next request may be sent."""
        return max(0.0, self._not_before - now)

    def send(self, now: float) -> None:
        """Note that a request is sent."""
        self.sent += 1
        self.in_flight += 1
        if rate := self._limits.max_requests_per_second:
            self._not_before = max(now, self._not_before) + 1 / rate

    def pause(self, until: float) -> None:
        """Send nothing before `until`."""
        self._not_before = max(self._not_before, until)

    def heed(self, wait_s: float, now: float) -> None:
        """Send nothing for as long as the API asks to wait."""
        self._asked_until = max(self._asked_until, now + wait_s)
        self.pause(self._asked_until)
        if wait_s > self._limits.max_wait_s:
            self.impatience = f"the API asks to wait {wait_s:.0f} s"

    def asked_wait_s(self, now: float) -> float:
        """Return how long the API still wants to be left alone."""
        return max(0.0, self._asked_until - now)


class Crew:
    """How many threads fetch at once: as many as keep one processor busy, up to `most`.

    Python computes in one thread at a time: more of them than that would only wait for each
    other. The longer the API takes to answer, the more of them it is that wait for it.
    """

    def __init__(self, most: int) -> None:
        self.size = 1
        self._most = most
        self._since: float | None = None
        self._cpu_s = 0.0

    def pause(self) -> None:
        """Judge by nothing before now: the threads were kept from working."""
        self._since = None

    def is_due(self, now: float) -> bool:
        """Tell whether it is time for a review: every `REVIEW_S`, as far as requests come back."""
        return self._since is None or now - self._since >= REVIEW_S

    def review(self, now: float, cpu_s: float) -> None:
        """Judge by the processor's time that the process has had so far, all threads together."""
        if self._since is not None:
            busy = max((cpu_s - self._cpu_s) / (now - self._since), 0.001)
            self.size = min(max(int(self.size * BUSY_ENOUGH / busy), 1), self._most)
        self._since, self._cpu_s = now, cpu_s


@dataclass(eq=False)
class Job:
    """A run on its way."""

    target: Target
    attempts: int = 0
    is_probe: bool = False
    trouble: Trouble | None = None
    denial: str | None = None


class Dispatcher:
    """Hands out one source's jobs of a pass. Every job comes back through one of the verdicts.

    `finished` then lists the jobs whose end is decided: with `trouble` or `denial` when that is
    what they ended with. After a halt, `deferred` has those that were in trouble.
    """

    def __init__(self, limits: Limits, pace: Pace | None = None) -> None:
        self.in_flight = 0
        self._halt: Halt | None = None
        self._halt_reason = ""
        self._pace = pace or Pace(limits)
        self._limits = limits
        self._ready: deque[Job] = deque()
        self._denied: list[Job] = []
        self._exhausted: list[Job] = []
        self._finished: list[Job] = []
        self._is_probing = True
        self._has_heard = False
        self._failed_probes: list[Job] = []

    @property
    def halt(self) -> Halt | None:
        """Why no more jobs are handed out. A wait that the API asks for halts all sources."""
        return self._halt or (Halt.BUSY if self._pace.impatience else None)

    @property
    def halt_reason(self) -> str:
        """The halt in words."""
        return self._halt_reason or self._pace.impatience

    @property
    def sent(self) -> int:
        """How many requests the pass has sent, of all sources."""
        return self._pace.sent

    @property
    def waiting(self) -> int:
        """How many jobs wait to be sent."""
        return len(self._ready)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, and nothing will be without more jobs."""
        is_done = not self._ready or self.halt is not None or self._pace.is_spent
        return self.in_flight == 0 and is_done

    def offer(self, targets: Iterable[Target]) -> None:
        """Take runs over that are to be fetched."""
        self._ready.extend(map(Job, targets))

    def take(self, now: float) -> Job | None:
        """Return a job that may be sent `now` (seconds of any steady clock), if there is one."""
        if self.wait_s(now) != 0:
            return None
        job = self._ready.popleft()
        job.attempts += 1
        job.is_probe = self._is_probing
        job.trouble = None
        self.in_flight += 1
        self._pace.send(now)
        return job

    def wait_s(self, now: float) -> float | None:
        """Return in how many seconds `take` may succeed; None: not before a job comes back."""
        if self.halt or not self._ready or self._pace.is_spent:
            return None
        if not self._pace.has_room or (self._is_probing and self.in_flight):
            return None
        return self._pace.wait_s(now)

    def answered(self, job: Job) -> None:
        """Note any answer that shows the API alive and the key accepted."""
        self.returned()
        self._has_heard = True
        self._is_probing = False
        self._failed_probes = []
        self._finished.append(job)
        self._decide_held_back()

    def denied(self, job: Job, reason: str) -> None:
        """Note a 403: this run's failure, unless a pass begins with nothing else."""
        self.returned()
        self._failed_probes = []
        job.denial = reason
        self._denied.append(job)
        if self._has_heard:
            self._is_probing = False
            self._decide_held_back()
            return
        # A key that may not read still reads with a token: ask for a run that has one next.
        token_is_next = self._bring_token_to_front()
        is_tried = any(each.target.read_token for each in self._denied) or not token_is_next
        if is_tried and len(self._denied) >= DENIED_AT_FIRST:
            self.stop(
                Halt.REFUSED, f"the first {DENIED_AT_FIRST} answers were all 403; {DENIED_REMEDY}"
            )

    def troubled(self, job: Job, trouble: Trouble, now: float) -> None:
        """Note a failure that passes: try again later, in this pass or in another one."""
        self.returned()
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
        if self.halt is None and job.attempts < self._limits.attempts:
            self._ready.append(job)
        else:
            self._exhausted.append(job)

    def set_aside(self, job: Job) -> None:
        """Note a job that ended without a request, and so tells nothing of the API."""
        self.returned()
        self._finished.append(job)

    def stop(self, halt: Halt, reason: str) -> None:
        """Hand out no more jobs; the first reason counts."""
        if self.halt is None:
            self._halt, self._halt_reason = halt, reason

    def returned(self) -> None:
        """Note that a job came back, and nothing else."""
        self.in_flight -= 1
        self._pace.in_flight -= 1

    def finish(self) -> None:
        """Decide about the jobs held back, when there is nothing left to learn from."""
        if self.halt is None and self._exhausted and not self._has_heard and not self._denied:
            trouble = self._exhausted[-1].trouble
            self.stop(Halt.DOWN, trouble.reason if trouble else "")
        if self.halt is None:
            self._decide_held_back()

    def deferred(self) -> list[Job]:
        """Return, after a halt, the jobs that were in trouble: they are no less due than before."""
        if self.halt not in {Halt.DOWN, Halt.BUSY}:
            return []
        return [job for job in (*self._exhausted, *self._ready) if job.trouble]

    def finished(self) -> list[Job]:
        """Return the jobs decided since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def _bring_token_to_front(self) -> bool:
        for place, job in enumerate(self._ready):
            if job.target.read_token:
                self._ready.rotate(-place)
                return True
        return False

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
        self._pace.pause(now + pause_s)
        if trouble.wait_s is not None:
            self._pace.heed(trouble.wait_s, now)
