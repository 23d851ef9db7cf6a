"""The process that fetches: its threads ask the API, and make outcomes of what it answers.

Python computes in one thread of a process at a time, and to ask takes as long as to store. So
that goes on here, side by side with the process that stores and started this one: it sends
orders to our standard input, and gets reports from a pipe that is there for nothing else. Nothing
is kept here, of the database nothing is known, and when the other process is gone, so are we.
"""

import os
import sys
import threading
from contextlib import suppress
from traceback import format_exception
from typing import BinaryIO

from etl.answers.outcome import Fetched, Outcome
from etl.fetch.exchange import Exchange
from etl.fetch.fetcher import Fetcher
from etl.fetch.wire import (
    Begin,
    Close,
    End,
    Interrupt,
    Line,
    Offer,
    Order,
    Report,
    State,
    Written,
    pack,
)
from etl.runtime import look_for_cycles_seldom, tune_heap
from etl.secrets import mask

FLUSH_EVERY_S = 1.0
"""So long outcomes wait for others at the most, if somebody is free to write them."""
TICK_S = 0.1


def serve(orders: BinaryIO, reports: BinaryIO) -> None:
    """Fetch for one pass after the other, until there are no more orders."""
    line: Line[Order] = Line(orders, reports, Order)
    with suppress(BrokenPipeError):
        while begin := line.receive():
            if isinstance(begin, Begin):
                _Worker(line, begin).run()


class _Worker:
    """Fetches for one pass: its threads, and the reports of what came of their work."""

    def __init__(self, line: Line[Order], begin: Begin) -> None:
        self._line = line
        self._begin = begin
        self._offers = 0
        self._exchange = Exchange(begin.limits, begin.most_batches)
        self._exchange.heed(begin.asked_wait_s)

    def run(self) -> None:
        fetcher = Fetcher(self._begin.config)
        for number in range(self._begin.threads):
            name = f"fetch-{number}"
            # A daemon: one that hangs in a request does not keep the process.
            threading.Thread(target=self._fetch, args=[fetcher], name=name, daemon=True).start()
        obeying = threading.Thread(target=self._obey, name="orders", daemon=True)
        obeying.start()
        told = State()
        while obeying.is_alive():
            self._exchange.news.wait(TICK_S)
            self._exchange.news.clear()
            batch, state = self._exchange.take_batch(FLUSH_EVERY_S), self._state()
            if batch or state != told:
                self._report(state, batch, None)
                told = state
        rest = self._exchange.close()
        end = End(self._exchange.asked_wait_s, *self._exchange.worst_halt())
        self._report(self._state(), rest, end)

    def _fetch(self, fetcher: Fetcher) -> None:
        job = self._exchange.first()
        while job:
            job = self._exchange.swap(job, fetcher.fetch(job.target))

    def _obey(self) -> None:
        """Take orders until the pass is over, or nobody is there to give any."""
        while (order := self._line.receive()) and not isinstance(order, Close):
            match order:
                case Offer():
                    self._exchange.offer(order.targets)
                    self._offers += 1
                case Written():
                    self._exchange.written()
                case Interrupt():
                    self._exchange.interrupt(order.reason)
            self._exchange.news.set()
        self._exchange.news.set()

    def _state(self) -> State:
        offers = self._offers  # first: the rest may know of more offers, but not of fewer
        return State(
            offers,
            is_low=self._exchange.needs(self._begin.low_mark),
            is_spent=self._exchange.is_spent,
            is_idle=self._exchange.is_idle,
            halted=self._exchange.halted(),
        )

    def _report(self, state: State, batch: list[Outcome | Fetched], end: End | None) -> None:
        requests = self._exchange.requests
        self._line.send(Report(state, requests, len(batch), pack(batch), end))


def _give_up(bug: BaseException | None) -> None:
    """End: without one of its threads a pass would never be over. The other process tells it."""
    sys.stderr.write(mask("".join(format_exception(bug))))
    os._exit(1)


def main() -> None:
    """Serve the process that started this one. The argument is the file to report to, by number."""
    tune_heap()
    look_for_cycles_seldom()
    threading.excepthook = lambda bug: _give_up(bug.exc_value)
    try:
        serve(sys.stdin.buffer, os.fdopen(int(sys.argv[1]), "wb"))
    except Exception as bug:  # noqa: BLE001  it is told
        _give_up(bug)
    os._exit(0)  # whatever hangs in a request


if __name__ == "__main__":
    main()
