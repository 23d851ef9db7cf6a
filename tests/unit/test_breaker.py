import heapq
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import count, pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from etl.answers.outcome import Reason, Target, TransientError
from etl.fetch.breaker import (
    CONTROLS_IN_A_ROW,
    DENIED_AT_FIRST,
    FAILED_PROBES,
    MOST_CONTROLS,
    NO_RESULTS,
    Breaker,
    Job,
    Signal,
)
from etl.fetch.permits import Allowed, Halt, Permits
from etl.fetch.rate_limit import Budget, Concurrency, Pauses, RequestLimits
from tests.support.permits import LoneWorker

NOW = datetime(2024, 5, 1, tzinfo=UTC)
LIMITS = RequestLimits(connections=4, max_requests_per_second=0, attempts=3, max_wait_s=300)

Verdict = Callable[[Breaker, Job, float], None]


class LoneBreaker(Breaker):
    """A breaker whose demands for permits are answered at once: no other worker is alive."""

    def __init__(
        self, limits: RequestLimits, budget: Budget | None = None, control: Target | None = None
    ) -> None:
        super().__init__(limits, budget, control)
        self.worker = LoneWorker(limits)

    def wait_s(self, now: float) -> float | None:
        while ask := self.ask_permits("default", now):
            if ask.room:
                self.permit(self.worker.answer(ask, now), now)
        wait_s = super().wait_s(now)
        return self.asks_in_s(now) if wait_s is None else wait_s


def targets(*run_ids: str) -> list[Target]:
    return [Target(run_id, "default", None, None) for run_id in run_ids]


def many(number: int = 100) -> list[Target]:
    return targets(*(f"run-{position}" for position in range(number)))


def no_answer(message: str = "no answer", wait_s: float | None = None) -> TransientError:
    return TransientError(Reason.NO_ANSWER, message, wait_s, is_busy=False, chance=0)


def asks_to_wait(wait_s: float | None, chance: float = 0) -> TransientError:
    return TransientError(Reason.HTTP_STATUS, "429", wait_s, is_busy=True, chance=chance)


DENIAL = TransientError(Reason.DENIED, "403", None, is_busy=False, chance=0)
PAGE = TransientError(Reason.UNREADABLE, "is no JSON", None, is_busy=False, chance=0)


def answer(breaker: Breaker, job: Job, now: float) -> None:
    breaker.record(job, Signal.RESULT, None, now)


def deny(breaker: Breaker, job: Job, now: float) -> None:
    breaker.record(job, Signal.DENIED, DENIAL, now)


def fail(breaker: Breaker, job: Job, now: float) -> None:
    breaker.record(job, Signal.TRANSIENT, no_answer(), now)


def show_page(breaker: Breaker, job: Job, now: float) -> None:
    breaker.record(job, Signal.NO_RESULT, PAGE, now)


def busy(wait_s: float | None) -> Verdict:
    def verdict(breaker: Breaker, job: Job, now: float) -> None:
        breaker.record(job, Signal.TRANSIENT, asks_to_wait(wait_s), now)

    return verdict


def in_turn(*verdicts: Verdict, then: Verdict) -> Callable[[Job], Verdict]:
    """Give `verdicts` to the first requests, and `then` to all after them."""
    left = iter(verdicts)
    return lambda _job: next(left, then)


def by_run(verdicts: Mapping[str, Verdict], others: Verdict) -> Callable[[Job], Verdict]:
    return lambda job: verdicts.get(job.target.run_id, others)


class Sent(NamedTuple):
    """A request: when it was sent, for which run, and how many were under way with it."""

    at_s: float
    run_id: str
    under_way: int


def drive(
    breaker: Breaker, verdict_on: Callable[[Job], Verdict], latency_s: Iterator[float]
) -> list[Sent]:
    """Play a pass on a clock of its own: send what may be sent, let it come back, until idle."""
    now_s, sent, under_way, number = 0.0, [], list[tuple[float, int, Job]](), count()
    while True:
        while job := breaker.take(now_s):
            heapq.heappush(under_way, (now_s + next(latency_s), next(number), job))
            sent.append(Sent(now_s, job.target.run_id, len(under_way)))
        if breaker.is_idle and breaker.ask_control():
            continue
        if breaker.is_idle:
            break
        wait_s = breaker.wait_s(now_s)
        moments = [under_way[0][0]] if under_way else []
        # At least one tick: the clock of a long pass has no room for a very short wait.
        moments += [] if wait_s is None else [max(now_s + wait_s, math.nextafter(now_s, math.inf))]
        now_s = min(moments)
        while under_way and under_way[0][0] <= now_s:
            job = heapq.heappop(under_way)[2]
            verdict_on(job)(breaker, job, now_s)
    breaker.finish()
    return sent


