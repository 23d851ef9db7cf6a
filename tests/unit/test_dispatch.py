import heapq
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count, pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from etl.answers.outcome import Target, Trouble
from etl.fetch.dispatch import (
    DENIED_AT_FIRST,
    FAILED_PROBES,
    Crew,
    Dispatcher,
    Halt,
    Job,
    Limits,
    Pace,
)

NOW = datetime(2024, 5, 1, tzinfo=UTC)
LIMITS = Limits(connections=4, max_requests_per_second=0, attempts=3, max_wait_s=300)

Verdict = Callable[[Dispatcher, Job, float], None]


def targets(*run_ids: str) -> list[Target]:
    return [Target(run_id, "default", None, None) for run_id in run_ids]


def many(number: int = 100) -> list[Target]:
    return targets(*(f"run-{position}" for position in range(number)))


def answer(dispatcher: Dispatcher, job: Job, _now: float) -> None:
    dispatcher.answered(job)


def deny(dispatcher: Dispatcher, job: Job, _now: float) -> None:
    dispatcher.denied(job, "403")


def fail(dispatcher: Dispatcher, job: Job, now: float) -> None:
    dispatcher.troubled(job, Trouble("no answer", None, is_busy=False, chance=0), now)


def busy(wait_s: float | None) -> Verdict:
    def verdict(dispatcher: Dispatcher, job: Job, now: float) -> None:
        dispatcher.troubled(job, Trouble("429", wait_s, is_busy=True, chance=0), now)

    return verdict


def in_turn(*verdicts: Verdict, then: Verdict) -> Callable[[Job], Verdict]:
    """Give `verdicts` to the first requests, and `then` to all after them."""
    left = iter(verdicts)
    return lambda _job: next(left, then)


def by_run(verdicts: dict[str, Verdict], others: Verdict) -> Callable[[Job], Verdict]:
    return lambda job: verdicts.get(job.target.run_id, others)


class Sent(NamedTuple):
    """A request: when it was sent, for which run, and how many were under way with it."""

    at_s: float
    run_id: str
    under_way: int


def drive(
    dispatcher: Dispatcher, verdict_on: Callable[[Job], Verdict], latency_s: Iterator[float]
) -> list[Sent]:
    """Play a pass on a clock of its own: send what may be sent, let it come back, until idle."""
    now_s, sent, under_way, number = 0.0, [], list[tuple[float, int, Job]](), count()
    while True:
        while job := dispatcher.take(now_s):
            heapq.heappush(under_way, (now_s + next(latency_s), next(number), job))
            sent.append(Sent(now_s, job.target.run_id, len(under_way)))
        if dispatcher.is_idle:
            break
        wait_s = dispatcher.wait_s(now_s)
        moments = [under_way[0][0]] if under_way else []
        # At least one tick: the clock of a long pass has no room for a very short wait.
        moments += [] if wait_s is None else [max(now_s + wait_s, math.nextafter(now_s, math.inf))]
        now_s = min(moments)
        while under_way and under_way[0][0] <= now_s:
            job = heapq.heappop(under_way)[2]
            verdict_on(job)(dispatcher, job, now_s)
    dispatcher.finish()
    return sent


def played(
    offered: list[Target], verdict_on: Callable[[Job], Verdict], limits: Limits = LIMITS
) -> tuple[Dispatcher, list[Sent], dict[str, Job]]:
    """Return the dispatcher after a pass, the requests, and the jobs that ended by run ID."""
    dispatcher = Dispatcher(limits)
    dispatcher.offer(offered)
    sent = drive(dispatcher, verdict_on, iter(lambda: 1.0, None))
    finished = dispatcher.finished()
    ended = {job.target.run_id: job for job in finished}
    assert len(ended) == len(finished)
    return dispatcher, sent, ended


def started(*verdicts: Verdict, limits: Limits = LIMITS) -> Dispatcher:
    """Return a dispatcher with many runs, whose first requests got `verdicts`, one at a time."""
    dispatcher = Dispatcher(limits)
    dispatcher.offer(many())
    for verdict in verdicts:
        verdict(dispatcher, taken(dispatcher, 0), 0)
    return dispatcher


