from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.answers.outcome import Reason
from etl.config.settings import Polling
from etl.ledger.lifecycle import (
    Failure,
    Seen,
    Standing,
    State,
    after_answer,
    after_failure,
    after_missing,
    after_transient_error,
    requeue,
)

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

RULES = Polling(
    running_every=2 * MINUTE,
    give_up_after=7 * DAY,
    settle_after=3 * HOUR,
    watch_every=HOUR,
    watch_for=30 * DAY,
    growth=0.1,
    retry_every=MINUTE,
    retry_at_most_every=HOUR,
    max_attempts=10,
)

FINAL = ["passed", "failed", "aborted", "completed"]
GOING = ["pending", "", None, "running", "Passed"]

DUE_STATES = {State.QUEUED, State.RUNNING, State.WATCHING, State.RETRYING}


def going(status: str | None, age: timedelta) -> Seen:
    """Return what is seen of a run that began `age` ago and is not over."""
    return Seen(status, began_at=NOW - age, over_since=NOW, changed_at=NOW)


def over(status: str, over_for: timedelta, quiet_for: timedelta | None = None) -> Seen:
    """Return what is seen of a run that ended `over_for` ago and last changed `quiet_for` ago."""
    since = NOW - over_for
    changed_at = since if quiet_for is None else NOW - quiet_for
    return Seen(status, began_at=since - HOUR, over_since=since, changed_at=changed_at)


# Runs that are going.


@pytest.mark.parametrize("status", GOING)
def test_a_run_that_is_not_over_is_asked_for_again_soon(status: str | None) -> None:
    standing = after_answer(going(status, age=MINUTE), NOW, RULES)
    assert standing == Standing(State.RUNNING, NOW + 2 * MINUTE)


@pytest.mark.parametrize(
    ("age", "step"),
    [
        (20 * MINUTE, 2 * MINUTE),
        (30 * MINUTE, 3 * MINUTE),
        (10 * HOUR, HOUR),
        (5 * DAY, 12 * HOUR),
    ],
)
def test_the_older_a_going_run_the_less_often_it_is_asked_for(
    age: timedelta, step: timedelta
) -> None:
    assert after_answer(going("pending", age), NOW, RULES).due_at == NOW + step


def test_a_run_that_begins_in_the_future_is_asked_for_as_one_that_just_began() -> None:
    standing = after_answer(going("pending", age=-DAY), NOW, RULES)
    assert standing == Standing(State.RUNNING, NOW + 2 * MINUTE)


@pytest.mark.parametrize("status", GOING)
def test_just_before_the_time_is_up_a_run_is_still_followed(status: str | None) -> None:
    standing = after_answer(going(status, age=7 * DAY - MOMENT), NOW, RULES)
    assert standing.state is State.RUNNING


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("pending", "is still 'pending' 7 days after it started; given up"),
        ("", "has no status 7 days after it started; given up"),
        (None, "has no status 7 days after it started; given up"),
        (
            "Passed",
            "is still 'Passed', a status that is not documented 7 days after it started; given up",
        ),
    ],
)
def test_a_run_that_does_not_end_is_given_up(status: str | None, error: str) -> None:
    standing = after_answer(going(status, age=7 * DAY), NOW, RULES)
    assert standing == Standing(State.FAILED, None, 0, Reason.NEVER_ENDED, error)


def test_one_day_is_told_in_the_singular() -> None:
    rules = Polling(give_up_after=DAY)
    error = after_answer(going("pending", age=DAY), NOW, rules).last_error
    assert error == "is still 'pending' 1 day after it started; given up"


def test_the_reason_is_one_line_whatever_the_status() -> None:
    error = after_answer(going("a\nb", age=8 * DAY), NOW, RULES).last_error
    assert error
    assert len(error.splitlines()) == 1


# Runs that are over.


@pytest.mark.parametrize("status", FINAL)
def test_a_final_run_is_watched_until_it_can_settle(status: str) -> None:
    standing = after_answer(over(status, over_for=HOUR), NOW, RULES)
    assert standing == Standing(State.WATCHING, NOW + HOUR)


@pytest.mark.parametrize("status", FINAL)
def test_a_final_run_settles_after_a_while(status: str) -> None:
    before = after_answer(over(status, over_for=3 * HOUR - MOMENT), NOW, RULES)
    assert before == Standing(State.WATCHING, NOW + MOMENT)
    assert after_answer(over(status, 3 * HOUR), NOW, RULES) == Standing(State.SETTLED, None)


def test_an_unresolved_run_is_watched_when_a_final_one_settles() -> None:
    standing = after_answer(over("unresolved", over_for=3 * HOUR), NOW, RULES)
    assert standing == Standing(State.WATCHING, NOW + HOUR)


