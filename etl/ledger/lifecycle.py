"""The state machine of a tracked run: after each answer, what it is now and when to ask again.

Pure: time and chance come in as arguments, rows and clocks are `ledger`'s. All rules of
polling stand here and nowhere else.

    queued ----> running ----> watching ----> settled
      |  ^          |             |              |
      |  +- retry --+-------------+--------------+   (any fetch can also end in
      +--> retrying <--> ... --> failed               retrying or failed)
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from etl.answers.payload import FINAL_STATUSES, GOING_STATUSES, OPEN_STATUS
from etl.config.settings import Polling

DENIED = "the API answered 403"
"""How the reason of a run begins that the key may not read."""


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


class Standing(NamedTuple):
    """What the ledger says of a run: `attempts` counts the failed ones since the last answer."""

    state: State
    due_at: datetime | None
    attempts: int = 0
    last_error: str | None = None


class Seen(NamedTuple):
    """What an accepted answer says about when the run can change again.

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
        return Standing(
            State.FAILED, None, last_error=f"{word}{known} {_days(age)} after it started; given up"
        )
    return Standing(State.RUNNING, now + max(rules.running_every, age * rules.growth))


class Trouble(NamedTuple):
    """A failure that passes: no answer, 429, 5xx. `wait` is the API's Retry-After, if it gave one.

    `chance` (0 to 1, drawn by the caller) shortens the backoff by up to half, so that runs that
    failed together don't come back together.
    """

    error: str
    wait: timedelta | None
    chance: float


def after_trouble(standing: Standing, trouble: Trouble, now: datetime, rules: Polling) -> Standing:
    """Return the standing after a failure that passes; the backoff doubles with each attempt."""
    attempts = standing.attempts + 1
    if attempts >= rules.max_attempts:
        return Standing(
            State.FAILED, None, attempts, f"{trouble.error}; given up after {attempts} attempts"
        )
    # In seconds, and with a bound on the exponent, since a timedelta would overflow.
    doubled_s = rules.retry_every.total_seconds() * 2.0 ** min(attempts - 1, 100)
    backoff_s = min(doubled_s, rules.retry_at_most_every.total_seconds()) * (1 - trouble.chance / 2)
    due_at = now + max(timedelta(seconds=backoff_s), trouble.wait or timedelta(0))
    return Standing(State.RETRYING, due_at, attempts, trouble.error)


def after_refusal(error: str) -> Standing:
    """Return the standing after a failure of this run alone that stays: denied, unreadable."""
    return Standing(State.FAILED, None, last_error=error)


def after_missing(seen: Seen | None, error: str, now: datetime, rules: Polling) -> Standing:
    """Return the standing after a 404; `seen` is what was archived before, if anything.

    A run that was never archived does not exist for us. One that was may be back: it is asked
    for as long as it would have been, then rests.
    """
    if seen is None:
        return after_refusal(error)
    standing = after_answer(seen, now, rules)
    if standing.state is State.FAILED:
        return Standing(State.SETTLED, None, last_error=error)
    return standing._replace(last_error=error)


def requeued(fetches: int, now: datetime) -> Standing:
    """Return the standing of a failed run that somebody wants tried again, due `now`."""
    return Standing(State.RETRYING if fetches else State.QUEUED, now)


def _days(age: timedelta) -> str:
    return f"{age.days} days" if age.days != 1 else "1 day"
