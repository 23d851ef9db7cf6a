"""Decide how a run stands after a fetch: the one place where an outcome becomes a state.

Pure: (outcome, claim, seen, now) -> standing, by the rules of `lifecycle`.
"""

from datetime import datetime, timedelta
from typing import NamedTuple, assert_never

from etl.answers.outcome import (
    Answer,
    Deferred,
    Denied,
    Missing,
    Outcome,
    Postponed,
    Reason,
    Reject,
    TransientError,
    Unchanged,
)
from etl.config.settings import Polling
from etl.ledger import lifecycle
from etl.ledger.lifecycle import Failure, Seen, Standing


class Claim(NamedTuple):
    """A due run that is ours until its lease expires.

    `gone_at` is when the API first answered 404. `seen` describes the newest answer and
    `fingerprint` is the sha256 of its payload, where the run is archived.
    """

    run_id: str
    source: str
    read_token: str | None
    first_tracked_at: datetime
    last_fetched_at: datetime | None
    fetches: int
    standing: Standing
    gone_at: datetime | None = None
    seen: Seen | None = None
    fingerprint: str | None = None


class Recorded(NamedTuple):
    """The ledger row after a fetch. `fetched_at` is None when no answer was accepted."""

    run_id: str
    standing: Standing
    fetched_at: datetime | None


def judge_outcome(
    outcome: Outcome, claim: Claim, seen: Seen | None, now: datetime, rules: Polling
) -> Recorded:
    """Return how a claimed run stands after `outcome`; `seen` is None if it is not archived."""
    match outcome:
        case Answer() | Unchanged():
            if seen is None:
                raise AssertionError(f"run {claim.run_id} was answered, yet is not archived")
            # A clock that was set back must not make a run look fetched earlier than before.
            fetched_at = max(outcome.fetched_at, claim.last_fetched_at or outcome.fetched_at)
            standing = lifecycle.after_answer(seen, outcome.fetched_at, rules)
            return Recorded(claim.run_id, lifecycle.date_failure(standing, None, now), fetched_at)
        case Missing():
            standing = lifecycle.after_missing(seen, outcome.message, outcome.fetched_at, rules)
        case Denied():
            standing = lifecycle.after_failure(Reason.DENIED, outcome.message)
        case Reject(code=Reason.INTERNAL_ERROR):
            standing = lifecycle.after_failure(outcome.code, outcome.message)
        case Reject():
            failure = Failure(outcome.code, outcome.message, None, outcome.chance)
            standing = lifecycle.after_transient_error(claim.standing, failure, now, rules)
        case Postponed():
            failure = _failure(outcome.error)._replace(is_own=outcome.is_own)
            standing = lifecycle.after_transient_error(claim.standing, failure, now, rules)
        case Deferred():
            standing = lifecycle.after_deferral(claim.standing, _failure(outcome.error), now)
        case _:
            assert_never(outcome)
    failing_since = claim.standing.failing_since
    return Recorded(claim.run_id, lifecycle.date_failure(standing, failing_since, now), None)


def _failure(error: TransientError) -> Failure:
    wait = timedelta(seconds=error.wait_s) if error.wait_s is not None else None
    return Failure(error.reason, error.message, wait, error.chance)


def postpone_past(recorded: Recorded, started_at: datetime) -> Recorded:
    """Move due_at past the pass's start; a clock set back would otherwise make the pass endless."""
    due_at = recorded.standing.due_at
    if due_at is None or due_at > started_at:
        return recorded
    later = started_at + timedelta(milliseconds=1)
    return recorded._replace(standing=recorded.standing._replace(due_at=later))