def played(
    offered: list[Target], verdict_on: Callable[[Job], Verdict], limits: RequestLimits = LIMITS
) -> tuple[Breaker, list[Sent], dict[str, Job]]:
    """Return the breaker after a pass, the requests, and the jobs that ended by run ID."""
    breaker = LoneBreaker(limits)
    breaker.offer(offered)
    sent = drive(breaker, verdict_on, iter(lambda: 1.0, None))
    finished = breaker.take_finished()
    ended = {job.target.run_id: job for job in finished}
    assert len(ended) == len(finished)
    return breaker, sent, ended


def started(*verdicts: Verdict, limits: RequestLimits = LIMITS) -> Breaker:
    """Return a breaker with many runs, whose first requests got `verdicts`, one at a time."""
    breaker = LoneBreaker(limits)
    breaker.offer(many())
    for verdict in verdicts:
        verdict(breaker, taken(breaker, 0), 0)
    return breaker


def taken(breaker: Breaker, now_s: float) -> Job:
    job = breaker.take(now_s)
    assert job is not None
    return job


def take_all(breaker: Breaker, now_s: float) -> list[Job]:
    jobs = []
    while job := breaker.take(now_s):
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
    breaker = started(answer)
    jobs = take_all(breaker, now_s=0)
    fail(breaker, jobs[0], 0)
    later_s = 100
    for job in jobs[1:]:
        assert breaker.take(later_s) is None
        assert breaker.wait_s(later_s) is None
        fail(breaker, job, 0)
    assert len(take_all(breaker, later_s)) == 1


@pytest.mark.parametrize("sign_of_life", [answer, deny])
def test_any_answer_opens_up_again_after_a_failure(sign_of_life: Verdict) -> None:
    breaker = started(answer)
    fail(breaker, taken(breaker, 0), 0)
    sign_of_life(breaker, taken(breaker, 100), 100)
    assert len(take_all(breaker, now_s=100)) == 4


def test_patience_asked_for_does_not_close_down() -> None:
    breaker = started(answer)
    busy(5)(breaker, taken(breaker, 0), 0)
    assert len(take_all(breaker, now_s=5)) == 4


def test_more_runs_can_be_offered_at_any_time() -> None:
    breaker = LoneBreaker(LIMITS)
    assert breaker.is_idle
    breaker.offer(targets("a"))
    assert (breaker.is_idle, breaker.waiting) == (False, 1)
    drive(breaker, in_turn(then=answer), iter(lambda: 1.0, None))
    assert breaker.is_idle
    breaker.offer(targets("b"))
    assert taken(breaker, 100).target.run_id == "b"


# An API that is down.


@pytest.mark.parametrize("attempts", [1, 3, 10])
def test_a_dead_api_costs_so_many_requests_as_probes_may_fail(attempts: int) -> None:
    limits = LIMITS._replace(attempts=attempts)
    breaker, sent, ended = played(many(), in_turn(then=fail), limits)
    assert (breaker.halt, breaker.halt_reason) == (Halt.DOWN, "no answer")
    assert len(sent) == FAILED_PROBES
    assert ended == {}


@pytest.mark.parametrize("attempts", [1, 3, 5])
def test_with_a_single_run_a_dead_api_costs_its_attempts(attempts: int) -> None:
    limits = LIMITS._replace(attempts=attempts)
    breaker, sent, ended = played(targets("a"), in_turn(then=fail), limits)
    assert (breaker.halt, breaker.halt_reason) == (Halt.DOWN, "no answer")
    assert len(sent) == attempts
    assert ended == {}


def test_an_api_that_dies_on_the_way_costs_those_under_way_and_the_probes() -> None:
    answered = 1 + 2 * LIMITS.connections
    breaker, sent, ended = played(many(), in_turn(*[answer] * answered, then=fail))
    assert breaker.halt is Halt.DOWN
    assert len(sent) == answered + LIMITS.connections + FAILED_PROBES
    assert len(ended) == answered


