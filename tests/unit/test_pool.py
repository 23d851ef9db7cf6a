import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from etl.answers.outcome import Reason, Reject, Target, Unchanged
from etl.config.settings import Config
from etl.fetch.breaker import Signal
from etl.fetch.fetcher import Attempt, pack
from etl.fetch.messages import Ask, Batch, BatchSize, Begin, TargetAsk, unpack
from etl.fetch.permits import Permits
from etl.fetch.pool import FetchPool
from etl.fetch.rate_limit import RequestLimits

NOW = datetime(2024, 5, 1, tzinfo=UTC)
SIZE = BatchSize(runs=250, size_bytes=1000, wait_s=3600)
AT_ONCE = BatchSize(runs=250, size_bytes=1000, wait_s=0)


class PermittedPool(FetchPool):
    """A pool that gets the permits for its targets with them."""

    def give(self, targets: Sequence[Target]) -> None:
        super().give(targets)
        if targets:
            connections = self._begin.limits.connections
            self.permit(Permits("default", time.monotonic(), 100, connections, may_probe=True))


def targets(number: int) -> list[Target]:
    return [Target(f"run-{position}", "default", None, None) for position in range(number)]


def unchanged(target: Target) -> Attempt:
    return Attempt(Signal.RESULT, packed=pack(Unchanged(target.run_id, NOW)))


def of_size(size: int) -> Callable[[Target], Attempt]:
    def fetch(target: Target) -> Attempt:
        reject = Reject(target.run_id, NOW, 200, Reason.UNREADABLE, "no JSON", b"", "sha256")
        return Attempt(Signal.RESULT, packed=pack(reject), size=size)

    return fetch


BULKY, TWO_FIFTHS, TWO_BATCHES = of_size(1000), of_size(400), of_size(2000)


class SlowFetch:
    """A request that is answered once the test says so."""

    def __init__(self) -> None:
        self.under_way = threading.Event()
        self.is_answered = threading.Event()

    def __call__(self, target: Target) -> Attempt:
        self.under_way.set()
        self.is_answered.wait(10)
        return unchanged(target)


class FakeFetcher:
    """Answers as the test says, and lists the runs that were asked for."""

    def __init__(self, fetch: Callable[[Target], Attempt]) -> None:
        self.asked: list[str] = []
        self.is_closed = False
        self._fetch = fetch

    def fetch(self, target: Target) -> Attempt:
        self.asked.append(target.run_id)
        return self._fetch(target)

    def close(self) -> None:
        self.is_closed = True


@contextmanager
def fetching(
    fetch: Callable[[Target], Attempt],
    *,
    connections: int = 3,
    rate: float = 0,
    size: BatchSize = SIZE,
    low_mark: int = 0,
) -> Iterator[tuple[FetchPool, FakeFetcher]]:
    limits = RequestLimits(connections, rate, attempts=3, max_wait_s=300)
    begin = Begin(Config(sources={}), limits, 100, batches=2, low_mark=low_mark, size=size)
    fetcher = FakeFetcher(fetch)
    before = set(threading.enumerate())
    pool = PermittedPool(begin, fetcher)
    try:
        yield pool, fetcher
    finally:
        pool.close()
        for thread in set(threading.enumerate()) - before:
            thread.join(timeout=10)
            assert not thread.is_alive()
        assert fetcher.is_closed


def ask_of(pool: FetchPool) -> TargetAsk:
    message = pool.receive()
    assert isinstance(message, Ask)
    assert message.targets is not None
    return message.targets


def batch_of(pool: FetchPool) -> Batch:
    message = pool.receive()
    assert isinstance(message, Batch)
    return message


def run_ids(batch: Batch) -> list[str]:
    return [outcome.run_id for outcome in unpack(batch)]


def settled(fetcher: FakeFetcher) -> int:
    """Wait until no more is fetched, and return how much it is."""
    before = -1
    while len(fetcher.asked) != before:
        before = len(fetcher.asked)
        time.sleep(0.2)
    return before


def test_every_run_comes_out_once_and_the_last_batch_has_the_end() -> None:
    with fetching(unchanged) as (pool, _):
        ask_of(pool)
        pool.give(targets(300))
        first = batch_of(pool)
        ask_of(pool)
        pool.give([])
        last = batch_of(pool)
    assert first.end is None
    assert last.end is not None
    assert sorted(run_ids(first) + run_ids(last)) == sorted(each.run_id for each in targets(300))
    assert last.requests == 300


def test_targets_are_asked_for_before_they_run_out() -> None:
    with fetching(unchanged, low_mark=10) as (pool, fetcher):
        assert ask_of(pool).count == 20
        pool.give(targets(20))
        ask_of(pool)
        assert len(fetcher.asked) <= 20