def test_an_unresolved_run_that_was_resolved_late_settles_at_once() -> None:
    standing = after_answer(over("passed", over_for=9 * DAY, quiet_for=MINUTE), NOW, RULES)
    assert standing == Standing(State.SETTLED, None)


@pytest.mark.parametrize(
    ("quiet_for", "step"),
    [(MINUTE, HOUR), (10 * HOUR, HOUR), (20 * HOUR, 2 * HOUR), (5 * DAY, DAY / 2)],
)
def test_the_longer_nothing_changed_the_less_often_a_run_is_watched(
    quiet_for: timedelta, step: timedelta
) -> None:
    seen = over("unresolved", over_for=20 * DAY, quiet_for=quiet_for)
    assert after_answer(seen, NOW, RULES) == Standing(State.WATCHING, NOW + step)


def test_without_growth_the_steps_stay_the_same() -> None:
    rules = Polling(growth=0, watch_every=HOUR)
    standing = after_answer(over("unresolved", over_for=20 * DAY), NOW, rules)
    assert standing.due_at == NOW + HOUR


def test_the_last_look_is_at_the_horizon_itself() -> None:
    seen = over("unresolved", over_for=29 * DAY)
    last = after_answer(seen, NOW, RULES)
    horizon = seen.over_since + 30 * DAY
    assert last == Standing(State.WATCHING, horizon)
    assert after_answer(seen, horizon, RULES) == Standing(State.SETTLED, None)


def test_looked_at_whenever_it_is_due_an_unresolved_run_settles_at_its_horizon() -> None:
    seen = over("unresolved", over_for=timedelta(0))
    standing, looks = after_answer(seen, NOW, RULES), [NOW]
    while standing.due_at:
        looks.append(standing.due_at)
        standing = after_answer(seen, standing.due_at, RULES)
    steps = [later - earlier for earlier, later in pairwise(looks)]
    assert looks[-1] == NOW + 30 * DAY
    assert steps[:-1] == sorted(steps[:-1])
    assert steps[0] == HOUR


@pytest.mark.parametrize("status", [*FINAL, "unresolved"])
def test_an_end_in_the_far_future_stops_nothing(status: str) -> None:
    """A garbled `started_at` of the API can be any year up to 9999."""
    end = datetime(9999, 12, 31, 23, 59, tzinfo=UTC)
    standing = after_answer(Seen(status, end, end, end), NOW, RULES)
    assert standing == Standing(State.WATCHING, NOW + HOUR)


# Failures.


def failure(wait: timedelta | None = None, chance: float = 0.0) -> Failure:
    return Failure(Reason.NO_ANSWER, "no answer", wait, chance)


QUEUED = Standing(State.QUEUED, NOW)
GONE = (0, Reason.GONE, "404")


@pytest.mark.parametrize("state", list(State))
def test_a_failure_that_passes_is_tried_again(state: State) -> None:
    standing = after_transient_error(Standing(state, NOW), failure(), NOW, RULES)
    assert standing == Standing(State.RETRYING, NOW + MINUTE, 1, Reason.NO_ANSWER, "no answer")