def taken(dispatcher: Dispatcher, now_s: float) -> Job:
    job = dispatcher.take(now_s)
    assert job is not None
    return job


def take_all(dispatcher: Dispatcher, now_s: float) -> list[Job]:
    jobs = []
    while job := dispatcher.take(now_s):
        jobs.append(job)
    return jobs


# How many at a time.


def test_a_pass_begins_with_one_request_at_a_time() -> None:
    assert len(take_all(started(), now_s=0)) == 1


def test_after_the_first_answer_all_connections_are_used() -> None:
    assert len(take_all(started(answer), now_s=0)) == 4


def test_runs_go_out_in_the_order_they_were_offered() -> None:
    _, sent, _ = played(many(20), in_turn(then=answer))
    assert [each.run_id for each in sent] == [f"run-{position}" for position in range(20)]


def test_a_failure_closes_down_to_one_at_a_time_once_the_rest_is_back() -> None:
    dispatcher = started(answer)
    jobs = take_all(dispatcher, now_s=0)
    fail(dispatcher, jobs[0], 0)
    later_s = 100
    for job in jobs[1:]:
        assert dispatcher.take(later_s) is None
        assert dispatcher.wait_s(later_s) is None
        fail(dispatcher, job, 0)
    assert len(take_all(dispatcher, later_s)) == 1


@pytest.mark.parametrize("sign_of_life", [answer, deny])
def test_any_answer_opens_up_again_after_a_failure(sign_of_life: Verdict) -> None:
    dispatcher = started(answer)
    fail(dispatcher, taken(dispatcher, 0), 0)
    sign_of_life(dispatcher, taken(dispatcher, 100), 100)
    assert len(take_all(dispatcher, now_s=100)) == 4


def test_patience_asked_for_does_not_close_down() -> None:
    dispatcher = started(answer)
    busy(5)(dispatcher, taken(dispatcher, 0), 0)
    assert len(take_all(dispatcher, now_s=5)) == 4


def test_more_runs_can_be_offered_at_any_time() -> None:
    dispatcher = Dispatcher(LIMITS)
    assert dispatcher.is_idle
    dispatcher.offer(targets("a"))
    assert (dispatcher.is_idle, dispatcher.waiting) == (False, 1)
    drive(dispatcher, in_turn(then=answer), iter(lambda: 1.0, None))
    assert dispatcher.is_idle
    dispatcher.offer(targets("b"))
    assert taken(dispatcher, 100).target.run_id == "b"


# An API that is down.


@pytest.mark.parametrize("attempts", [1, 3, 10])
def test_a_dead_api_costs_so_many_requests_as_probes_may_fail(attempts: int) -> None:
    limits = LIMITS._replace(attempts=attempts)
    dispatcher, sent, ended = played(many(), in_turn(then=fail), limits)
    assert (dispatcher.halt, dispatcher.halt_reason) == (Halt.DOWN, "no answer")
    assert len(sent) == dispatcher.sent == FAILED_PROBES
    assert ended == {}


@pytest.mark.parametrize("attempts", [1, 3, 5])
def test_with_a_single_run_a_dead_api_costs_its_attempts(attempts: int) -> None:
    limits = LIMITS._replace(attempts=attempts)
    dispatcher, sent, ended = played(targets("a"), in_turn(then=fail), limits)
    assert (dispatcher.halt, dispatcher.halt_reason) == (Halt.DOWN, "no answer")
    assert len(sent) == attempts
    assert ended == {}


def test_an_api_that_dies_on_the_way_costs_those_under_way_and_the_probes() -> None:
    answered = 1 + 2 * LIMITS.connections
    dispatcher, sent, ended = played(many(), in_turn(*[answer] * answered, then=fail))
    assert dispatcher.halt is Halt.DOWN
    assert len(sent) == answered + LIMITS.connections + FAILED_PROBES
    assert len(ended) == answered


def test_the_probes_that_fail_must_be_in_a_row() -> None:
    almost = [fail] * (FAILED_PROBES - 1)
    verdicts = in_turn(*almost, answer, *almost, answer, then=answer)
    dispatcher, _, ended = played(many(), verdicts)
    assert dispatcher.halt is None
    assert len(ended) == 100