def test_targets_dropped_while_the_pass_finds_no_more_due_are_reported() -> None:
    fetch = SlowFetch()
    with fetching(fetch, connections=1, low_mark=10) as (pool, _):
        ask_of(pool)
        pool.give(targets(5))
        assert fetch.under_way.wait(10)
        ask_of(pool)
        pool.drop()
        pool.give([])
        assert ask_of(pool).dropped == [f"run-{number}" for number in range(1, 5)]
        fetch.is_answered.set()


def test_dropped_targets_are_reported_and_others_asked_for() -> None:
    fetch = SlowFetch()
    with fetching(fetch, connections=1) as (pool, fetcher):
        assert ask_of(pool).dropped == []
        pool.give(targets(5))
        assert fetch.under_way.wait(10)
        pool.drop()
        assert ask_of(pool).dropped == [f"run-{number}" for number in range(1, 5)]
        fetch.is_answered.set()
        pool.give([])
        last = batch_of(pool)
    assert (run_ids(last), fetcher.asked) == (["run-0"], ["run-0"])
    assert last.end is not None


def test_backpressure_stops_the_fetching_while_commits_are_behind() -> None:
    with fetching(BULKY) as (pool, fetcher):
        ask_of(pool)
        pool.give(targets(20))
        before = settled(fetcher)
        assert before < 6
        batch_of(pool)
        pool.done()
        assert before < settled(fetcher) < 20


def test_the_next_batch_is_filled_while_one_is_committed() -> None:
    with fetching(TWO_FIFTHS, connections=1) as (pool, fetcher):
        ask_of(pool)
        pool.give(targets(20)[:3])
        assert batch_of(pool).count == 3
        ask_of(pool)
        pool.give(targets(20)[3:])
        assert settled(fetcher) == 6
        pool.done()
        assert batch_of(pool).count == 3


def test_an_answer_of_two_batches_counts_as_one_when_it_is_taken() -> None:
    with fetching(TWO_BATCHES, connections=1) as (pool, fetcher):
        ask_of(pool)
        pool.give(targets(20))
        assert settled(fetcher) == 1
        assert batch_of(pool).count == 1
        assert settled(fetcher) == 2


def test_an_open_batch_waits_while_one_is_committed() -> None:
    with fetching(TWO_FIFTHS, connections=1, size=AT_ONCE) as (pool, fetcher):
        ask_of(pool)
        pool.give(targets(1))
        assert batch_of(pool).count == 1
        ask_of(pool)
        pool.give(targets(2)[1:])
        assert settled(fetcher) == 2
        ask_of(pool)
        assert pool._next_message() is None
        pool.done()
        assert batch_of(pool).count == 1


def test_waiting_for_commits_takes_no_cpu_time() -> None:
    with fetching(BULKY, size=AT_ONCE) as (pool, fetcher):
        ask_of(pool)
        pool.give(targets(20))
        batch_of(pool)
        settled(fetcher)
        waiting = threading.Thread(target=pool.receive, daemon=True)
        waiting.start()
        before = time.process_time()
        time.sleep(1)
        assert time.process_time() - before < 0.2


def test_a_rate_holds_for_many_threads() -> None:
    with fetching(unchanged, connections=16, rate=100) as (pool, _):
        ask_of(pool)
        began = time.monotonic()
        pool.give(targets(50))
        ask_of(pool)
        pool.give([])
        assert batch_of(pool).count == 50
    assert time.monotonic() - began >= 0.49


def test_a_bug_in_a_thread_is_raised_where_the_pass_waits() -> None:
    def fail(_target: Target) -> Attempt:
        raise ZeroDivisionError

    with fetching(fail) as (pool, _):
        ask_of(pool)
        pool.give(targets(3))
        time.sleep(0.1)
        with pytest.raises(ZeroDivisionError):
            pool.receive()


def test_after_a_stop_the_requests_under_way_come_back() -> None:
    began, may_end = threading.Semaphore(0), threading.Event()

    def slow(target: Target) -> Attempt:
        began.release()
        may_end.wait(10)
        return unchanged(target)

    with fetching(slow) as (pool, fetcher):
        ask_of(pool)
        pool.give(targets(20))
        began.acquire(timeout=10)
        pool.stop()
        may_end.set()
        last = batch_of(pool)
    assert last.end is not None
    assert run_ids(last) == fetcher.asked


def test_requests_that_are_given_up_leave_the_others_in_the_last_batch() -> None:
    def hang(target: Target) -> Attempt:
        if target.run_id == "run-1":
            hanging.set()
            may_end.wait(10)
        return unchanged(target)

    hanging, may_end = threading.Event(), threading.Event()
    with fetching(hang) as (pool, _):
        ask_of(pool)
        pool.give(targets(2))
        assert hanging.wait(10)
        pool.stop()
        pool.give_up()
        assert run_ids(batch_of(pool)) == ["run-0"]
        may_end.set()
