"""Decide which request may be sent when, and when a source is stopped: a circuit breaker each.

Pure: time is an argument, nothing is sent here. A source starts half-open, with one probe at a
time, and returns to that after each failure that may mean that the API is down; while it answers,
the configured number of requests is under way. A dead API or a refused key thus costs a handful
of requests, and a single bad run never stops the others.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from etl.answers.outcome import Target, TransientError
from etl.fetch.permits import Halt, PermitAsk, Permits
from etl.fetch.rate_limit import Budget, RateLimit, RequestLimits

FAILED_PROBES = 5
"""The API is down after this number of probes in a row without an answer."""
DIFFERENT_RUNS = 3
"""If the API answered before, they must be of this number of runs: one or two may be bad."""
NO_RESULTS = 5
"""Answers that are no results, from this number of different runs in a row, stop the source."""
CONTROLS_IN_A_ROW = 5
"""A failure is a run's own if the control, an archived run, is answered this number of times;"""
RESULTS_FOR_ONE = 3
"""without a control, if this number of results came in the pass for each failing run."""
MOST_CONTROLS = 20
"""The most requests for the control in one pass."""
MOST_HELD_BACK = 1000
"""Failing runs are judged at the end of the pass, or when this number is held back."""
ANSWER_COUNTS_S = 2.0
"""A result of another worker shows an API alive for this long."""
DENIED_AT_FIRST = 5
"""After this number of 403 before any other answer it is the key that is refused."""
DENIED_REMEDY = "track each run with its read token, or use a key that may read"


class Signal(Enum):
    """The information that an attempt gives of the API."""

    RESULT = "result"
    """The API is alive and accepts the key: a result, or a 404."""
    NO_RESULT = "no result"
    """A status 200 with something else than a result, such as a login page."""
    TRANSIENT = "transient"
    """No answer, or a status that says nothing of the run."""
    DENIED = "denied"
    """403."""
    KEY_REFUSED = "key refused"
    """401."""
    NO_RESOURCES = "no resources"
    """This machine lacks file descriptors, for every run alike."""
    NO_REQUEST = "no request"
    """Nothing was sent, so that nothing is known of the API."""


@dataclass(eq=False)
class Job:
    """A run on its way. `error` is that of its last attempt, None after an answer.

    `is_control`: an archived run that is asked for only to learn whether the API is alive.
    `is_own`: the failure is the run's, since the API answered others meanwhile.
    """

    target: Target
    is_control: bool = False
    is_own: bool = True
    attempts: int = 0
    is_probe: bool = False
    error: TransientError | None = None