@pytest.mark.parametrize("sign_of_life", [deny, busy(0)])
def test_any_answer_breaks_the_row_of_failed_probes(sign_of_life: Verdict) -> None:
    dispatcher = Dispatcher(LIMITS)
    dispatcher.offer(many())
    verdicts = [fail] * (FAILED_PROBES - 1) + [sign_of_life, fail]
    for turn, verdict in enumerate(verdicts):
        now_s = turn * 100.0
        verdict(dispatcher, taken(dispatcher, now_s), now_s)
    assert dispatcher.halt is None


def test_failed_probes_are_ever_further_apart() -> None:
    _, sent, _ = played(many(), in_turn(then=fail))
    gaps = [later.at_s - earlier.at_s for earlier, later in pairwise(sent)]
    assert gaps == sorted(set(gaps))


# A run that fails.


@pytest.mark.parametrize("attempts", [1, 3, 5])
@pytest.mark.parametrize("bad", ["run-0", "run-50", "run-99"])
def test_a_bad_run_among_good_ones_is_trouble_and_stops_nothing(bad: str, attempts: int) -> None:
    limits = LIMITS._replace(attempts=attempts)
    dispatcher, sent, ended = played(many(), by_run({bad: fail}, others=answer), limits)
    assert dispatcher.halt is None
    assert len(ended) == 100
    assert [run_id for run_id, job in ended.items() if job.trouble] == [bad]
    assert sum(each.run_id == bad for each in sent) == attempts


def test_a_run_that_fails_once_and_answers_then_ends_without_trouble() -> None:
    _, sent, ended = played(targets("a", "b"), in_turn(fail, then=answer))
    assert [each.run_id for each in sent] == ["a", "b", "a"]
    assert [job.trouble for job in ended.values()] == [None, None]


def test_a_run_that_fails_once_and_is_denied_then_ends_denied() -> None:
    _, _, ended = played(targets("a"), in_turn(fail, then=deny))
    assert (ended["a"].trouble, ended["a"].denial) == (None, "403")


# 403.


def test_so_many_403_at_first_are_a_refused_key() -> None:
    dispatcher, sent, ended = played(many(), in_turn(then=deny))
    assert dispatcher.halt is Halt.REFUSED
    assert dispatcher.halt_reason.startswith("the first 5 answers were all 403; ")
    assert len(sent) == DENIED_AT_FIRST
    assert ended == {}


def test_fewer_403_and_then_an_answer_are_failures_of_those_runs() -> None:
    verdicts = in_turn(*[deny] * (DENIED_AT_FIRST - 1), then=answer)
    dispatcher, _, ended = played(many(), verdicts)
    assert dispatcher.halt is None
    denied = {run_id for run_id, job in ended.items() if job.denial == "403"}
    assert denied == {"run-0", "run-1", "run-2", "run-3"}
    assert len(ended) == 100


def test_fewer_403_and_nothing_else_are_failures_of_those_runs() -> None:
    dispatcher, _, ended = played(many(DENIED_AT_FIRST - 1), in_turn(then=deny))
    assert dispatcher.halt is None
    assert [job.denial for job in ended.values()] == ["403"] * 4


def test_an_api_that_answers_403_is_not_down() -> None:
    dispatcher, _, ended = played(targets("a", "b"), by_run({"a": deny}, others=fail))
    assert dispatcher.halt is None
    assert ended["a"].denial == "403"
    assert ended["b"].trouble is not None


def test_before_the_pass_is_over_a_403_at_first_is_not_decided() -> None:
    dispatcher = started(deny)
    assert dispatcher.finished() == []


def test_after_an_answer_any_number_of_403_stop_nothing() -> None:
    dispatcher, _, ended = played(many(), in_turn(answer, then=deny))
    assert dispatcher.halt is None
    assert sum(job.denial is not None for job in ended.values()) == 99


def test_after_an_answer_a_403_is_decided_at_once() -> None:
    dispatcher = started(answer, deny)
    assert [job.denial for job in dispatcher.finished()] == [None, "403"]


def test_failures_do_not_hide_a_refused_key() -> None:
    dispatcher, _, _ = played(many(), in_turn(deny, fail, deny, fail, then=deny))
    assert dispatcher.halt is Halt.REFUSED