def test_the_probes_that_fail_must_be_in_a_row() -> None:
    almost = [fail] * (FAILED_PROBES - 1)
    verdicts = in_turn(*almost, answer, *almost, answer, then=answer)
    breaker, _, ended = played(many(), verdicts)
    assert breaker.halt is None
    assert len(ended) == 100


@pytest.mark.parametrize("sign_of_life", [deny, busy(0)])
def test_any_answer_breaks_the_row_of_failed_probes(sign_of_life: Verdict) -> None:
    breaker = LoneBreaker(LIMITS)
    breaker.offer(many())
    verdicts = [fail] * (FAILED_PROBES - 1) + [sign_of_life, fail]
    for turn, verdict in enumerate(verdicts):
        now_s = turn * 100.0
        verdict(breaker, taken(breaker, now_s), now_s)
    assert breaker.halt is None


def test_failed_probes_are_ever_further_apart() -> None:
    _, sent, _ = played(many(), in_turn(then=fail))
    gaps = [later.at_s - earlier.at_s for earlier, later in pairwise(sent)]
    assert gaps == sorted(set(gaps))


# A run that fails.


@pytest.mark.parametrize("attempts", [1, 3, 5])
@pytest.mark.parametrize("bad", ["run-0", "run-50", "run-99"])
def test_a_bad_run_among_good_ones_is_trouble_and_stops_nothing(bad: str, attempts: int) -> None:
    limits = LIMITS._replace(attempts=attempts)
    breaker, sent, ended = played(many(), by_run({bad: fail}, others=answer), limits)
    assert breaker.halt is None
    assert len(ended) == 100
    assert [run_id for run_id, job in ended.items() if job.error] == [bad]
    assert sum(each.run_id == bad for each in sent) == attempts


def test_a_run_that_fails_once_and_answers_then_ends_without_trouble() -> None:
    _, sent, ended = played(targets("a", "b"), in_turn(fail, then=answer))
    assert [each.run_id for each in sent] == ["a", "b", "a"]
    assert [job.error for job in ended.values()] == [None, None]


def test_a_run_that_fails_once_and_is_denied_then_ends_denied() -> None:
    _, _, ended = played(targets("a"), in_turn(fail, then=deny))
    assert ended["a"].error == DENIAL


# 403.


def test_so_many_403_at_first_are_a_refused_key() -> None:
    breaker, sent, ended = played(many(), in_turn(then=deny))
    assert breaker.halt is Halt.REFUSED
    assert breaker.halt_reason.startswith("the first 5 answers were all 403; ")
    assert len(sent) == DENIED_AT_FIRST
    assert ended == {}


def test_fewer_403_and_then_an_answer_are_failures_of_those_runs() -> None:
    verdicts = in_turn(*[deny] * (DENIED_AT_FIRST - 1), then=answer)
    breaker, _, ended = played(many(), verdicts)
    assert breaker.halt is None
    denied = {run_id for run_id, job in ended.items() if job.error == DENIAL}
    assert denied == {"run-0", "run-1", "run-2", "run-3"}
    assert len(ended) == 100


def test_fewer_403_and_nothing_else_are_failures_of_those_runs() -> None:
    breaker, _, ended = played(many(DENIED_AT_FIRST - 1), in_turn(then=deny))
    assert breaker.halt is None
    assert [job.error for job in ended.values()] == [DENIAL] * 4


def test_an_api_that_answers_403_is_not_down() -> None:
    breaker, _, ended = played(targets("a", "b"), by_run({"a": deny}, others=fail))
    assert breaker.halt is None
    assert ended["a"].error == DENIAL
    assert ended["b"].error == no_answer()


def test_before_the_pass_is_over_a_403_at_first_is_not_decided() -> None:
    breaker = started(deny)
    assert breaker.take_finished() == []


def test_after_an_answer_any_number_of_403_stop_nothing() -> None:
    breaker, _, ended = played(many(), in_turn(answer, then=deny))
    assert breaker.halt is None
    assert sum(job.error is not None for job in ended.values()) == 99


def test_after_an_answer_a_403_is_decided_at_once() -> None:
    breaker = started(answer, deny)
    assert [job.error for job in breaker.take_finished()] == [None, DENIAL]


