"""Permits to send requests: a worker's part in the limits that all workers of a source share.

A thread of its own takes them, so that no permit waits for a claim or a commit. While a worker is
alone it takes the requests of half a second at once, else of a tenth of a second: if it is killed,
the others wait no longer than that.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import ceil
from queue import Empty, SimpleQueue
from typing import TypeVar

from msgspec.structs import replace
from sqlalchemy import Connection, Engine

from etl.db.database import writing, writing_once
from etl.fetch.permits import Allowed, Halt, PermitAsk, Permits
from etl.fetch.rate_limit import RequestLimits
from etl.ingest import pass_workers
from etl.ingest.patience import Patience
from etl.ledger import source_limits
from etl.ledger.source_limits import Demand, LimitState, Share, Worker

ALONE_S = 0.5
"""The requests of this time are taken at once while no other worker is alive."""
WITHOUT_RATE_S = 2.0
"""The same without a rate, where a permit keeps nobody waiting."""
TOGETHER_S = 0.1
BEAT_S = 1.0
SOON_S = 0.2
"""A worker that lacks connections, or the right to probe, asks again after this time."""

Give = Callable[[Permits], None]
Renew = Callable[[Connection, Worker, Mapping[str, int], int], dict[str, Share]]
T = TypeVar("T")


class PermitTaker:
    """Takes permits for one worker. `error` is the reason why it has ended."""

    def __init__(
        self, engine: Engine, worker: Worker, limits: RequestLimits, patience: Patience
    ) -> None:
        self.error: Exception | None = None
        self._engine = engine
        self._worker = worker
        self._limits = limits
        self._patience = patience
        self._give: Give = _give_nobody
        self._fail: Callable[[], None] = _fail_nobody
        self._asks: SimpleQueue[PermitAsk | None] = SimpleQueue()
        self._shares: dict[str, Share] = {}
        self._in_use: dict[str, int] = {}
        """The connections that the fetching side may be using, by source."""
        self._reported_until: dict[str, float] = {}
        self._allowed: Allowed | None = None
        self._beat_at = 0.0

    def answer_by(self, give: Give, fail: Callable[[], None]) -> None:
        """Answer demands by `give`; call `fail` if there will be no more answers."""
        self._give, self._fail = give, fail

    def ask(self, ask: PermitAsk) -> None:
        """Queue a demand of the fetching side."""
        self._asks.put(ask)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answer demands, and show that the worker is alive, within the context."""
        thread = threading.Thread(target=self._serve, name="permits", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._asks.put(None)
            thread.join()

    def _serve(self) -> None:
        try:
            while True:
                if self._beat_at <= time.monotonic():
                    self._beat()
                try:
                    ask = self._asks.get(timeout=max(0.0, self._beat_at - time.monotonic()))
                except Empty:
                    continue
                if ask is None:
                    return
                self._answer(ask)
        except Exception as error:  # noqa: BLE001  raised by the pass, which would wait forever
            self.error = error
            self._fail()

    def _beat(self, renew: Renew = source_limits.beat) -> None:
        """Renew the worker's rows, and pass on the shares that have changed."""
        if not self._in_use:
            self._beat_at = time.monotonic() + BEAT_S
            return
        worker, in_use, most = self._worker, self._in_use, self._limits.connections
        shares = self._write(lambda connection: renew(connection, worker, in_use, most))
        is_final = all(share.is_final for share in shares.values())
        self._beat_at = time.monotonic() + (BEAT_S if is_final else SOON_S)
        for source, share in shares.items():
            before = self._shares.get(source)
            self._shares[source] = share
            self._in_use[source] = max(self._in_use[source], share.connections)
            has_news = share.state.asked_wait_s or share.state.halt
            if before is None or before.connections != share.connections or has_news:
                self._give(self._permits(source, share.state))

    def _answer(self, ask: PermitAsk) -> None:
        if ask.source not in self._in_use:
            self._join(ask.source)
        self._count_connections(ask)
        self._report(ask)
        if ask.room:
            self._give(self._take(ask))

    def _join(self, source: str) -> None:
        """Register the worker with a source, from which it is about to fetch for the first time."""
        self._in_use[source] = 0
        self._beat(source_limits.join)

    def _take(self, ask: PermitAsk) -> Permits:
        is_alone = self._shares[ask.source].workers == 1
        length_s = self._length_s(ask)
        length_ms = ceil(length_s * 1000) if self._limits.max_requests_per_second else 0
        now = time.monotonic()
        answered_ms_ago = int((now - ask.answered_at) * 1000) if ask.answered_at else None
        demand = Demand(length_ms, ask.probes, is_alone, answered_ms_ago)
        taken_at, slot = self._write_once(
            lambda connection: (
                time.monotonic(),
                source_limits.take_slot(connection, self._worker, ask.source, demand),
            )
        )
        if slot.begins_in_s is None:
            wait_s = min(max(slot.state.asked_wait_s, SOON_S), BEAT_S)
            begins_at, length_s = time.monotonic() + wait_s, 0.0
        else:
            # The slots of others don't wait for a slow commit; half of the permits outlast it.
            begins_at = max(taken_at + slot.begins_in_s, time.monotonic() - length_s / 2)
        permits = self._permits(ask.source, slot.state)
        return replace(
            permits,
            begins_at=begins_at,
            length_s=length_s,
            may_probe=slot.is_prober,
            allowed=self._allow(ask),
        )

    def _allow(self, ask: PermitAsk) -> Allowed | None:
        """Return the requests that the worker may send in all, once it has sent those before."""
        if not self._limits.max_requests:
            return None
        if self._allowed is None or ask.sent >= self._allowed.requests:
            self._allowed = self._write(
                lambda connection: pass_workers.allow(connection, self._worker, self._limits, ask)
            )
        return self._allowed

    def _length_s(self, ask: PermitAsk) -> float:
        """Return the time of the requests to take: no more than the worker can send at once."""
        rate = self._limits.max_requests_per_second
        if self._shares[ask.source].workers == 1:
            return max(1, int(rate * ALONE_S)) / rate if rate else WITHOUT_RATE_S
        if not rate:
            return TOGETHER_S
        return (1 if ask.probes else min(max(1, int(rate * TOGETHER_S)), ask.room)) / rate

    def _permits(self, source: str, state: LimitState) -> Permits:
        """Return what is heard of a source, without permits."""
        now = time.monotonic()
        return Permits(
            source,
            None,
            0.0,
            self._shares[source].connections,
            may_probe=False,
            answered_at=0.0 if state.answered_s_ago is None else now - state.answered_s_ago,
            asked_until=now + state.asked_wait_s if state.asked_wait_s else 0.0,
            halt=Halt(state.halt) if state.halt else None,
            halt_reason=state.halt_reason,
        )

    def _count_connections(self, ask: PermitAsk) -> None:
        """Note the connections that the fetching side may be using; offer free ones at once."""
        permitted = self._shares[ask.source].connections
        in_use = max(ask.connections, ask.in_flight, permitted)
        if in_use < self._in_use[ask.source]:
            self._beat_at = 0.0
        self._in_use[ask.source] = in_use

    def _report(self, ask: PermitAsk) -> None:
        """Write what the API said at once, so that all workers hear it at their next permits."""
        if ask.asked_until > self._reported_until.get(ask.source, 0.0):
            self._reported_until[ask.source] = ask.asked_until
            wait_ms = ceil((ask.asked_until - time.monotonic()) * 1000)
            report_wait = partial(source_limits.report_wait, source=ask.source, wait_ms=wait_ms)
            self._write_once(report_wait)
        if ask.halt:
            report_halt = partial(
                source_limits.report_halt,
                source=ask.source,
                halt=ask.halt.value,
                reason=ask.halt_reason,
            )
            self._write_once(report_halt)

    def _write(self, task: Callable[[Connection], T]) -> T:
        return self._patience.run(partial(_write, self._engine, task))

    def _write_once(self, task: Callable[[Connection], T]) -> T:
        return self._patience.run(partial(_write_once, self._engine, task))


def _write(engine: Engine, task: Callable[[Connection], T]) -> T:
    with writing(engine) as connection:
        return task(connection)


def _write_once(engine: Engine, task: Callable[[Connection], T]) -> T:
    with writing_once(engine) as connection:
        return task(connection)


def _give_nobody(_permits: Permits) -> None:
    """Give permits to nobody: the fetching side is not there yet."""


def _fail_nobody() -> None:
    """Stop nobody: the fetching side is not there yet."""
