"""The threads that fetch, and their outcomes that wait to be committed.

One lock guards the breakers' decisions and the outcomes: a thread takes its next job when it hands
the last one in, so that between two requests no other thread has to be woken.
"""

import threading
import time
from collections.abc import Sequence
from typing import Protocol

from msgspec import Raw, msgpack

from etl.answers.outcome import Target
from etl.fetch.breaker import Job
from etl.fetch.fetcher import Attempt, pack_deferred, pack_outcome
from etl.fetch.messages import Ask, Batch, Begin, End, TargetAsk
from etl.fetch.permits import Permits
from etl.fetch.rate_limit import Concurrency
from etl.fetch.sources import Sources


class Fetcher(Protocol):
    """Sends one request; `RunFetcher` outside of tests."""

    def fetch(self, target: Target) -> Attempt:
        """Send one request, and return the attempt."""

    def close(self) -> None:
        """Close all connections."""


class FetchPool:
    """Fetches for one pass. `receive` is called by one thread, `give` and `done` by any."""

    def __init__(self, begin: Begin, fetcher: Fetcher) -> None:
        self._begin = begin
        self._fetcher = fetcher
        self._sources = Sources(begin.limits, begin.controls)
        self._lock = threading.Lock()
        self._jobs = threading.Condition(self._lock)
        """Notified when a job may be ready, for the threads that fetch."""
        self._news = threading.Condition(self._lock)
        """Notified when `receive` may have something to return."""
        most = begin.limits.connections * begin.sources
        self._concurrency = Concurrency(most)
        self._attempts: dict[Job, Attempt] = {}
        self._batch = _OpenBatch()
        self._uncommitted = 0
        self._is_asking = False
        self._asked_without: list[str] = []
        self._dropped: list[str] = []
        """Targets that were dropped, and that the pass does not know of yet."""
        self._left: set[str] | None = None
        """The sources of which more runs may be due; None: any."""
        self._is_closed = False
        self._is_timed = False
        self._bug: Exception | None = None
        for number in range(max(1, min(most, begin.due))):
            # Daemons: a thread that hangs in a request must not keep the process alive.
            threading.Thread(target=self._fetch, name=f"fetch-{number}", daemon=True).start()

    # --- for the pass ---

    def receive(self) -> Ask | Batch:
        """Wait for a message to the pass, and return it. The last one is a batch with its end."""
        with self._lock:
            while (message := self._next_message()) is None:
                self._news.wait(self._news_in_s)
            return message

    def give(self, targets: Sequence[Target]) -> None:
        """Queue the targets that were asked for."""
        with self._lock:
            self._is_asking = False
            if not targets and not self._dropped:
                self._left = set(self._asked_without)
            self._sources.offer(targets)
            self._jobs.notify()
            self._news.notify()

    def drop(self) -> None:
        """Drop the targets that wait; `TargetAsk` tells which, and asks for others instead."""
        with self._lock:
            for job in self._sources.drop():
                self._attempts.pop(job, None)
                self._dropped.append(job.target.run_id)
            self._left = None
            self._news.notify()

    def permit(self, permits: Permits) -> None:
        """Take permits to send requests."""
        with self._lock:
            self._sources.permit(permits, time.monotonic())
            self._jobs.notify()
            self._news.notify()

    def done(self) -> None:
        """Count a batch as committed: the credit for another one."""
        with self._lock:
            self._uncommitted -= 1
            self._jobs.notify()
            self._news.notify()

    def stop(self) -> None:
        """Start no more requests, and wait for those under way."""
        with self._lock:
            self._sources.interrupt()
            self._news.notify()

    def give_up(self) -> None:
        """Tell the threads to end, without waiting: they are daemons, and may hang in a request."""
        with self._lock:
            self._is_closed = True
            self._jobs.notify_all()
            self._news.notify()

    def close(self) -> None:
        """End the threads, and close all connections."""
        self.give_up()
        self._fetcher.close()

    def _next_message(self) -> Ask | Batch | None:
        if self._bug is not None:
            raise self._bug
        if self._permits_in_s == 0 and (ask := self._sources.ask_permits(time.monotonic())):
            return Ask(permits=ask)
        if self._is_over:
            if self._is_closed or self._is_stopped or not self._sources.ask_controls():
                return self._last_batch()
            self._jobs.notify()
        if self._is_batch_due:
            return self._take_batch()
        if not self._is_asking and self._is_low:
            self._is_asking = True
            self._asked_without = self._sources.full(self._begin.low_mark)
            dropped, self._dropped = self._dropped, []
            return Ask(TargetAsk(2 * self._begin.low_mark, self._asked_without, dropped))
        return None

    @property
    def _is_over(self) -> bool:
        if self._is_closed:
            return True
        is_last = self._left is not None and self._left <= set(self._sources.halted())
        return (is_last or self._is_stopped) and not self._is_asking and self._sources.is_idle

    @property
    def _is_stopped(self) -> bool:
        return self._sources.is_interrupted or self._sources.budget.is_spent

    @property
    def _is_low(self) -> bool:
        """Whether one of the sources of which more runs may be due has few waiting."""
        if self._is_stopped or self._left == set():
            return False
        full, halted = set(self._sources.full(self._begin.low_mark)), self._sources.halted()
        if self._left is not None:
            return not self._left <= full
        return len(full) < self._begin.sources or full <= set(halted)

    @property
    def _is_batch_due(self) -> bool:
        """Whether to send a batch: a full one, or an old one if nothing waits to be committed."""
        if self._filled:
            return self._uncommitted < self._begin.batches
        return self._late_in_s == 0

    @property
    def _late_in_s(self) -> float | None:
        """In how many seconds the open batch is sent though not full; None: not by its age."""
        if self._uncommitted >= self._begin.batches - 1:
            return None
        return self._batch.late_in_s(self._begin.size.wait_s)

    @property
    def _permits_in_s(self) -> float | None:
        """In how many seconds permits are asked for; None: not before a change."""
        return None if self._is_ahead else self._sources.asks_in_s(time.monotonic())

    @property
    def _news_in_s(self) -> float | None:
        """In how many seconds there may be a message; None: not before a change."""
        waits = [wait_s for wait_s in (self._late_in_s, self._permits_in_s) if wait_s is not None]
        return min(waits, default=None)

    def _take_batch(self) -> Batch:
        taken, self._batch = self._batch, _OpenBatch()
        self._uncommitted += 1
        self._jobs.notify()  # several batches' worth of outcomes count as one from now on
        return Batch(taken.pack(), len(taken.outcomes), self._sources.budget.sent)

    def _last_batch(self) -> Batch:
        """Return the rest. Runs that met a halt stay due, and say why."""
        self._sources.finish()
        self._collect()
        for job in self._sources.deferred():
            attempt = self._attempts[job]
            self._batch.add(pack_deferred(job, attempt), attempt.size)
        batch = self._take_batch()
        end = End(*self._sources.worst_halt())
        return Batch(batch.packed, batch.count, batch.requests, end)

    @property
    def _filled(self) -> int:
        """The number of full batches that the open one is worth."""
        size = self._begin.size
        runs, size_bytes = len(self._batch.outcomes), self._batch.size_bytes
        return max(runs // size.runs, size_bytes // size.size_bytes)

    # --- for the threads that fetch ---

    def _fetch(self) -> None:
        try:
            job = self._take()
            while job:
                job = self._swap(job, self._fetcher.fetch(job.target))
        except Exception as error:  # noqa: BLE001  raised by `receive`: the pass would wait forever
            with self._lock:
                self._bug = error
                self._news.notify()

    def _take(self) -> Job | None:
        """Wait for a job and return it; None when the pass is over."""
        with self._lock:
            return self._next_job()

    def _swap(self, job: Job, attempt: Attempt) -> Job | None:
        """Hand in an attempt, and wait for the next job; None when the pass is over."""
        with self._lock:
            if self._is_closed:
                return None
            self._attempts[job] = attempt
            now = time.monotonic()
            self._sources.of(job.target).record(job, attempt.signal, attempt.error, now)
            self._collect()
            if self._has_news:
                self._news.notify()
            return self._next_job()

    @property
    def _has_news(self) -> bool:
        is_asked = not self._is_asking and self._is_low
        return is_asked or self._filled > 0 or self._sources.is_idle

    def _next_job(self) -> Job | None:
        while not self._is_closed:
            now = time.monotonic()
            if self._concurrency.is_due(now):
                self._concurrency.adapt(now, time.process_time())
            is_ahead = self._is_ahead
            if is_ahead:
                self._concurrency.pause()
            wait_s = self._wait_s(now)
            job = self._sources.take(now) if wait_s == 0 else None
            if not is_ahead and self._sources.asks_in_s(now) is not None:
                self._news.notify()
            if job:
                if self._wait_s(now) is not None:
                    self._jobs.notify()  # the next thread finds a job, now or soon
                return job
            self._wait(wait_s)
        return None

    def _wait_s(self, now: float) -> float | None:
        """Return in how many seconds a job may be taken; None: not before a change."""
        if self._is_ahead or self._sources.budget.in_flight >= self._concurrency.size:
            return None
        return self._sources.wait_s(now)

    @property
    def _is_ahead(self) -> bool:
        """Backpressure: nothing more is fetched while the commits are behind."""
        return self._uncommitted + self._filled >= self._begin.batches

    def _wait(self, wait_s: float | None) -> None:
        """Wait for a change, or for the next job's time, which one thread does for all."""
        if wait_s is None or self._is_timed:
            self._jobs.wait()
            return
        self._is_timed = True
        self._jobs.wait(wait_s)
        self._is_timed = False

    def _collect(self) -> None:
        """Add the outcomes of decided jobs to the open batch."""
        was_empty = not self._batch.outcomes
        for job in self._sources.take_finished():
            attempt = self._attempts.pop(job)
            self._batch.add(pack_outcome(job, attempt), attempt.size)
        if was_empty and self._batch.outcomes:
            self._news.notify()  # it has a batch to wait for


class _OpenBatch:
    """Outcomes that nobody has taken yet."""

    def __init__(self) -> None:
        self.outcomes: list[Raw] = []
        self.size_bytes = 0
        self._begun_at = 0.0

    def add(self, packed: Raw, size_bytes: int) -> None:
        if not self.outcomes:
            self._begun_at = time.monotonic()
        self.outcomes.append(packed)
        self.size_bytes += size_bytes

    def late_in_s(self, wait_s: float) -> float | None:
        """Return in how many seconds the oldest outcome has waited `wait_s`; None without one."""
        if not self.outcomes:
            return None
        return max(0.0, self._begun_at + wait_s - time.monotonic())

    def pack(self) -> Raw:
        return Raw(msgpack.encode(self.outcomes))
