"""One pass: claim what is due, fetch it, make rows of it, store it, and say what happened.

The main thread decides (by `dispatch`), worker threads fetch and decode (`fetcher`), one thread
writes (`keeper`). Only claimed runs are in memory, and only so many of them.
"""

import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, NamedTuple, ParamSpec, TypeVar

from sqlalchemy import Engine
from structlog.contextvars import bind_contextvars, bound_contextvars, get_contextvars

from etl import clock
from etl.config import Config
from etl.dispatch import Dispatcher, Halt, Job, Limits, Pace, Trouble
from etl.errors import ArchiverError, DatabaseError, KeyRefusedError
from etl.fetcher import Clients, Fetcher
from etl.keeper import Keeper, Tally
from etl.ledger import Claim
from etl.log import get_logger
from etl.outcome import Deferred, Denied, Outcome, Postponed, Refused, Returned
from etl.store import Answer, Reject

P = ParamSpec("P")
T = TypeVar("T")

CLAIM_AT_LEAST = 200
FLUSH_RUNS = 200
FLUSH_BYTES = 8 * 1_048_576
FLUSH_EVERY_S = 1.0
WAITING_WRITES = 2
"""With more batches than this waiting to be written, nothing more is fetched."""
TICK_S = 0.1
"""How often signals are heeded and the database thread is looked after, at the least."""
PATIENCE_S = 60.0
"""How long a pass waits for a database that went away, asking every `RETRY_S`."""
RETRY_S = 0.5
GRACE_S = 6.0
"""How long runs under way may take to come back after a signal."""

log = get_logger()

Progress = Callable[[int, int], None]
"""Called with (runs done, runs due) now and then."""