# Patience.


def test_a_wait_the_api_asks_for_is_kept_by_all() -> None:
    dispatcher = started(answer)
    jobs = take_all(dispatcher, now_s=0)
    busy(60)(dispatcher, jobs[0], 10)
    for job in jobs[1:]:
        answer(dispatcher, job, 10)
    assert dispatcher.wait_s(10) == 60
    assert dispatcher.take(69.9) is None
    assert dispatcher.take(70) is not None


def test_a_shorter_wait_does_not_cut_a_longer_one_short() -> None:
    dispatcher = started(answer)
    jobs = take_all(dispatcher, now_s=0)
    busy(60)(dispatcher, jobs[0], 0)
    busy(5)(dispatcher, jobs[1], 1)
    assert dispatcher.take(59.9) is None


def test_the_longest_wait_that_is_accepted_is_no_halt() -> None:
    dispatcher = started(answer, busy(300))
    assert dispatcher.halt is None
    assert dispatcher.wait_s(0) == 300


def test_a_longer_wait_ends_the_pass() -> None:
    dispatcher = started(answer, busy(301))
    assert (dispatcher.halt, dispatcher.halt_reason) == (Halt.BUSY, "the API asks to wait 301 s")
    assert dispatcher.take(1000) is None
    assert dispatcher.wait_s(1000) is None


def test_a_longer_wait_ends_the_pass_when_a_failing_api_asks_for_it() -> None:
    dispatcher = Dispatcher(LIMITS)
    dispatcher.offer(many())
    job = taken(dispatcher, 0)
    dispatcher.troubled(job, Trouble("503", 3600, is_busy=False, chance=0), 0)
    assert dispatcher.halt is Halt.BUSY


def test_an_api_that_is_always_busy_fails_its_runs_and_is_not_down() -> None:
    dispatcher, sent, ended = played(many(3), in_turn(then=busy(None)))
    assert dispatcher.halt is None
    assert len(sent) == 3 * LIMITS.attempts
    assert [job.trouble.reason for job in ended.values() if job.trouble] == ["429"] * 3


@pytest.mark.parametrize(("chance", "pause_s"), [(0, 0.5), (0.5, 0.375), (1, 0.25)])
def test_chance_shortens_a_pause_by_up_to_half(chance: float, pause_s: float) -> None:
    dispatcher = started()
    job = taken(dispatcher, 0)
    dispatcher.troubled(job, Trouble("no answer", None, is_busy=False, chance=chance), 0)
    assert dispatcher.wait_s(0) == pause_s


def test_chance_does_not_shorten_what_the_api_asks_for() -> None:
    dispatcher = started()
    dispatcher.troubled(taken(dispatcher, 0), Trouble("429", 60, is_busy=True, chance=1), 0)
    assert dispatcher.wait_s(0) == 60


# The end of a pass.


def test_the_first_reason_to_stop_counts() -> None:
    dispatcher = started(answer)
    dispatcher.stop(Halt.INTERRUPTED, "SIGTERM")
    dispatcher.stop(Halt.DOWN, "no answer")
    assert (dispatcher.halt, dispatcher.halt_reason) == (Halt.INTERRUPTED, "SIGTERM")


def test_after_a_stop_what_is_under_way_comes_to_its_end() -> None:
    dispatcher = started(answer)
    jobs = take_all(dispatcher, now_s=0)
    dispatcher.stop(Halt.INTERRUPTED, "SIGTERM")
    assert dispatcher.take(0) is None
    was_idle = dispatcher.is_idle
    for job in jobs:
        dispatcher.answered(job)
    assert (was_idle, dispatcher.is_idle) == (False, True)
    assert len(dispatcher.finished()) == 5


def test_a_job_that_comes_back_without_a_verdict_is_not_finished() -> None:
    dispatcher = started()
    taken(dispatcher, 0)
    dispatcher.stop(Halt.REFUSED, "401")
    dispatcher.returned()
    dispatcher.finish()
    assert dispatcher.is_idle
    assert dispatcher.finished() == []


# Whatever comes.

