import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from etl.answers.outcome import Outcome, Reject, Target, Unchanged
from etl.fetch import exchange
from etl.fetch.dispatch import Job, Limits
from etl.fetch.exchange import Exchange

NOW = datetime(2024, 5, 1, tzinfo=UTC)


def targets(number: int) -> list[Target]:
    return [Target(f"run-{position}", "default", None, None) for position in range(number)]


def unchanged(job: Job) -> Outcome:
    return Unchanged(job.target.run_id, NOW)


def bulky(job: Job) -> Outcome:
    return _reject(job, exchange.FULL_BYTES)


def of_two_fifths(job: Job) -> Outcome:
    """Give an outcome of which three make a batch."""
    return _reject(job, exchange.FULL_BYTES * 2 // 5)


def of_two_batches(job: Job) -> Outcome:
    return _reject(job, 2 * exchange.FULL_BYTES)


def _reject(job: Job, size_bytes: int) -> Outcome:
    return Reject(job.target.run_id, NOW, 200, "no JSON", bytes(size_bytes), "sha256")


@contextmanager
def fetching(
    place: Exchange, outcome_of: Callable[[Job], Outcome], threads: int = 3
) -> Iterator[list[Job]]:
    """Have jobs done by threads as long as it lasts; yields those done so far."""
    done: list[Job] = []

    def work() -> None:
        job = place.first()
        while job:
            done.append(job)
            job = place.swap(job, outcome_of(job))

    crew = [threading.Thread(target=work) for _ in range(threads)]
    for thread in crew:
        thread.start()
    try:
        yield done
    finally:
        place.close()
        for thread in crew:
            thread.join(timeout=10)
        assert not any(thread.is_alive() for thread in crew)


def settled(done: list[Job]) -> int:
    """Wait until no more is done, and return how much it is."""
    before = -1
    while len(done) != before:
        before = len(done)
        time.sleep(0.2)
    return before


@pytest.fixture
def place() -> Exchange:
    return Exchange(
        Limits(3, max_requests_per_second=0, attempts=3, max_wait_s=300), most_batches=2
    )


def test_every_run_comes_out_once(place: Exchange) -> None:
    place.offer(targets(300))
    with fetching(place, unchanged) as done:
        assert settled(done) == 300
        batch = place.take_batch(0)
    assert sorted(each.run_id for each in batch) == sorted(target.run_id for target in targets(300))


def test_nothing_is_fetched_while_too_much_waits_to_be_written(place: Exchange) -> None:
    place.offer(targets(20))
    with fetching(place, bulky) as done:
        before = settled(done)
        assert before < 6
        assert place.take_batch(0)
        place.written()
        assert before < settled(done) < 20


def test_the_next_batch_is_filled_while_one_is_being_written(place: Exchange) -> None:
    first, rest = targets(20)[:3], targets(20)[3:]
    place.offer(first)
    with fetching(place, of_two_fifths, threads=1) as done:
        settled(done)
        assert len(place.take_batch(3600)) == 3
        place.offer(rest)
        assert settled(done) == 6
        assert len(place.take_batch(3600)) == 3


def test_an_answer_of_two_batches_counts_as_one_when_it_is_taken(place: Exchange) -> None:
    place.offer(targets(20))
    with fetching(place, of_two_batches, threads=1) as done:
        assert settled(done) == 1
        assert len(place.take_batch(3600)) == 1
        assert settled(done) == 2


def test_what_is_no_full_batch_waits_while_one_is_being_written(place: Exchange) -> None:
    first, rest = targets(4)[:3], targets(4)[3:]
    place.offer(first)
    with fetching(place, of_two_fifths, threads=1) as done:
        settled(done)
        assert len(place.take_batch(0)) == 3
        place.offer(rest)
        assert settled(done) == 4
        assert not place.take_batch(0)
        place.written()
        assert len(place.take_batch(0)) == 1


def test_waiting_for_the_database_takes_no_time_of_the_processor(place: Exchange) -> None:
    place.offer(targets(20))
    with fetching(place, bulky) as done:
        settled(done)
        before = time.process_time()
        time.sleep(1)
        assert time.process_time() - before < 0.2


def test_the_pass_hears_of_a_full_batch_and_of_the_end(place: Exchange) -> None:
    place.offer(targets(1))
    with fetching(place, bulky):
        assert place.news.wait(timeout=10)
        assert len(place.take_batch(3600)) == 1
        assert place.is_idle


def test_the_pass_hears_when_jobs_run_out(place: Exchange) -> None:
    place.offer(targets(50))
    assert not place.needs(10)
    with fetching(place, unchanged):
        assert place.news.wait(timeout=10)


def test_a_rate_is_kept_by_many_threads() -> None:
    place = Exchange(
        Limits(16, max_requests_per_second=100, attempts=3, max_wait_s=300), most_batches=2
    )
    place.offer(targets(50))
    began = time.monotonic()
    with fetching(place, unchanged, threads=16) as done:
        while len(done) < 50:
            time.sleep(0.01)
    assert time.monotonic() - began >= 0.49