class Breaker:
    """The queue and the circuit breaker of one source. `record` takes each job back.

    `take_finished` then lists the jobs whose end is decided; after a halt, `deferred` lists those
    that end with the API's failure instead of their own.
    """

    def __init__(
        self, limits: RequestLimits, budget: Budget | None = None, control: Target | None = None
    ) -> None:
        self._halt: Halt | None = None
        self._halt_reason = ""
        self._rate = RateLimit(limits, budget or Budget(limits))
        self._limits = limits
        self._may_probe = False
        self._is_asking = False
        self._ask_not_before = 0.0
        self._answered_at = 0.0
        self._failed_at = 0.0
        self._heard_until = 0.0
        """The end of the wait that the API asked this worker for."""
        self._is_report_due = False
        self._control = control
        self._controls_left = MOST_CONTROLS if control else 0
        self._control_row = 0
        self._is_control_out = False
        self._results = 0
        self._ready: deque[Job] = deque()
        self._denied: list[Job] = []
        self._exhausted: list[Job] = []
        self._finished: list[Job] = []
        self._is_probing = True
        self._has_heard = False
        self._failed_probes: list[Job] = []
        self._without_result: list[Job] = []

    @property
    def halt(self) -> Halt | None:
        """Why no more jobs are handed out. A wait that the API asks for halts all sources."""
        return self._halt or (Halt.BUSY if self._rate.impatience else None)

    @property
    def halt_reason(self) -> str:
        """The halt in words."""
        return self._halt_reason or self._rate.impatience

    @property
    def in_flight(self) -> int:
        """The number of requests under way."""
        return self._rate.in_flight

    @property
    def waiting(self) -> int:
        """The number of jobs that wait to be sent."""
        return len(self._ready)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, and nothing will be without more jobs."""
        is_done = not self._ready or self.halt is not None or self._rate.budget.is_spent
        return self.in_flight == 0 and is_done

    def offer(self, targets: Iterable[Target]) -> None:
        """Queue runs."""
        self._ready.extend(map(Job, targets))

    def drop(self) -> list[Job]:
        """Remove the queued runs, and return them."""
        dropped = [job for job in self._ready if not job.is_control]
        self._ready = deque(job for job in self._ready if job.is_control)
        return dropped

    def take(self, now: float) -> Job | None:
        """Return a job that may be sent `now` (seconds of any steady clock), if there is one."""
        if self.wait_s(now) != 0:
            return None
        job = self._ready.popleft()
        job.attempts += 1
        job.is_probe = self._is_probing
        job.error = None
        self._rate.send()
        return job

    def wait_s(self, now: float) -> float | None:
        """Return in how many seconds `take` may succeed; None: not before a job comes back."""
        if self.halt or not self._ready or self._rate.budget.is_out:
            return None
        is_closed = self._is_probing and (self.in_flight or not self._may_probe)
        return None if is_closed or not self._rate.has_room else self._rate.wait_s(now)

    def asks_in_s(self, now: float) -> float | None:
        """Return in how many seconds `ask_permits` has something to say; None: not yet."""
        if self._is_report_due:
            return 0.0
        is_barred = self._is_probing and not self._may_probe
        is_needed = is_barred or self._rate.budget.is_out or self._rate.is_low(now)
        if self._is_asking or not is_needed:
            return None
        is_over = self.halt or not self._ready or self._rate.budget.is_spent
        is_closed = not self._rate.has_room or (self._is_probing and self.in_flight)
        if is_over or is_closed:
            return None
        return max(self._rate.pause_s(now), self._ask_not_before - now)

    def ask_permits(self, source: str, now: float) -> PermitAsk | None:
        """Return what has to be asked or reported now, if anything."""
        if self.asks_in_s(now) != 0:
            return None
        is_report, self._is_report_due = self._is_report_due, False
        self._is_asking = self._is_asking or not is_report
        rate = self._rate
        return PermitAsk(
            source,
            0 if is_report else min(rate.connections - rate.in_flight, len(self._ready)),
            self._is_probing,
            rate.connections,
            rate.in_flight,
            rate.budget.sent,
            self._answered_at,
            self._heard_until,
            self._halt if self._halt in {Halt.REFUSED, Halt.DOWN} else None,
            self._halt_reason,
        )

    def permit(self, permits: Permits, now: float) -> None:
        """Take permits, and heed what other workers heard of the API."""
        self._set_connections(permits.connections)
        if permits.allowed is not None:
            self._rate.budget.allow(permits.allowed.requests, is_last=permits.allowed.is_last)
        if permits.begins_at is not None:
            self._may_probe = permits.may_probe
            self._is_asking = False
            if permits.length_s:
                self._rate.permit(permits.begins_at, permits.length_s)
            else:
                self._ask_not_before = permits.begins_at
        if permits.asked_until > now:
            self._rate.obey_retry_after(permits.asked_until - now, now)
        if permits.halt:
            self.stop(permits.halt, permits.halt_reason)
        if permits.answered_at > max(self._failed_at, now - ANSWER_COUNTS_S):
            self._open_up()

    def _set_connections(self, connections: int) -> None:
        is_fewer = connections < self._rate.connections
        self._rate.connections = connections
        self._is_report_due |= is_fewer and self._rate.in_flight <= connections

    def record(self, job: Job, signal: Signal, error: TransientError | None, now: float) -> None:
        """Take a job back with the signal of its attempt; `error` comes with all but RESULT."""
        self._rate.receive()
        # Other workers may use a connection that is beyond our share, once it is free.
        self._is_report_due |= self._rate.in_flight == self._rate.connections
        job.error = error
        was_halted = self.halt
        self._judge(job, signal, now)
        if self._is_probing and signal is not Signal.NO_REQUEST:
            self._failed_at = now
        if error and error.wait_s:
            self._heard_until = max(self._heard_until, now + error.wait_s)
        self._is_report_due |= self.halt is not was_halted or bool(error and error.wait_s)

    def _judge(self, job: Job, signal: Signal, now: float) -> None:
        """Decide what the signal of a job's attempt says of the API."""
        if job.is_control:
            self._is_control_out = False
            self._control_row = self._control_row + 1 if signal is Signal.RESULT else 0
        match signal:
            case Signal.RESULT:
                self._close_circuit(job, now)
            case Signal.NO_RESULT:
                self._count_no_result(job)
            case Signal.TRANSIENT:
                self._retry(job, now)
            case Signal.DENIED:
                self._deny(job)
            case Signal.KEY_REFUSED:
                self.stop(Halt.REFUSED, job.error.message if job.error else "")
            case Signal.NO_RESOURCES:
                self._exhausted.append(job)
                self.stop(Halt.NO_RESOURCES, job.error.message if job.error else "")
            case Signal.NO_REQUEST:
                self._finish_job(job)

    def _close_circuit(self, job: Job, now: float) -> None:
        """Note an answer that shows the API alive and the key accepted."""
        self._results += 1
        self._answered_at = now
        self._finish_job(job)
        self._open_up()

    def _open_up(self) -> None:
        """Use all connections: this worker, or another one, got a result."""
        self._has_heard = True
        self._is_probing = False
        self._failed_probes = []
        self._without_result = []
        self._decide_denied()

    def _count_no_result(self, job: Job) -> None:
        """Hold a job back until a result shows that its answer is its own fault."""
        self._is_probing = True
        self._without_result.append(job)
        if job.is_control:
            self._controls_left = 0
        else:
            self._exhausted.append(job)
        if error := job.error:
            self._rotate(error.chance)
        if self._ask_before(len(self._without_result), NO_RESULTS):
            return
        if len(self._without_result) >= NO_RESULTS and job.error:
            reason = f"the last {NO_RESULTS} answers were no results: {job.error.message}"
            self.stop(Halt.DOWN, reason)
        else:
            self._bound_held_back()

    def _deny(self, job: Job) -> None:
        """Note a 403: this run's failure, unless a pass begins with nothing else."""
        self._failed_probes = []
        self._denied.append(job)
        if self._has_heard:
            self._is_probing = False
            self._decide_denied()
            return
        # A key that may not read still reads with a token: ask for a run that has one next.
        token_is_next = self._bring_token_to_front()
        is_tried = any(each.target.read_token for each in self._denied) or not token_is_next
        if is_tried and len(self._denied) >= DENIED_AT_FIRST:
            self.stop(
                Halt.REFUSED, f"the first {DENIED_AT_FIRST} answers were all 403; {DENIED_REMEDY}"
            )

    def _retry(self, job: Job, now: float) -> None:
        """Try again after a transient error, later in this pass or in another one."""
        error = job.error
        if error is None:
            raise ValueError("a transient signal comes with its error")
        if error.is_busy:
            self._has_heard = True
            self._failed_probes = []
        else:
            # Requests under way when the failure began are part of it, and no further evidence.
            self._failed_probes += [job] * job.is_probe
            self._is_probing = True
            self._rotate(error.chance)
        self._pause(job, error, now)
        is_asked = self._ask_before(len(self._failed_probes), FAILED_PROBES)
        if self._is_down() and not is_asked:
            self.stop(Halt.DOWN, error.message)
        if job.is_control:
            self._controls_left = 0
        elif self.halt is None and job.attempts < self._limits.attempts:
            self._ready.append(job)
        else:
            self._exhausted.append(job)
            self._bound_held_back()

    def _rotate(self, chance: float) -> None:
        """Make any run the next probe.

        A few bad runs ahead of all others would otherwise look like an API that is down, today
        and in each pass to come.
        """
        self._ready.rotate(-int(chance * len(self._ready)))

    def ask_control(self) -> bool:
        """Queue the control when nothing else is left; return whether it is queued.

        Its answers tell failures of the runs from a failure of the API.
        """
        is_needed = bool(self._exhausted) and not self._is_api_well
        is_open = self.is_idle and self.halt is None and not self._rate.budget.is_spent
        return is_needed and is_open and self._queue_control()

    def _ask_before(self, row: int, longest: int) -> bool:
        """Queue the control ahead of all others where a row of failures is about to be complete."""
        return row == longest - 1 and self._queue_control()

    def _queue_control(self) -> bool:
        if self._control is None or not self._controls_left or self._is_control_out:
            return False
        self._controls_left -= 1
        self._is_control_out = True
        self._ready.appendleft(Job(self._control, is_control=True))
        return True

    @property
    def _is_api_well(self) -> bool:
        """Whether failures are the runs' own: the API answers the control, or most others."""
        if self._control is not None:
            return self._control_row >= CONTROLS_IN_A_ROW
        return self._results >= RESULTS_FOR_ONE * len(self._exhausted)

    def stop(self, halt: Halt, reason: str) -> None:
        """Hand out no more jobs; the first reason counts."""
        if self.halt is None:
            self._halt, self._halt_reason = halt, reason

    def finish(self) -> None:
        """Decide about the jobs held back, when there is nothing left to learn from."""
        silent = [job for job in self._exhausted if job not in self._without_result]
        if self.halt is None and silent and not self._has_heard and not self._denied:
            error = silent[-1].error
            self.stop(Halt.DOWN, error.message if error else "")
        if self.halt is None:
            self._decide_denied()
            self._decide_exhausted()

    def deferred(self) -> list[Job]:
        """Return, after a halt, the jobs with a transient error: they stay due."""
        if self.halt not in {Halt.DOWN, Halt.BUSY, Halt.NO_RESOURCES}:
            return []
        return [job for job in (*self._exhausted, *self._ready) if job.error]

    def take_finished(self) -> list[Job]:
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

    def _decide_denied(self) -> None:
        for job in self._denied:
            self._finish_job(job)
        self._denied = []

    def _bound_held_back(self) -> None:
        if self.halt is None and self._has_heard and len(self._exhausted) >= MOST_HELD_BACK:
            self._decide_exhausted()

    def _decide_exhausted(self) -> None:
        """End the failing jobs. A wait that the API asks for is never a run's own failure."""
        is_api_well = self._is_api_well
        for job in self._exhausted:
            job.is_own = is_api_well and not (job.error and job.error.is_busy)
            self._finish_job(job)
        self._exhausted = []

    def _finish_job(self, job: Job) -> None:
        if not job.is_control:
            self._finished.append(job)

    def _pause(self, job: Job, error: TransientError, now: float) -> None:
        steps = max(len(self._failed_probes), job.attempts) - 1
        pauses = self._limits.pauses
        pause_s = min(pauses.first_s * 2**steps, pauses.longest_s) * (1 - error.chance / 2)
        self._rate.pause(now + pause_s)
        if error.wait_s is not None:
            self._rate.obey_retry_after(error.wait_s, now)