waits = st.none() | st.floats(0, 400)
verdicts = st.sampled_from([answer, answer, answer, fail, deny]) | st.builds(busy, waits)
limits = st.builds(
    Limits,
    connections=st.integers(1, 8),
    max_requests_per_second=st.sampled_from([0.5, 3, 10, 50]),
    attempts=st.integers(1, 10),
    max_wait_s=st.sampled_from([0, 30, 300]),
)
latencies = st.lists(st.floats(0, 2), min_size=1, max_size=10)


@given(limits, st.lists(verdicts, max_size=30), verdicts, latencies)
@settings(max_examples=100)
def test_neither_rate_nor_connections_are_ever_exceeded(
    limits: Limits, first: list[Verdict], then: Verdict, latency_s: list[float]
) -> None:
    dispatcher = Dispatcher(limits)
    dispatcher.offer(many(30))
    turns = count()
    latency = iter(lambda: latency_s[next(turns) % len(latency_s)], None)
    sent = drive(dispatcher, in_turn(*first, then=then), latency)
    gaps = [later.at_s - earlier.at_s for earlier, later in pairwise(sent)]
    assert min(gaps, default=math.inf) >= 1 / limits.max_requests_per_second - 1e-6
    assert max(each.under_way for each in sent) <= limits.connections


