"""The state machine of a tracked run: its state after each answer, and the next due time.

Pure: time and chance are arguments. All rules of polling stand here and nowhere else;
`verdicts` applies them to what came of a fetch.

    queued ----> running ----> watching ----> settled
      |  ^          |             |              |
      |  +- retry --+-------------+--------------+   (any fetch can also end in
      +--> retrying <--> ... --> failed               retrying or failed)
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from etl.answers.outcome import Reason
from etl.answers.payload import FINAL_STATUSES, GOING_STATUSES, OPEN_STATUS
from etl.config.settings import Polling


class State(StrEnum):
    """Where a run stands. The values are those of `tracked_runs.state`."""

    QUEUED = "queued"
    """Never fetched. Due now."""
    RUNNING = "running"
    """The API says that it is not over. Due again soon, less often as it ages."""
    WATCHING = "watching"
    """Over, but it can still change. Due in growing steps until its horizon."""
    SETTLED = "settled"
    """Final. Never due, unless somebody asks for a refresh."""
    RETRYING = "retrying"
    """The last attempt failed for a reason that passes. Due after a backoff."""
    FAILED = "failed"
    """Given up, the reason is kept. Never due, until somebody asks for a retry."""
    DROPPED = "dropped"
    """Taken out of the archive: a tombstone. Never due, until `track --again` takes it back."""


class Standing(NamedTuple):
    """How a run stands: `attempts` counts the failed ones since the last answer.

    `reason` is for programs, `last_error` for people. `failing_since` is the time of the first
    failed fetch since the last accepted answer.
    """

    state: State
    due_at: datetime | None
    attempts: int = 0
    reason: Reason | None = None
    last_error: str | None = None
    failing_since: datetime | None = None


class Seen(NamedTuple):
    """The moments by which an accepted answer tells when the run can change again.

    `began_at` is when it started, or when we first heard of it; `over_since` is when it ended,
    or when we first saw that it had; `changed_at` is when its content was last seen to change.
    """

    status: str | None
    began_at: datetime
    over_since: datetime
    changed_at: datetime


def after_answer(seen: Seen, now: datetime, rules: Polling) -> Standing:
    """Return the standing of a run whose answer, fetched at `now`, was accepted."""
    if seen.status in FINAL_STATUSES:
        return _over(seen, rules.settle_after, now, rules)
    if seen.status == OPEN_STATUS:
        return _over(seen, rules.watch_for, now, rules)
    return _going(seen, now, rules)


def _over(seen: Seen, watch_for: timedelta, now: datetime, rules: Polling) -> Standing:
    """Watch an ended run for `watch_for`, less often the longer nothing changed.

    The last look is at the horizon itself, so that nothing before it is missed.
    """
    # Reckoned in spans: a garbled end in the year 9999 has no horizon that a datetime can hold.
    left = watch_for - (now - seen.over_since)
    if left <= timedelta(0):
        return Standing(State.SETTLED, None)
    quiet_for = now - max(seen.over_since, seen.changed_at)
    step = max(rules.watch_every, quiet_for * rules.growth)
    return Standing(State.WATCHING, now + min(step, left))


def _going(seen: Seen, now: datetime, rules: Polling) -> Standing:
    """Follow a run that is not over: pending, without a status, or with a word we don't know."""
    age = now - seen.began_at
    if age >= rules.give_up_after:
        word = "has no status" if not seen.status else f"is still {seen.status!r}"
        known = "" if seen.status in GOING_STATUSES else ", a status that is not documented"
        message = f"{word}{known} {_days(age)} after it started; given up"
        return after_failure(Reason.NEVER_ENDED, message)
    return Standing(State.RUNNING, now + max(rules.running_every, age * rules.growth))


class Failure(NamedTuple):
    """A transient error of one run. `wait` is the API's Retry-After, if it gave one.

    `chance` (0 to 1, drawn by the caller) shortens the backoff by up to half, so that runs that
    failed together do not come back together. Only an error that is the run's own can make it
    fail for good, whatever the number of attempts.
    """

    reason: Reason
    message: str
    wait: timedelta | None
    chance: float
    is_own: bool = True


def after_transient_error(
    standing: Standing, failure: Failure, now: datetime, rules: Polling
) -> Standing:
    """Return the standing after a transient error; the backoff doubles with each attempt.

    An error of the API, or a missing setting of ours, counts as no attempt of the run.
    """
    is_counted = failure.is_own and failure.reason is not Reason.NOT_CONFIGURED
    attempts = standing.attempts + is_counted
    if is_counted and attempts >= rules.max_attempts:
        is_precise = failure.reason in {Reason.UNREADABLE, Reason.INTERNAL_ERROR}
        reason = failure.reason if is_precise else Reason.TOO_MANY_ATTEMPTS
        message = f"{failure.message}; given up after {attempts} attempts"
        return Standing(State.FAILED, None, attempts, reason, message)
    # In seconds, and with a bound on the exponent, since a timedelta would overflow.
    doubled_s = rules.retry_every.total_seconds() * 2.0 ** min(max(attempts - 1, 0), 100)
    backoff_s = min(doubled_s, rules.retry_at_most_every.total_seconds()) * (1 - failure.chance / 2)
    due_at = now + max(timedelta(seconds=backoff_s), failure.wait or timedelta(0))
    return Standing(State.RETRYING, due_at, attempts, failure.reason, failure.message)


def after_deferral(standing: Standing, failure: Failure, now: datetime) -> Standing:
    """Return the standing, retrying, after a failure of the API: no attempt is counted."""
    due_at = now + (failure.wait or timedelta(0))
    return Standing(State.RETRYING, due_at, standing.attempts, failure.reason, failure.message)


def after_failure(reason: Reason, message: str) -> Standing:
    """Return the standing after a permanent error of this run alone."""
    return Standing(State.FAILED, None, 0, reason, message)


def after_missing(seen: Seen | None, message: str, now: datetime, rules: Polling) -> Standing:
    """Return the standing after a 404; `seen` is the archived run, if there is one.

    A run that was never archived does not exist for us. An archived one may come back: it is
    asked for as long as it would have been, then settles.
    """
    if seen is None:
        return after_failure(Reason.NOT_FOUND, message)
    standing = after_answer(seen, now, rules)
    if standing.state is State.FAILED:
        standing = Standing(State.SETTLED, None)
    return standing._replace(reason=Reason.GONE, last_error=message)


def date_failure(standing: Standing, failing_since: datetime | None, now: datetime) -> Standing:
    """Return a standing with the time since when it fails: that of before, or else `now`."""
    if standing.state not in {State.RETRYING, State.FAILED}:
        return standing
    return standing._replace(failing_since=failing_since or now)


def requeue(fetches: int, now: datetime) -> Standing:
    """Return the standing of a failed run that somebody wants tried again, due `now`."""
    return Standing(State.RETRYING if fetches else State.QUEUED, now)


def _days(age: timedelta) -> str:
    return f"{age.days} days" if age.days != 1 else "1 day"
