"""One pass: claim what is due, fetch it, make rows of it, store it, and say what happened.

Another process fetches and decodes (`fetch_process`): we offer it runs, and get batches of
outcomes back. Here as many threads write (`keeper`) as the database has use for, and the main
thread sees to it that all have enough to do. Only claimed runs are in memory, and only so many.
"""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from msgspec import Raw
from msgspec.structs import replace
from sqlalchemy import Engine

from etl import clock
from etl.archive import identity
from etl.config.settings import Config, Database, Telemetry
from etl.db import database
from etl.errors import ArchiverError, DatabaseError
from etl.fetch.dispatch import Halt, Limits
from etl.fetch.fetching import Fetching, FetchProcess
from etl.fetch.wire import Begin
from etl.ingest.keeper import Keeper, Tally
from etl.secrets import require_keys
from etl.telemetry.log import bind_context, bound_context, context, get_logger

if TYPE_CHECKING:
    from etl.ledger.ledger import Claim

P = ParamSpec("P")
T = TypeVar("T")

CLAIM_AT_LEAST = 1000
TICK_S = 0.1
"""How often signals are heeded and the writing threads are looked after, at the least."""
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


class Means(NamedTuple):
    """What a pass works with."""

    engine: Engine
    config: Config
    process: FetchProcess


def run_pass(means: Means, order: Order, progress: Progress, interrupt: Interrupt) -> Tally:
    """Fetch and store all runs that are due now, and record the pass in `ingests`.

    Raises:
        ConfigError: a source that is due has no key. Nothing was fetched.
        DatabaseError: the database went away. What was stored is whole.
        FetchingLostError: so did the process that fetches.
    """
    engine, config = means.engine, means.config
    keeper = Keeper(engine, config.polling, clock.now(), config.rules)
    patience = Patience()
    keeper.open_ingest(order.trigger)
    tally = keeper.tally
    with bound_context(pass_id=tally.pass_id):
        try:
            require_keys(config, keeper.due_sources())
            learn = partial(identity.settle_new, engine, zone=config.reporting_zone)
            hands = _Hands(keeper, patience, learn)
            _Pass(means, hands).run(progress, interrupt)
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


class _Hands(NamedTuple):
    """What a pass does in the database: `learn` is told of which applications runs were stored."""

    keeper: Keeper
    patience: "Patience"
    learn: Callable[[Collection[str]], None]


class _Pass:
    """One pass under way: its threads, and what goes between them."""

    def __init__(self, means: Means, hands: _Hands) -> None:
        self._means = means
        self._keeper, self._patience, self._learn = hands
        self._interrupted_at: float | None = None
        self._news = threading.Event()

    def run(self, progress: Progress, interrupt: Interrupt) -> None:
        logged = context()  # which no thread inherits
        threads = database.writers(self._means.engine)
        with ThreadPoolExecutor(threads, initializer=partial(bind_context, **logged)) as executor:
            writers = _Writers(
                do_later=lambda task: executor.submit(self._patience.do, task),
                wake=self._news.set,
            )
            if due := self._keeper.due_now():
                self._fetch(due, writers, partial(self._tell, progress, due), interrupt)
            elif interrupt.signal:
                tally = self._keeper.tally
                tally.halt, tally.halt_reason = Halt.INTERRUPTED, _name_of(interrupt.signal)
            if interrupt.signal is None:
                writers.submit(self._keeper.count).result()

    def _tell(self, progress: Progress, due: int) -> None:
        progress(self._keeper.tally.done, due)

    def _fetch(
        self, due: int, writers: "_Writers", tell: Callable[[], None], interrupt: Interrupt
    ) -> None:
        """Have the due runs fetched and written."""
        begin = _begin(self._means, due, self._keeper.asked_wait_s())
        self._fetching = Fetching(self._means.process.start(), begin, self._news)
        intake = _Intake(self._keeper, self._fetching, writers, 2 * begin.low_mark)
        tally = self._keeper.tally
        try:
            while self._step(intake, writers, interrupt):
                tell()
        finally:
            end = self._fetching.close()
            tally.asked_wait_s = end.asked_wait_s
        self._write(writers, self._fetching.take())
        writers.finish()
        intake.finish()
        writers.submit(self._keeper.release).result()
        tally.requests = self._fetching.requests
        tally.halt, tally.halt_reason = end.halt, end.halt_reason
        tell()

    def _step(self, intake: "_Intake", writers: "_Writers", interrupt: Interrupt) -> bool:
        """Wait for something to happen, and do what can be done now; False at the end."""
        self._heed(interrupt)
        self._patience.is_over |= self._interrupted_at is not None
        if self._interrupted_at is None:
            intake.feed()
        if self._is_over(intake):
            return False
        self._news.wait(TICK_S)
        self._news.clear()
        self._write(writers, self._fetching.take())
        if self._keeper.lease_is_old():
            writers.renew(self._keeper.renew)
        writers.tend()
        return True

    def _write(self, writers: "_Writers", batches: list[Raw]) -> None:
        for batch in batches:
            writers.write(partial(self._keep, batch))

    def _keep(self, batch: Raw) -> None:
        outcomes = self._fetching.outcomes(batch)
        if applications := self._keeper.keep(outcomes):
            self._learn(applications)
        self._fetching.written(outcomes.keys())

    def _is_over(self, intake: "_Intake") -> bool:
        if self._interrupted_at and time.monotonic() - self._interrupted_at > GRACE_S:
            return True
        is_last = self._interrupted_at is not None or intake.is_exhausted
        return is_last and self._fetching.is_idle

    def _heed(self, interrupt: Interrupt) -> None:
        if interrupt.signal and self._interrupted_at is None:
            self._interrupted_at = time.monotonic()
            self._fetching.interrupt(_name_of(interrupt.signal))