class AnyPass(RuleBasedStateMachine):
    """A pass in which everything happens in any order; no job is lost, none ends twice."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = LIMITS._replace(attempts=4)
        self.dispatcher = Dispatcher(self.limits)
        self.now_s = 0.0
        self.offered: set[str] = set()
        self.under_way: list[Job] = []
        self.ended: list[str] = []
        self.dropped: set[str] = set()

    @rule(number=st.integers(1, 6))
    def offer(self, number: int) -> None:
        run_ids = [f"run-{len(self.offered) + position}" for position in range(number)]
        self.offered.update(run_ids)
        self.dispatcher.offer(targets(*run_ids))

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def take(self) -> None:
        wait_s = self.dispatcher.wait_s(self.now_s)
        job = self.dispatcher.take(self.now_s)
        assert (job is not None) == (wait_s == 0)
        if job:
            self.under_way.append(job)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), verdict=verdicts)
    def come_back(self, data: st.DataObject, verdict: Verdict) -> None:
        job = data.draw(st.sampled_from(self.under_way))
        self.under_way.remove(job)
        verdict(self.dispatcher, job, self.now_s)

    @precondition(lambda self: self.under_way)
    @rule()
    def come_back_without_a_verdict(self) -> None:
        self.dropped.add(self.under_way.pop().target.run_id)
        self.dispatcher.returned()
        self.dispatcher.stop(Halt.REFUSED, "401")

    @rule()
    def collect(self) -> None:
        self.ended += [job.target.run_id for job in self.dispatcher.finished()]

    @invariant()
    def as_many_are_under_way_as_were_taken_and_may_be(self) -> None:
        assert self.dispatcher.in_flight == len(self.under_way) <= self.limits.connections

    @invariant()
    def none_ends_twice_or_while_it_is_under_way(self) -> None:
        assert len(set(self.ended)) == len(self.ended)
        assert not self.dropped.intersection(self.ended)
        assert not {job.target.run_id for job in self.under_way}.intersection(self.ended)

    @invariant()
    def none_is_sent_more_often_than_it_may_be(self) -> None:
        assert all(1 <= job.attempts <= self.limits.attempts for job in self.under_way)

    def teardown(self) -> None:
        """Bring the pass to its end: without a halt, each run has ended once."""
        while self.under_way:
            self.dispatcher.answered(self.under_way.pop())
        drive(self.dispatcher, in_turn(then=answer), iter(lambda: 1.0, None))
        self.collect()
        self.none_ends_twice_or_while_it_is_under_way()
        assert self.offered.issuperset(self.ended)
        if self.dispatcher.halt is None:
            assert self.offered == set(self.ended)


TestAnyPass = AnyPass.TestCase
TestAnyPass.settings = settings(max_examples=100, stateful_step_count=40)


# --- what the sources of a pass share ---


def with_token(run_id: str) -> Target:
    return targets(run_id)[0]._replace(read_token="encrypted")


def test_two_sources_share_connections_and_rate() -> None:
    limits = LIMITS._replace(connections=1)
    pace = Pace(limits)
    one, other = Dispatcher(limits, pace), Dispatcher(limits, pace)
    one.offer(targets("a"))
    other.offer(targets("b"))
    job = taken(one, 0)
    assert other.take(0) is None
    one.answered(job)
    assert other.take(0) is not None


def test_a_wait_that_one_source_asks_for_is_kept_by_the_other() -> None:
    pace = Pace(LIMITS)
    one, other = Dispatcher(LIMITS, pace), Dispatcher(LIMITS, pace)
    one.offer(targets("a"))
    other.offer(targets("b"))
    one.troubled(taken(one, 0), Trouble("429", 60, is_busy=True, chance=0), 0)
    assert (other.take(59.9), other.halt) == (None, None)
    assert other.take(60) is not None


def test_a_longer_wait_that_one_source_asks_for_halts_the_other_too() -> None:
    pace = Pace(LIMITS)
    one, other = Dispatcher(LIMITS, pace), Dispatcher(LIMITS, pace)
    one.offer(targets("a"))
    other.offer(targets("b"))
    one.troubled(taken(one, 0), Trouble("429", 301, is_busy=True, chance=0), 0)
    assert (other.halt, other.halt_reason) == (Halt.BUSY, "the API asks to wait 301 s")
    assert (other.take(1000), other.is_idle) == (None, True)


def test_a_budget_is_that_of_requests_and_not_of_runs() -> None:
    dispatcher = Dispatcher(LIMITS._replace(max_requests=4))
    dispatcher.offer(targets("a", "b", "c"))
    for now in (0, 10, 20, 30):
        dispatcher.troubled(taken(dispatcher, now), Trouble("500", None, False, 0), now)
    assert dispatcher.take(100) is None
    assert dispatcher.is_idle


def test_runs_without_a_token_do_not_hide_those_that_have_one() -> None:
    """A key without read permission is no refused key while its tokens work."""
    dispatcher = Dispatcher(LIMITS)
    dispatcher.offer([*many(6), with_token("mine")])
    dispatcher.denied(taken(dispatcher, 0), "403")
    job = taken(dispatcher, 1)
    assert job.target.run_id == "mine"
    dispatcher.answered(job)
    assert dispatcher.halt is None


def test_runs_in_trouble_when_the_api_is_down_are_deferred() -> None:
    dispatcher = Dispatcher(LIMITS)
    dispatcher.offer(many())
    now = 0.0
    while dispatcher.halt is None:
        now += 100
        fail(dispatcher, taken(dispatcher, now), now)
    assert dispatcher.halt is Halt.DOWN
    assert len(dispatcher.deferred()) == FAILED_PROBES
    assert dispatcher.finished() == []


def test_what_ends_without_a_request_tells_nothing_of_the_api() -> None:
    dispatcher = Dispatcher(LIMITS)
    dispatcher.offer(many(3))
    job = taken(dispatcher, 0)
    dispatcher.set_aside(job)
    assert dispatcher.finished() == [job]
    assert len(take_all(dispatcher, 1)) == 1, "it still probes, one at a time"


# --- how many threads are worth having ---


def steady_size(waiting_s: float, computing_s: float, most: int = 64) -> int:
    """Follow a process whose threads wait side by side, and compute one after another."""
    crew, cpu_s = Crew(most), 0.0
    for second in range(50):
        crew.review(second, cpu_s)
        each_s = max(waiting_s + computing_s, crew.size * computing_s)
        cpu_s += crew.size * computing_s / each_s
    return crew.size


@pytest.mark.parametrize(
    ("waiting_s", "size"), [(0.0, 1), (0.00005, 1), (0.001, 5), (0.002, 10), (0.1, 64)]
)
def test_as_many_threads_fetch_as_keep_a_processor_busy(waiting_s: float, size: int) -> None:
    assert abs(steady_size(waiting_s, computing_s=0.0002) - size) <= 1


def test_there_is_always_a_thread_and_never_more_than_allowed() -> None:
    crew = Crew(4)
    crew.review(0, 0)
    crew.review(1, 0)
    assert crew.size == 4
    for second in range(2, 10):
        crew.review(second, second * 2)
    assert crew.size == 1