def test_failures_do_not_hide_a_refused_key() -> None:
    breaker, _, _ = played(many(), in_turn(deny, fail, deny, fail, then=deny))
    assert breaker.halt is Halt.REFUSED


# Answers that are no results.


def test_pages_instead_of_results_stop_the_source_after_five_runs() -> None:
    breaker, sent, ended = played(many(), in_turn(then=show_page))
    assert (breaker.halt, ended) == (Halt.DOWN, {})
    assert breaker.halt_reason == "the last 5 answers were no results: is no JSON"
    assert len(sent) == NO_RESULTS
    assert len(breaker.deferred()) == NO_RESULTS


def test_pages_that_begin_in_mid_pass_cost_those_under_way_and_the_probes() -> None:
    breaker, sent, ended = played(many(), in_turn(*[answer] * 20, then=show_page))
    assert breaker.halt is Halt.DOWN
    assert len(ended) == 20
    assert len(sent) <= 20 + LIMITS.connections + NO_RESULTS


def test_one_unreadable_run_among_good_ones_ends_with_its_error_after_one_request() -> None:
    breaker, sent, ended = played(many(), by_run({"run-7": show_page}, others=answer))
    assert breaker.halt is None
    assert [run_id for run_id, job in ended.items() if job.error] == ["run-7"]
    assert sum(each.run_id == "run-7" for each in sent) == 1


def test_pages_and_failures_in_turn_stop_the_source() -> None:
    breaker, sent, _ = played(many(), in_turn(*[show_page, fail] * 50, then=fail))
    assert breaker.halt is Halt.DOWN
    assert len(sent) <= NO_RESULTS + FAILED_PROBES


@pytest.mark.parametrize("bad", [fail, show_page])
def test_an_archived_run_that_answers_shows_that_a_failure_is_the_runs_own(bad: Verdict) -> None:
    breaker = LoneBreaker(LIMITS, control=targets("archived")[0])
    breaker.offer(targets("a"))
    sent = drive(breaker, by_run({"a": bad}, others=answer), iter(lambda: 1.0, None))
    assert breaker.halt is None
    assert [(job.target.run_id, job.is_own) for job in breaker.take_finished()] == [("a", True)]
    assert 1 <= [each.run_id for each in sent].count("archived") <= CONTROLS_IN_A_ROW


@pytest.mark.parametrize("bad", [fail, show_page])
def test_where_an_archived_run_fails_too_the_failure_is_not_the_runs_own(bad: Verdict) -> None:
    breaker = LoneBreaker(LIMITS, control=targets("archived")[0])
    breaker.offer(targets("a"))
    drive(breaker, in_turn(then=bad), iter(lambda: 1.0, None))
    ended = breaker.take_finished()
    assert [job.target.run_id for job in breaker.deferred()] == ["a"] * (bad is fail)
    assert (breaker.halt is Halt.DOWN) == (bad is fail)
    assert [(job.target.run_id, job.is_own) for job in ended] == [("a", False)] * (bad is not fail)


@pytest.mark.parametrize("bad", [fail, show_page])
def test_many_bad_runs_alone_stop_no_source_whose_archived_run_is_answered(bad: Verdict) -> None:
    """A row of failures is no evidence against an API that answers the control in its midst."""
    breaker = LoneBreaker(LIMITS, control=targets("archived")[0])
    breaker.offer(many(15))
    drive(breaker, by_run({"archived": answer}, others=bad), iter(lambda: 1.0, None))
    ended = breaker.take_finished()
    assert breaker.halt is None
    assert len(ended) == 15
    assert all(job.is_own for job in ended)


def test_the_control_costs_a_bounded_number_of_requests() -> None:
    breaker = LoneBreaker(LIMITS, control=targets("archived")[0])
    breaker.offer(many(1000))
    sent = drive(breaker, by_run({"archived": answer}, others=show_page), iter(lambda: 1.0, None))
    assert [each.run_id for each in sent].count("archived") == MOST_CONTROLS
    assert breaker.halt is Halt.DOWN


