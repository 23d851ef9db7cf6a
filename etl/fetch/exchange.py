"""Where the fetching threads get their jobs and hand in what came of them.

One lock guards the decisions (`dispatch`): each thread takes its next job as it hands the last
one in, so that between two requests no other thread has to be woken.
"""

import threading
import time
from collections.abc import Sequence

from etl.answers.outcome import (
    Answer,
    Deferred,
    Denied,
    Fetched,
    Outcome,
    Postponed,
    Refused,
    Reject,
    Returned,
    Target,
    Trouble,
)
from etl.errors import KeyRefusedError
from etl.fetch.dispatch import Crew, Dispatcher, Halt, Job, Limits, Pace

FULL_RUNS = 250
FULL_BYTES = 640 * 1024
"""So many outcomes are worth a transaction."""


class Exchange:
    """The jobs of a pass, and the outcomes that wait to be written.

    `news` is set when the pass has something to do: a batch is full, or jobs run out. While
    `most_batches` are not yet written, nothing more is fetched. Once taken, a batch counts as one,
    whatever is in it: so the next one can be filled, and whoever writes finds it ready.
    """

    def __init__(self, limits: Limits, most_batches: int) -> None:
        self.news = threading.Event()
        self._changed = threading.Condition()
        self._sources = _Sources(limits)
        self._most_batches = most_batches
        self._crew = Crew(limits.connections)
        self._outcomes: dict[Job, Outcome | Fetched] = {}
        self._batch: list[Outcome | Fetched] = []
        self._batch_bytes = 0
        self._unwritten = 0
        self._begun_at = 0.0
        self._low_mark = -1
        self._is_closed = False
        self._is_timed = False

    # --- for the fetching threads ---

    def first(self) -> Job | None:
        """Wait for a job and return it; None when the pass is over."""
        with self._changed:
            return self._next()

    def swap(self, job: Job, returned: Returned) -> Job | None:
        """Hand in what came of a job, and wait for the next one; None when the pass is over."""
        with self._changed:
            self._judge(job, returned)
            self._collect()
            if self._has_news():
                self.news.set()
            return self._next()

    def _next(self) -> Job | None:
        while not self._is_closed:
            now = time.monotonic()
            if self._crew.is_due(now):
                self._crew.review(now, time.process_time())
            if self._is_stalled:
                self._crew.pause()
            wait_s = self._wait_s(now)
            if wait_s == 0:
                job = self._sources.take(now)
                if self._wait_s(now) is not None:
                    self._changed.notify()  # whoever waits finds one more, now or soon
                return job
            self._wait(wait_s)
        return None

    def _wait_s(self, now: float) -> float | None:
        if self._is_stalled or self._sources.pace.in_flight >= self._crew.size:
            return None
        return self._sources.wait_s(now)

    @property
    def _is_stalled(self) -> bool:
        """Whether so much is not yet written that nothing more is fetched."""
        return self._unwritten + self._filled >= self._most_batches

    def _wait(self, wait_s: float | None) -> None:
        """Wait for a change, or for the next job's time, which one thread does for all."""
        if wait_s is None or self._is_timed:
            self._changed.wait()
            return
        self._is_timed = True
        self._changed.wait(wait_s)
        self._is_timed = False

    def _judge(self, job: Job, returned: Returned) -> None:
        dispatcher = self._sources.of(job.target)
        match returned:
            case Trouble():
                dispatcher.troubled(job, returned, time.monotonic())
            case Denied():
                dispatcher.denied(job, returned.reason)
            case KeyRefusedError():
                dispatcher.returned()
                dispatcher.stop(Halt.REFUSED, str(returned))
            case Postponed():
                self._outcomes[job] = returned
                dispatcher.set_aside(job)
            case _:
                self._outcomes[job] = returned
                dispatcher.answered(job)

    def _collect(self) -> None:
        """Add the runs whose end is decided to the batch."""
        for job in self._sources.finished():
            outcome = self._outcomes.pop(job, None)
            if outcome is None and job.denial:
                outcome = Refused(job.target.run_id, job.denial)
            elif outcome is None and job.trouble:
                outcome = Postponed(job.target.run_id, job.trouble)
            if outcome is not None:
                self._add(outcome)

    def _add(self, outcome: Outcome | Fetched) -> None:
        if not self._batch:
            self._begun_at = time.monotonic()
        self._batch.append(outcome)
        self._batch_bytes += _size(outcome)

    def _has_news(self) -> bool:
        is_low = self._sources.waiting <= self._low_mark
        return is_low or self._filled > 0 or self._sources.is_idle

    # --- for the process that fetches ---

    @property
    def requests(self) -> int:
        """How many requests were sent."""
        return self._sources.pace.sent

    def heed(self, wait_s: float) -> None:
        """Send nothing for as long as the API asked an earlier pass to wait."""
        with self._changed:
            self._sources.pace.heed(wait_s, time.monotonic())

    @property
    def asked_wait_s(self) -> float:
        """How long the API still wants to be left alone."""
        return self._sources.pace.asked_wait_s(time.monotonic())

    def offer(self, targets: Sequence[Target]) -> None:
        """Take runs over that are to be fetched."""
        with self._changed:
            self._sources.offer(targets)
            self._changed.notify()

    def needs(self, low_mark: int) -> bool:
        """Tell whether no more than `low_mark` jobs wait; if not, `news` will tell it then."""
        with self._changed:
            is_low = self._sources.waiting <= low_mark and not self._sources.pace.is_spent
            self._low_mark = -1 if is_low else low_mark
            return is_low

    @property
    def is_spent(self) -> bool:
        """Whether all requests were sent that the pass may send."""
        return self._sources.pace.is_spent

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, and nothing will be without more jobs."""
        with self._changed:
            return self._sources.is_idle

    def halted(self) -> list[str]:
        """Return the sources that are not asked any more."""
        with self._changed:
            return self._sources.halted()

    def interrupt(self, reason: str) -> None:
        """Have no more jobs taken."""
        with self._changed:
            self._sources.interrupt(reason)

    def take_batch(self, at_least_every_s: float) -> list[Outcome | Fetched]:
        """Return the outcomes that are to be written now: many, or some that wait for long.

        Those go on waiting, and become more, while nobody is free to write them.
        """
        with self._changed:
            is_late = time.monotonic() - self._begun_at > at_least_every_s
            is_somebody_free = self._unwritten < self._most_batches - 1
            is_wanted = self._filled or (is_late and is_somebody_free)
            taken = self._taken() if is_wanted else []
            self._changed.notify()  # what was worth several batches counts as one from now on
            return taken

    def written(self) -> None:
        """Note that a batch is out of the way."""
        with self._changed:
            self._unwritten -= 1
            self._changed.notify()

    def close(self) -> list[Outcome | Fetched]:
        """End the pass: let the threads go, and return what is left to be written.

        Runs that met a halt stay due, and say why.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._sources.finish()
            self._collect()
            for job in self._sources.deferred():
                if job.trouble:
                    wait_s = job.trouble.wait_s or 0
                    deferred = Deferred(job.target.run_id, job.trouble.reason, wait_s)
                    self._add(deferred)
            return self._taken()

    def worst_halt(self) -> tuple[Halt | None, str]:
        """Return the halt that the pass's exit code tells of, and why."""
        return self._sources.worst_halt()

    @property
    def _filled(self) -> int:
        """How many batches the outcomes that nobody has taken yet are worth."""
        return max(len(self._batch) // FULL_RUNS, self._batch_bytes // FULL_BYTES)

    def _taken(self) -> list[Outcome | Fetched]:
        taken, self._batch, self._batch_bytes = self._batch, [], 0
        self._unwritten += bool(taken)
        return taken


def _size(outcome: Outcome | Fetched) -> int:
    """Return how many bytes of the API's an outcome keeps in memory."""
    match outcome:
        case Answer() | Fetched():
            return outcome.body.size
        case Reject():
            return len(outcome.body)
        case _:
            return 0


class _Sources:
    """A dispatcher for each source, so that one account's trouble is not another's; one pace."""

    def __init__(self, limits: Limits) -> None:
        self.pace = Pace(limits)
        self._limits = limits
        self._by_source: dict[str, Dispatcher] = {}
        self._interruption = ""

    def of(self, target: Target) -> Dispatcher:
        """Return the dispatcher of a run's source."""
        if target.source not in self._by_source:
            self._by_source[target.source] = Dispatcher(self._limits, self.pace)
        return self._by_source[target.source]

    def halted(self) -> list[str]:
        """Return the sources that are not asked any more."""
        return [source for source, each in self._by_source.items() if each.halt is not None]

    @property
    def waiting(self) -> int:
        """How many jobs wait to be sent, halted ones left out."""
        return sum(each.waiting for each in self._by_source.values() if each.halt is None)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, and nothing will be without more jobs."""
        return all(each.is_idle for each in self._by_source.values())

    def offer(self, targets: Sequence[Target]) -> None:
        """Take runs over that are to be fetched."""
        for target in targets:
            self.of(target).offer([target])

    def take(self, now: float) -> Job | None:
        """Return a job of any source that may be sent now."""
        return next(filter(None, (each.take(now) for each in self._by_source.values())), None)

    def wait_s(self, now: float) -> float | None:
        """Return in how many seconds `take` may succeed."""
        waits = (each.wait_s(now) for each in self._by_source.values())
        return min((wait_s for wait_s in waits if wait_s is not None), default=None)

    def interrupt(self, reason: str) -> None:
        """Stop all of them, and whichever comes later."""
        for each in self._by_source.values():
            each.stop(Halt.INTERRUPTED, reason)
        self._interruption = reason

    def finish(self) -> None:
        """Decide about the jobs held back."""
        for each in self._by_source.values():
            each.finish()

    def finished(self) -> list[Job]:
        """Return the jobs decided since the last call."""
        return [job for each in self._by_source.values() for job in each.finished()]

    def deferred(self) -> list[Job]:
        """Return the jobs that met a halt while in trouble."""
        return [job for each in self._by_source.values() for job in each.deferred()]

    def worst_halt(self) -> tuple[Halt | None, str]:
        """Return the halt that the pass's exit code tells of, and why."""
        if self._interruption:
            return Halt.INTERRUPTED, self._interruption
        for halt in (Halt.REFUSED, Halt.DOWN, Halt.BUSY):
            for source, each in self._by_source.items():
                if each.halt is halt:
                    is_only = len(self._by_source) == 1
                    return halt, each.halt_reason if is_only else f"{source}: {each.halt_reason}"
        return None, ""