class Interrupt:
    """Remembers the signal that asked us to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator["Interrupt"]:
        """Take SIGINT and SIGTERM, once each; a second one kills as usual."""
        previous: dict[int, Any] = {}

        def take(number: int, _frame: FrameType | None) -> None:
            self.signal = number
            signal.signal(number, previous[number])

        for wanted in (signal.SIGINT, signal.SIGTERM):
            previous[wanted] = signal.signal(wanted, take)
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class Order(NamedTuple):
    """What sets a pass off, and how many bad lines the lists had that led to it."""

    trigger: str
    bad_lines: int = 0


def run_pass(
    engine: Engine, config: Config, order: Order, progress: Progress, interrupt: Interrupt
) -> Tally:
    """Fetch and store all runs that are due now, and record the pass in `ingests`.

    Raises:
        ConfigError: a source that is due has no key. Nothing was fetched.
        DatabaseError: the database went away. What was stored is whole.
    """
    keeper = Keeper(engine, config.polling, clock.now())
    patience = _Patience()
    keeper.open_ingest(order.trigger)
    tally = keeper.tally
    with bound_contextvars(pass_id=tally.pass_id):
        try:
            clients = Clients(config)
            clients.require(keeper.due_sources())
            _Pass(config, Fetcher(clients, config), keeper, patience).run(progress, interrupt)
            tally.exit_code = exit_code(tally, interrupt) or (1 if order.bad_lines else 0)
        except Exception as error:
            tally.exit_code = error.exit_code if isinstance(error, ArchiverError) else 1
            with suppress(DatabaseError):  # if that is what failed, it is already being raised
                keeper.release()
                keeper.close_ingest()
            raise
        patience.do(keeper.close_ingest)
    return tally


def exit_code(tally: Tally, interrupt: Interrupt) -> int:
    """Return the exit code of a pass; README.md lists them all."""
    match tally.halt:
        case Halt.REFUSED:
            return 3
        case Halt.DOWN | Halt.BUSY:
            return 5
        case Halt.INTERRUPTED:
            return 128 + (interrupt.signal or signal.SIGINT)
        case _:
            return 1 if tally.failed or tally.rejected else 0


class _Pass:
    """One pass under way: its threads, and what goes between them."""

    def __init__(
        self, config: Config, fetcher: Fetcher, keeper: Keeper, patience: "_Patience"
    ) -> None:
        api = config.api
        limits = Limits(
            api.connections,
            api.max_requests_per_second,
            api.attempts,
            api.max_wait_s,
            config.polling.max_requests_per_pass,
        )
        self._dispatchers = _Dispatchers(limits)
        self._intake = _Intake(keeper, api.connections)
        self._fetcher = fetcher
        self._keeper = keeper
        self._patience = patience
        self._connections = api.connections
        self._todo: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._returned: queue.SimpleQueue[tuple[Job, Returned] | None] = queue.SimpleQueue()
        self._outcomes: dict[Job, Outcome] = {}
        self._interrupted_at: float | None = None

    def run(self, progress: Progress, interrupt: Interrupt) -> None:
        total = self._keeper.due_now()
        tally = self._keeper.tally
        workers = min(self._connections, max(total, 1))
        logged = get_contextvars()  # which no thread inherits
        with (
            _workers(workers, self._work, self._todo),
            ThreadPoolExecutor(1, initializer=partial(bind_contextvars, **logged)) as executor,
        ):
            writer = _Writer(
                self._keeper,
                do_later=lambda task: executor.submit(self._patience.do, task),
                wake=lambda: self._returned.put(None),
            )
            while self._step(writer, interrupt):
                progress(tally.done, total)
            self._dispatchers.finish()
            self._collect(writer)
            self._defer(writer)
            writer.finish()
            writer.submit(self._keeper.release).result()
        tally.requests = self._dispatchers.pace.sent
        tally.halt, tally.halt_reason = self._dispatchers.worst_halt()
        progress(tally.done, total)

    def _work(self) -> None:
        while job := self._todo.get():
            self._returned.put((job, self._fetcher.fetch(job.claim)))

    def _step(self, writer: "_Writer", interrupt: Interrupt) -> bool:
        """Do what can be done now, then wait for something to happen; False at the end."""
        self._heed(interrupt)
        self._patience.is_over |= self._interrupted_at is not None
        if self._interrupted_at is None:
            self._intake.feed(self._dispatchers, writer)
        while writer.has_room and (job := self._dispatchers.take(time.monotonic())):
            self._todo.put(job)
        if self._is_over():
            return False
        self._receive()
        self._collect(writer)
        writer.tend()
        return True

    def _is_over(self) -> bool:
        if self._interrupted_at and time.monotonic() - self._interrupted_at > GRACE_S:
            return True
        is_last = self._interrupted_at is not None or self._intake.is_exhausted
        return is_last and self._dispatchers.is_idle

    def _heed(self, interrupt: Interrupt) -> None:
        if interrupt.signal and self._interrupted_at is None:
            self._interrupted_at = time.monotonic()
            self._dispatchers.interrupt(signal.Signals(interrupt.signal).name)

    def _receive(self) -> None:
        """Wait until a job or the database is back, or the next job's time; take all that is."""
        wait_s = self._dispatchers.wait_s(time.monotonic())
        try:
            returned = self._returned.get(timeout=TICK_S if wait_s is None else min(wait_s, TICK_S))
            while True:
                if returned is not None:
                    self._judge(*returned)
                returned = self._returned.get_nowait()
        except queue.Empty:
            return

    def _judge(self, job: Job, returned: Returned) -> None:
        dispatcher = self._dispatchers.of(job.claim)
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

    def _collect(self, writer: "_Writer") -> None:
        """Hand over the runs whose end is decided."""
        for job in self._dispatchers.finished():
            outcome = self._outcomes.pop(job, None)
            if outcome is None and job.denial:
                outcome = Refused(job.claim.run_id, job.denial)
            elif outcome is None and job.trouble:
                outcome = Postponed(job.claim.run_id, job.trouble)
            if outcome is not None:
                writer.add(job.claim, outcome)

    def _defer(self, writer: "_Writer") -> None:
        """Hand over the runs that met a halt: they stay due, and say why."""
        for job in self._dispatchers.deferred():
            if job.trouble:
                wait_s = job.trouble.wait_s or 0
                writer.add(job.claim, Deferred(job.claim.run_id, job.trouble.reason, wait_s))