def test_failures_are_a_runs_own_only_while_most_others_are_answered() -> None:
    for every, is_own in ((10, True), (3, False)):
        bad = {f"run-{number}": show_page for number in range(0, 100, every)}
        breaker, _, ended = played(many(), by_run({**bad}, others=answer))
        assert breaker.halt is None
        assert {job.is_own for job in ended.values() if job.error} == {is_own}


# Patience.


def test_a_wait_the_api_asks_for_is_kept_by_all() -> None:
    breaker = started(answer)
    jobs = take_all(breaker, now_s=0)
    busy(60)(breaker, jobs[0], 10)
    for job in jobs[1:]:
        answer(breaker, job, 10)
    assert breaker.wait_s(10) == 60
    assert breaker.take(69.9) is None
    assert breaker.take(70) is not None


def test_a_shorter_wait_does_not_cut_a_longer_one_short() -> None:
    breaker = started(answer)
    jobs = take_all(breaker, now_s=0)
    busy(60)(breaker, jobs[0], 0)
    busy(5)(breaker, jobs[1], 1)
    assert breaker.take(59.9) is None


def test_the_longest_wait_that_is_accepted_is_no_halt() -> None:
    breaker = started(answer, busy(300))
    assert breaker.halt is None
    assert breaker.wait_s(0) == 300


def test_a_longer_wait_ends_the_pass() -> None:
    breaker = started(answer, busy(301))
    assert (breaker.halt, breaker.halt_reason) == (Halt.BUSY, "the API asks to wait 301 s")
    assert breaker.take(1000) is None
    assert breaker.wait_s(1000) is None


def test_a_longer_wait_ends_the_pass_when_a_failing_api_asks_for_it() -> None:
    breaker = LoneBreaker(LIMITS)
    breaker.offer(many())
    job = taken(breaker, 0)
    breaker.record(job, Signal.TRANSIENT, no_answer("503", 3600), 0)
    assert breaker.halt is Halt.BUSY


def test_an_api_that_is_always_busy_fails_its_runs_and_is_not_down() -> None:
    breaker, sent, ended = played(many(3), in_turn(then=busy(None)))
    assert breaker.halt is None
    assert len(sent) == 3 * LIMITS.attempts
    assert [job.error.message for job in ended.values() if job.error] == ["429"] * 3


@pytest.mark.parametrize(("chance", "pause_s"), [(0, 0.5), (0.5, 0.375), (1, 0.25)])
def test_chance_shortens_a_pause_by_up_to_half(chance: float, pause_s: float) -> None:
    breaker = started()
    job = taken(breaker, 0)
    breaker.record(job, Signal.TRANSIENT, no_answer()._replace(chance=chance), 0)
    assert breaker.wait_s(0) == pause_s


def test_chance_does_not_shorten_what_the_api_asks_for() -> None:
    breaker = started()
    breaker.record(taken(breaker, 0), Signal.TRANSIENT, asks_to_wait(60, chance=1), 0)
    assert breaker.wait_s(0) == 60


# The end of a pass.


def test_the_first_reason_to_stop_counts() -> None:
    breaker = started(answer)
    breaker.stop(Halt.INTERRUPTED, "SIGTERM")
    breaker.stop(Halt.DOWN, "no answer")
    assert (breaker.halt, breaker.halt_reason) == (Halt.INTERRUPTED, "SIGTERM")


def test_after_a_stop_what_is_under_way_comes_to_its_end() -> None:
    breaker = started(answer)
    jobs = take_all(breaker, now_s=0)
    breaker.stop(Halt.INTERRUPTED, "SIGTERM")
    assert breaker.take(0) is None
    was_idle = breaker.is_idle
    for job in jobs:
        answer(breaker, job, 0)
    assert (was_idle, breaker.is_idle) == (False, True)
    assert len(breaker.take_finished()) == 5


def test_a_job_that_comes_back_without_a_verdict_is_not_finished() -> None:
    breaker = started()
    breaker.record(taken(breaker, 0), Signal.KEY_REFUSED, DENIAL, 0)
    assert breaker.halt is Halt.REFUSED
    breaker.finish()
    assert breaker.is_idle
    assert breaker.take_finished() == []


# Whatever comes.