def _name_of(number: int) -> str:
    return signal.Signals(number).name


def _begin(means: Means, due: int, asked_wait_s: float) -> Begin:
    """Return the first order of a pass over so many runs: all that has to be known to fetch."""
    config, api = means.config, means.config.api
    limits = Limits(
        api.connections,
        api.max_requests_per_second,
        api.attempts,
        api.max_wait_s,
        config.polling.max_requests_per_pass,
    )
    return Begin(
        # Of the database nothing need be known, nor who is told: their URLs may have passwords.
        replace(config, database=Database(), telemetry=Telemetry()),
        limits,
        threads=min(api.connections, due),
        low_mark=max(CLAIM_AT_LEAST, 4 * api.connections) // 2,
        most_batches=1 + database.writers(means.engine),
        asked_wait_s=asked_wait_s,
    )


class _Intake:
    """Claims due runs as those before them are fetched."""

    def __init__(self, keeper: Keeper, fetching: Fetching, writers: "_Writers", size: int) -> None:
        self.is_exhausted = False
        self._keeper = keeper
        self._fetching = fetching
        self._writers = writers
        self._size = size
        self._claiming: Future[list[Claim]] | None = None

    def feed(self) -> None:
        """Hand over what was claimed, and have more claimed before the jobs run out."""
        if self._claiming is not None and self._claiming.done():
            claims, self._claiming = self._claiming.result(), None
            self.is_exhausted = not claims
            self._fetching.offer(claims)
        self.is_exhausted |= self._fetching.state.is_spent
        if self._claiming is not None or self.is_exhausted:
            return
        if self._fetching.is_low:
            halted = self._fetching.state.halted
            self._claiming = self._writers.submit(self._keeper.claim, self._size, halted)

    def finish(self) -> None:
        """Wait until no more is being claimed, which then can be released."""
        if self._claiming is not None:
            self._claiming.result()


class Patience:
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
                if self.is_over or not error.is_transient or now - away_since > PATIENCE_S:
                    self.is_over = True  # what waits behind this need not be patient again
                    raise
                if away_since == now:
                    log.warning("database away, trying again", reason=str(error))
                time.sleep(RETRY_S)
            else:
                if away_since is not None:
                    log.info("database back", after_s=round(time.monotonic() - away_since, 1))
                return result


class _Writers:
    """Has things done by the threads that write, begun one after another.

    `wake` is called whenever one of them has done something.
    """

    def __init__(
        self, do_later: Callable[[Callable[[], Any]], Future[Any]], wake: Callable[[], None]
    ) -> None:
        self._do_later = do_later
        self._wake = wake
        self._writes: deque[Future[None]] = deque()
        self._renewal: Future[None] | None = None

    def submit(self, task: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a writing thread do `task` in its turn."""
        future: Future[T] = self._do_later(partial(task, *args, **kwargs))
        future.add_done_callback(lambda _: self._wake())
        return future

    def write(self, task: Callable[[], None]) -> None:
        """Have `task` done; `tend` or `finish` raise what it raises."""
        self._writes.append(self.submit(task))

    def renew(self, task: Callable[[], None]) -> None:
        """Have the lease renewed by `task`, unless that is about to be done already."""
        if self._renewal is None or self._renewal.done():
            self._renewal = self.submit(task)
            self._writes.append(self._renewal)

    def tend(self) -> None:
        """Learn of failed writes."""
        while self._writes and self._writes[0].done():
            self._writes.popleft().result()

    def finish(self) -> None:
        """Wait until all is written."""
        while self._writes:
            self._writes.popleft().result()