def test_the_backoff_doubles_up_to_a_limit() -> None:
    standing, backoffs = QUEUED, []
    for _ in range(9):
        standing = after_transient_error(standing, failure(), NOW, RULES)
        assert standing.due_at
        backoffs.append((standing.due_at - NOW) // MINUTE)
    assert backoffs == [1, 2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.parametrize(("chance", "wait"), [(0, 8 * MINUTE), (0.5, 6 * MINUTE), (1, 4 * MINUTE)])
def test_chance_shortens_the_backoff_by_up_to_half(chance: float, wait: timedelta) -> None:
    standing = QUEUED._replace(attempts=3)
    assert after_transient_error(standing, failure(chance=chance), NOW, RULES).due_at == NOW + wait


def test_chance_shortens_the_longest_backoff_too() -> None:
    standing = QUEUED._replace(attempts=8)
    assert after_transient_error(standing, failure(chance=1), NOW, RULES).due_at == NOW + HOUR / 2


@pytest.mark.parametrize(
    ("asked", "waited"), [(5 * HOUR, 5 * HOUR), (timedelta(0), MINUTE), (MINUTE / 2, MINUTE)]
)
def test_a_wait_that_the_api_asks_for_is_kept_where_it_is_longer(
    asked: timedelta, waited: timedelta
) -> None:
    assert after_transient_error(QUEUED, failure(asked), NOW, RULES).due_at == NOW + waited


def test_chance_does_not_shorten_what_the_api_asks_for() -> None:
    assert after_transient_error(QUEUED, failure(HOUR, chance=1), NOW, RULES).due_at == NOW + HOUR


def test_after_too_many_attempts_a_run_is_given_up() -> None:
    standing = after_transient_error(QUEUED._replace(attempts=9), failure(HOUR), NOW, RULES)
    message = "no answer; given up after 10 attempts"
    assert standing == Standing(State.FAILED, None, 10, Reason.TOO_MANY_ATTEMPTS, message)


def test_an_answer_makes_the_failures_before_it_forgotten() -> None:
    assert after_answer(going("pending", MINUTE), NOW, RULES).attempts == 0


def test_a_long_row_of_failures_does_not_overflow() -> None:
    rules = Polling(retry_every=DAY, retry_at_most_every=2 * DAY, max_attempts=10_000)
    for attempts in (30, 31, 2000, 9998):
        standing = after_transient_error(QUEUED._replace(attempts=attempts), failure(), NOW, rules)
        assert standing.due_at == NOW + 2 * DAY


def test_a_refused_run_is_failed_with_the_reason() -> None:
    denied = Standing(State.FAILED, None, 0, Reason.DENIED, "denied")
    assert after_failure(Reason.DENIED, "denied") == denied


def test_a_run_that_was_never_archived_and_is_not_known_fails() -> None:
    not_found = Standing(State.FAILED, None, 0, Reason.NOT_FOUND, "404")
    assert after_missing(None, "404", NOW, RULES) == not_found


@pytest.mark.parametrize(
    ("seen", "standing"),
    [
        (
            over("unresolved", over_for=DAY),
            Standing(State.WATCHING, NOW + 2.4 * HOUR, *GONE),
        ),
        (
            over("passed", over_for=HOUR),
            Standing(State.WATCHING, NOW + HOUR, *GONE),
        ),
        (
            going("pending", age=HOUR),
            Standing(State.RUNNING, NOW + 6 * MINUTE, *GONE),
        ),
        (over("passed", over_for=DAY), Standing(State.SETTLED, None, *GONE)),
        (
            over("unresolved", over_for=30 * DAY),
            Standing(State.SETTLED, None, *GONE),
        ),
        (going("pending", age=7 * DAY), Standing(State.SETTLED, None, *GONE)),
    ],
)
def test_an_archived_run_that_is_gone_is_asked_for_as_long_as_before(
    seen: Seen, standing: Standing
) -> None:
    assert after_missing(seen, "404", NOW, RULES) == standing


@pytest.mark.parametrize(("fetches", "state"), [(0, State.QUEUED), (3, State.RETRYING)])
def test_a_failed_run_that_is_wanted_again_is_due_now(fetches: int, state: State) -> None:
    assert requeue(fetches, NOW) == Standing(state, NOW)


# Whatever comes.

moments = st.datetimes(timezones=st.just(UTC))
durations = st.timedeltas(timedelta(milliseconds=1), 3650 * DAY)
rules = st.builds(
    Polling,
    running_every=durations,
    give_up_after=durations,
    settle_after=durations,
    watch_every=durations,
    watch_for=durations,
    growth=st.floats(0, 1),
    retry_every=durations,
    retry_at_most_every=durations,
    max_attempts=st.integers(1, 5000),
)
seens = st.builds(
    Seen,
    st.sampled_from([*FINAL, "unresolved"]) | st.none() | st.text(max_size=5),
    moments,
    moments,
    moments,
)
failures = st.builds(
    Failure,
    st.sampled_from(Reason),
    st.just("no answer"),
    st.none() | st.timedeltas(timedelta(0), 30 * 365 * DAY),
    st.floats(0, 1),
)
standings = st.builds(
    Standing,
    st.sampled_from(State),
    st.just(NOW),
    st.integers(0, 6000),
    st.none() | st.sampled_from(Reason),
    st.none() | st.text(),
)


def is_due_as_its_state_says(standing: Standing) -> bool:
    if standing.state in DUE_STATES:
        return standing.due_at is not None and standing.due_at > NOW
    return standing.due_at is None


@given(seens, rules)
@settings(max_examples=200)
def test_after_any_answer_a_run_is_due_or_done(seen: Seen, rules: Polling) -> None:
    assert is_due_as_its_state_says(after_answer(seen, NOW, rules))


@given(st.none() | seens, rules)
@settings(max_examples=100)
def test_after_any_404_a_run_is_due_or_done(seen: Seen | None, rules: Polling) -> None:
    standing = after_missing(seen, "404", NOW, rules)
    assert is_due_as_its_state_says(standing)
    assert standing.last_error == "404"


@given(standings, failures, rules)
@settings(max_examples=200)
def test_after_any_failure_a_run_is_due_or_done(
    standing: Standing, failure: Failure, rules: Polling
) -> None:
    after = after_transient_error(standing, failure, NOW, rules)
    assert is_due_as_its_state_says(after)
    is_counted = failure.is_own and failure.reason is not Reason.NOT_CONFIGURED
    assert after.attempts == standing.attempts + is_counted
    assert is_counted or after.state is State.RETRYING