waits = st.none() | st.floats(0, 400)
verdicts = st.sampled_from([answer, answer, answer, fail, deny, show_page]) | st.builds(busy, waits)
limits = st.builds(
    RequestLimits,
    connections=st.integers(1, 8),
    max_requests_per_second=st.sampled_from([0.5, 3, 10, 50]),
    attempts=st.integers(1, 10),
    max_wait_s=st.sampled_from([0, 30, 300]),
    pauses=st.just(Pauses()),
)
latencies = st.lists(st.floats(0, 2), min_size=1, max_size=10)


@given(limits, st.lists(verdicts, max_size=30), verdicts, latencies)
@settings(max_examples=100)
def test_neither_rate_nor_connections_are_ever_exceeded(
    limits: RequestLimits, first: list[Verdict], then: Verdict, latency_s: list[float]
) -> None:
    breaker = LoneBreaker(limits)
    breaker.offer(many(30))
    turns = count()
    latency = iter(lambda: latency_s[next(turns) % len(latency_s)], None)
    sent = drive(breaker, in_turn(*first, then=then), latency)
    rate = limits.max_requests_per_second
    most = math.ceil(rate + max(1, rate / 10) - 1e-6)
    for each in sent:
        assert sum(each.at_s <= other.at_s < each.at_s + 1 for other in sent) <= most
    assert max(each.under_way for each in sent) <= limits.connections