class _Dispatchers:
    """A dispatcher for each source, so that one account's trouble is not another's; one pace."""

    def __init__(self, limits: Limits) -> None:
        self.pace = Pace(limits)
        self._limits = limits
        self._by_source: dict[str, Dispatcher] = {}
        self._interruption = ""

    def of(self, claim: Claim) -> Dispatcher:
        """Return the dispatcher of a run's source."""
        if claim.source not in self._by_source:
            self._by_source[claim.source] = Dispatcher(self._limits, self.pace)
        return self._by_source[claim.source]

    @property
    def halted(self) -> list[str]:
        """The sources that are not asked any more."""
        return [source for source, each in self._by_source.items() if each.halt is not None]

    @property
    def waiting(self) -> int:
        """How many jobs wait to be sent, halted ones left out."""
        return sum(each.waiting for each in self._by_source.values() if each.halt is None)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, and nothing will be without more jobs."""
        return all(each.is_idle for each in self._by_source.values())

    def offer(self, claims: list[Claim]) -> None:
        """Take runs over that are to be fetched."""
        for claim in claims:
            self.of(claim).offer([claim])

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


class _Intake:
    """Claims due runs as the dispatchers get through them."""

    def __init__(self, keeper: Keeper, connections: int) -> None:
        self.is_exhausted = False
        self._keeper = keeper
        self._size = max(CLAIM_AT_LEAST, 4 * connections)
        self._claiming: Future[list[Claim]] | None = None

    def feed(self, dispatchers: _Dispatchers, writer: "_Writer") -> None:
        """Take over what was claimed, and have more claimed before the dispatchers run dry."""
        if self._claiming is not None and self._claiming.done():
            claims, self._claiming = self._claiming.result(), None
            self.is_exhausted = not claims
            dispatchers.offer(claims)
        self.is_exhausted |= dispatchers.pace.is_spent
        if self._claiming is not None or self.is_exhausted:
            return
        if dispatchers.waiting < self._size // 2:
            self._claiming = writer.submit(self._keeper.claim, self._size, dispatchers.halted)


class _Patience:
    """Does things in the database, again and again while it is away, for `PATIENCE_S` at most.

    Each is one transaction that does nothing the second time: the leases tell what was done
    already.
    """

    def __init__(self) -> None:
        self.is_over = False

    def do(self, task: Callable[[], T]) -> T:
        """Return what `task` returns. Raises DatabaseError: for good, or it has been too long."""
        away_since: float | None = None
        while True:
            try:
                result = task()
            except DatabaseError as error:
                now = time.monotonic()
                away_since = away_since or now
                if self.is_over or not error.is_passing or now - away_since > PATIENCE_S:
                    self.is_over = True  # what waits behind this need not be patient again
                    raise
                if away_since == now:
                    log.warning("database away, trying again", reason=str(error))
                time.sleep(RETRY_S)
            else:
                if away_since is not None:
                    log.info("database back", after_s=round(time.monotonic() - away_since, 1))
                return result


class _Writer:
    """Gathers outcomes and has them written in batches by the one thread that writes.

    `wake` is called whenever that thread has done something.
    """

    def __init__(
        self,
        keeper: Keeper,
        do_later: Callable[[Callable[[], Any]], Future[Any]],
        wake: Callable[[], None],
    ) -> None:
        self._keeper = keeper
        self._do_later = do_later
        self._wake = wake
        self._batch: dict[Claim, Outcome] = {}
        self._batch_bytes = 0
        self._begun_at = 0.0
        self._writes: deque[Future[None]] = deque()
        self._renewal: Future[None] | None = None

    @property
    def has_room(self) -> bool:
        """Whether the database keeps up."""
        return len(self._writes) <= WAITING_WRITES

    def submit(self, task: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have the writing thread do `task` in its turn."""
        future: Future[T] = self._do_later(partial(task, *args, **kwargs))
        future.add_done_callback(lambda _: self._wake())
        return future

    def add(self, claim: Claim, outcome: Outcome) -> None:
        """Take over an outcome; it is written within a second or so."""
        if not self._batch:
            self._begun_at = time.monotonic()
        self._batch[claim] = outcome
        if isinstance(outcome, Answer):
            self._batch_bytes += outcome.body.size
        elif isinstance(outcome, Reject):
            self._batch_bytes += len(outcome.body)

    def tend(self) -> None:
        """Write a batch that is due, renew the lease, and learn of failed writes."""
        is_late = time.monotonic() - self._begun_at > FLUSH_EVERY_S
        if is_late or len(self._batch) >= FLUSH_RUNS or self._batch_bytes >= FLUSH_BYTES:
            self._flush()
        if self._keeper.lease_is_old() and (self._renewal is None or self._renewal.done()):
            self._renewal = self.submit(self._keeper.renew)
            self._writes.append(self._renewal)
        while self._writes and self._writes[0].done():
            self._writes.popleft().result()

    def finish(self) -> None:
        """Write what is left, and wait for it."""
        self._flush()
        while self._writes:
            self._writes.popleft().result()

    def _flush(self) -> None:
        if self._batch:
            self._writes.append(self.submit(self._keeper.keep, self._batch))
            self._batch, self._batch_bytes = {}, 0


@contextmanager
def _workers(
    count: int, work: Callable[[], None], todo: "queue.SimpleQueue[Job | None]"
) -> Iterator[None]:
    """Run `work` in daemon threads: one that hangs in a request does not keep the process."""
    for number in range(count):
        threading.Thread(target=work, name=f"fetch-{number}", daemon=True).start()
    try:
        yield
    finally:
        for _ in range(count):
            todo.put(None)