class AnyPass(RuleBasedStateMachine):
    """A pass in which everything happens in any order; no job is lost, none ends twice."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = LIMITS._replace(attempts=4)
        self.breaker = LoneBreaker(self.limits)
        self.now_s = 0.0
        self.offered: set[str] = set()
        self.under_way: list[Job] = []
        self.ended: list[str] = []
        self.dropped: set[str] = set()

    @rule(number=st.integers(1, 6))
    def offer(self, number: int) -> None:
        run_ids = [f"run-{len(self.offered) + position}" for position in range(number)]
        self.offered.update(run_ids)
        self.breaker.offer(targets(*run_ids))

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def take(self) -> None:
        wait_s = self.breaker.wait_s(self.now_s)
        job = self.breaker.take(self.now_s)
        assert (job is not None) == (wait_s == 0)
        if job:
            self.under_way.append(job)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), verdict=verdicts)
    def come_back(self, data: st.DataObject, verdict: Verdict) -> None:
        job = data.draw(st.sampled_from(self.under_way))
        self.under_way.remove(job)
        verdict(self.breaker, job, self.now_s)

    @precondition(lambda self: self.under_way)
    @rule()
    def come_back_without_a_verdict(self) -> None:
        job = self.under_way.pop()
        self.dropped.add(job.target.run_id)
        self.breaker.record(job, Signal.KEY_REFUSED, DENIAL, self.now_s)

    @rule()
    def collect(self) -> None:
        self.ended += [job.target.run_id for job in self.breaker.take_finished()]

    @invariant()
    def as_many_are_under_way_as_were_taken_and_may_be(self) -> None:
        assert self.breaker.in_flight == len(self.under_way) <= self.limits.connections

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
            answer(self.breaker, self.under_way.pop(), self.now_s)
        drive(self.breaker, in_turn(then=answer), iter(lambda: 1.0, None))
        self.collect()
        self.none_ends_twice_or_while_it_is_under_way()
        assert self.offered.issuperset(self.ended)
        if self.breaker.halt is None:
            assert self.offered == set(self.ended)


TestAnyPass = AnyPass.TestCase
TestAnyPass.settings = settings(max_examples=100, stateful_step_count=40)


# --- what the sources of a pass share ---


def with_token(run_id: str) -> Target:
    return targets(run_id)[0]._replace(read_token="encrypted")


def test_sources_share_nothing_but_the_budget_of_a_pass() -> None:
    limits = LIMITS._replace(max_requests=3)
    budget = Budget(limits)
    one, other = LoneBreaker(limits, budget=budget), LoneBreaker(limits, budget=budget)
    one.offer(targets("a"))
    other.offer(targets("b", "c", "d"))
    busy(301)(one, taken(one, 0), 0)
    assert (one.halt, other.halt) == (Halt.BUSY, None)
    answer(other, taken(other, 0), 0)
    answer(other, taken(other, 0), 0)
    assert (other.take(0), other.is_idle) == (None, True)


# --- what other workers of a source tell ---


def waiting_breaker() -> Breaker:
    """Return a breaker with runs that has asked for permits."""
    breaker = Breaker(LIMITS)
    breaker.offer(many())
    assert breaker.ask_permits("default", NOW_S) is not None
    return breaker


NOW_S = 1000.0
REFUSAL = Permits("default", NOW_S + 0.2, 0, 4, may_probe=False)
PERMITS = Permits("default", NOW_S, 0.5, 4, may_probe=True)


def test_nothing_is_sent_without_a_permit() -> None:
    breaker = waiting_breaker()
    assert breaker.take(NOW_S) is None
    breaker.permit(PERMITS, NOW_S)
    assert len(take_all(breaker, NOW_S)) == 1


def test_permits_are_lost_with_their_time() -> None:
    breaker = waiting_breaker()
    breaker.permit(PERMITS, NOW_S)
    assert breaker.take(NOW_S + 0.6) is None


def test_only_one_worker_probes() -> None:
    breaker = waiting_breaker()
    breaker.permit(REFUSAL, NOW_S)
    assert breaker.take(NOW_S) is None
    assert breaker.asks_in_s(NOW_S) == pytest.approx(0.2)
    assert breaker.ask_permits("default", NOW_S + 0.3) is not None
    breaker.permit(PERMITS, NOW_S)
    assert len(take_all(breaker, NOW_S)) == 1


def test_an_answer_to_another_worker_ends_the_probing() -> None:
    breaker = waiting_breaker()
    breaker.permit(replace(REFUSAL, answered_at=NOW_S - 1), NOW_S)
    ask = breaker.ask_permits("default", NOW_S + 0.3)
    assert ask is not None
    assert not ask.probes
    breaker.permit(replace(PERMITS, may_probe=False), NOW_S)
    assert len(take_all(breaker, NOW_S)) == 4


def test_an_answer_before_the_failure_does_not_end_the_probing() -> None:
    breaker = waiting_breaker()
    breaker.permit(PERMITS, NOW_S)
    fail(breaker, taken(breaker, NOW_S), NOW_S)
    assert breaker.ask_permits("default", NOW_S + 0.5) is not None
    breaker.permit(replace(PERMITS, begins_at=NOW_S + 0.5, answered_at=NOW_S - 0.1), NOW_S + 0.5)
    assert len(take_all(breaker, NOW_S + 0.5)) == 1


def test_a_halt_of_another_worker_stops_this_one() -> None:
    breaker = waiting_breaker()
    breaker.permit(replace(REFUSAL, halt=Halt.REFUSED, halt_reason="401"), NOW_S)
    assert (breaker.halt, breaker.halt_reason) == (Halt.REFUSED, "401")
    assert (breaker.is_idle, breaker.asks_in_s(NOW_S)) == (True, None)


def test_a_wait_that_another_worker_was_asked_for_is_kept() -> None:
    breaker = waiting_breaker()
    breaker.permit(replace(REFUSAL, asked_until=NOW_S + 60), NOW_S)
    assert breaker.asks_in_s(NOW_S) == 60


def test_a_wait_is_reported_at_once() -> None:
    breaker = waiting_breaker()
    breaker.permit(PERMITS, NOW_S)
    busy(60)(breaker, taken(breaker, NOW_S), NOW_S)
    report = breaker.ask_permits("default", NOW_S)
    assert report is not None
    assert (report.room, report.asked_until) == (0, NOW_S + 60)


def test_a_refused_key_is_reported_at_once() -> None:
    breaker = waiting_breaker()
    breaker.permit(PERMITS, NOW_S)
    breaker.record(taken(breaker, NOW_S), Signal.KEY_REFUSED, DENIAL, NOW_S)
    report = breaker.ask_permits("default", NOW_S)
    assert report is not None
    assert (report.room, report.halt, report.halt_reason) == (0, Halt.REFUSED, "403")
    assert breaker.ask_permits("default", NOW_S) is None


def test_connections_that_others_may_use_are_reported_when_they_are_free() -> None:
    breaker = waiting_breaker()
    breaker.permit(PERMITS, NOW_S)
    answer(breaker, taken(breaker, NOW_S), NOW_S)
    jobs = take_all(breaker, NOW_S)
    breaker.permit(replace(REFUSAL, begins_at=None, connections=2), NOW_S)
    reports = []
    for job in jobs:
        answer(breaker, job, NOW_S)
        reports.append(breaker.ask_permits("default", NOW_S))
    assert [each and (each.connections, each.in_flight) for each in reports[:2]] == [None, (2, 2)]
    assert len(take_all(breaker, NOW_S)) == 2


def test_a_budget_is_that_of_requests_and_not_of_runs() -> None:
    breaker = LoneBreaker(LIMITS._replace(max_requests=4))
    breaker.offer(targets("a", "b", "c"))
    for now in (0, 10, 20, 30):
        fail(breaker, taken(breaker, now), now)
    assert breaker.take(100) is None
    assert breaker.is_idle


def test_requests_beyond_those_allowed_are_asked_for() -> None:
    breaker = Breaker(LIMITS._replace(max_requests=4))
    breaker.offer(many())
    assert breaker.ask_permits("default", NOW_S) is not None
    breaker.permit(replace(PERMITS, allowed=Allowed(1, is_last=False)), NOW_S)
    answer(breaker, taken(breaker, NOW_S), NOW_S)
    assert (breaker.take(NOW_S), breaker.is_idle) == (None, False)
    ask = breaker.ask_permits("default", NOW_S)
    assert ask is not None
    assert ask.sent == 1
    breaker.permit(replace(PERMITS, allowed=Allowed(2, is_last=True)), NOW_S)
    assert len(take_all(breaker, NOW_S)) == 1
    assert breaker.ask_permits("default", NOW_S) is None


def test_runs_without_a_token_do_not_hide_those_that_have_one() -> None:
    """A key without read permission is no refused key while its tokens work."""
    breaker = LoneBreaker(LIMITS)
    breaker.offer([*many(6), with_token("mine")])
    deny(breaker, taken(breaker, 0), 0)
    job = taken(breaker, 1)
    assert job.target.run_id == "mine"
    answer(breaker, job, 0)
    assert breaker.halt is None


def test_runs_in_trouble_when_the_api_is_down_are_deferred() -> None:
    breaker = LoneBreaker(LIMITS)
    breaker.offer(many())
    now = 0.0
    while breaker.halt is None:
        now += 100
        fail(breaker, taken(breaker, now), now)
    assert breaker.halt is Halt.DOWN
    assert len(breaker.deferred()) == FAILED_PROBES
    assert breaker.take_finished() == []


def test_what_ends_without_a_request_tells_nothing_of_the_api() -> None:
    breaker = LoneBreaker(LIMITS)
    breaker.offer(many(3))
    job = taken(breaker, 0)
    breaker.record(job, Signal.NO_REQUEST, no_answer(), 0)
    assert breaker.take_finished() == [job]
    assert len(take_all(breaker, 1)) == 1, "it still probes, one at a time"


def test_a_machine_without_resources_stops_at_once_and_says_nothing_of_the_api() -> None:
    breaker = LoneBreaker(LIMITS)
    breaker.offer(many(3))
    job = taken(breaker, 0)
    breaker.record(job, Signal.NO_RESOURCES, no_answer(), 0)
    assert breaker.halt is Halt.NO_RESOURCES
    assert take_all(breaker, 1) == []
    breaker.finish()
    assert breaker.deferred() == [job]


# --- how many threads are worth having ---


def steady_size(waiting_s: float, computing_s: float, most: int = 64) -> int:
    """Follow a process whose threads wait side by side, and compute one after another."""
    concurrency, cpu_s = Concurrency(most), 0.0
    for second in range(50):
        concurrency.adapt(second, cpu_s)
        each_s = max(waiting_s + computing_s, concurrency.size * computing_s)
        cpu_s += concurrency.size * computing_s / each_s
    return concurrency.size


@pytest.mark.parametrize(
    ("waiting_s", "size"), [(0.0, 1), (0.00005, 1), (0.001, 5), (0.002, 10), (0.1, 64)]
)
def test_as_many_threads_fetch_as_keep_a_processor_busy(waiting_s: float, size: int) -> None:
    assert abs(steady_size(waiting_s, computing_s=0.0002) - size) <= 1


def test_there_is_always_a_thread_and_never_more_than_allowed() -> None:
    concurrency = Concurrency(4)
    concurrency.adapt(0, 0)
    concurrency.adapt(1, 0)
    assert concurrency.size == 4
    for second in range(2, 10):
        concurrency.adapt(second, second * 2)
    assert concurrency.size == 1
