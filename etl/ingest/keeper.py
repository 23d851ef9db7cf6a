"""All that a pass does in the database, in short transactions, and the count of it."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, and_, func, insert, select, update

from etl import clock
from etl.answers.outcome import (
    Answer,
    Deferred,
    Missing,
    Outcome,
    Postponed,
    Refused,
    Reject,
    Unchanged,
)
from etl.archive import store
from etl.archive.store import Saved
from etl.config.settings import DEFAULT_RULES, Polling, Rules
from etl.db.database import reading, writing
from etl.db.schema import OUTCOMES, ingests, tracked_runs
from etl.derived import aggregates
from etl.errors import DatabaseError
from etl.fetch.dispatch import Halt
from etl.ledger import health, ledger, lifecycle
from etl.ledger.ledger import Claim, Lease, Recorded
from etl.ledger.lifecycle import Seen, Standing, State
from etl.telemetry.log import get_logger

log = get_logger()

CLOCK_ERROR = timedelta(days=1)
"""A pass that began so much later than now had a wrong clock; less may be another machine's."""


COUNT_EVERY = 5000
"""After so many new answers series are counted: the more at once, the less work for each."""


class _End(NamedTuple):
    """How one run ended in this pass: `kind` names the field of `Tally` that counts it."""

    kind: str
    recorded: Recorded


@dataclass
class Tally:
    """What a pass did."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    waiting: int = 0
    failed: int = 0
    rejected: int = 0
    deferred: int = 0
    """Runs left as due as they were, since it was the API that failed."""
    to_retry: int = 0
    """Those of the failed that will be tried again."""
    requests: int = 0
    halt: Halt | None = None
    halt_reason: str = ""
    asked_wait_s: float = 0
    """How long the API wants to be left alone after the pass."""
    exit_code: int = 0
    pass_id: int | None = None
    """Its row in `ingests`, which logs name too."""

    @property
    def done(self) -> int:
        """How many runs were fetched, well or not."""
        return self.new + self.changed + self.unchanged + self.failed + self.rejected

    def summary(self) -> dict[str, Any]:
        """Return what a program wants to know of the pass."""
        counted = {name: getattr(self, name) for name in (*OUTCOMES, "requests")}
        halted = self.halt.value if self.halt else None
        return {**counted, "halted": halted, "exit_code": self.exit_code}


class Keeper:
    """The hands of one pass in the database, and the `tally` of what they did.

    Several threads may `keep` batches at a time, as several processes may.
    """

    def __init__(
        self,
        engine: Engine,
        rules: Polling,
        started_at: datetime,
        report_rules: Rules = DEFAULT_RULES,
    ) -> None:
        self.tally = Tally()
        self._engine = engine
        self._rules = rules
        self._report_rules = report_rules
        self._counting = threading.Lock()
        """Whoever changes the tally, or what is in hand, has it."""
        self._uncounted = 0
        self._started_at = started_at
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._renewed_at = time.monotonic()
        self._in_hand: set[str] = set()
        self._undecided: dict[str, _End] = {}

    def open_ingest(self, trigger: str) -> None:
        """Note that the pass begins, and what set it off."""
        with writing(self._engine) as connection:
            self._heed_the_clock(connection)
            statement = insert(ingests).values(trigger=trigger, started_at=self._started_at)
            returned = connection.execute(statement.returning(ingests.c.id))
            self.tally.pass_id = returned.scalar_one()

    def _heed_the_clock(self, connection: Connection) -> None:
        """Let nothing wait for a time that a clock far ahead has set."""
        newest = select(ingests.c.started_at).order_by(ingests.c.id.desc()).limit(1)
        last_began_at = connection.scalar(newest)
        if last_began_at is not None and last_began_at - self._started_at > CLOCK_ERROR:
            log.warning("the last pass was in the future: what waits is due", at=last_began_at)
            ledger.end_waits(connection, self._lease())
            connection.execute(update(ingests).values(wait_until=None))

    def asked_wait_s(self) -> float:
        """Return how long the API still wants to be left alone, as any pass was told."""
        with reading(self._engine) as connection:
            until = connection.scalar(select(func.max(ingests.c.wait_until)))
        return max(0.0, (until - clock.now()).total_seconds()) if until else 0.0

    def close_ingest(self) -> None:
        """Note how the pass ended, and how the archive stands."""
        tally, now = self.tally, clock.now()
        values: dict[str, Any] = {name: getattr(tally, name) for name in OUTCOMES}
        values |= {"finished_at": now, "exit_code": tally.exit_code}
        if tally.asked_wait_s:
            values["wait_until"] = now + timedelta(seconds=tally.asked_wait_s)
        of_pass = update(ingests).where(ingests.c.id == tally.pass_id)
        with writing(self._engine) as connection:
            ended = connection.execute(of_pass.values(values).returning(ingests.c.id))
            health.note(connection, ended.scalar_one(), now)

    def due_sources(self) -> set[str]:
        """Return the sources of the runs that are due."""
        with reading(self._engine) as connection:
            query = select(tracked_runs.c.source).distinct()
            return set(connection.scalars(query.where(self._due())))

    def due_now(self) -> int:
        """Count the runs that this pass will try to take."""
        with reading(self._engine) as connection:
            query = select(func.count()).where(self._due())
            return connection.scalar(query) or 0

    def claim(self, limit: int, without: Collection[str] = ()) -> list[Claim]:
        """Take runs that were due when the pass began, `without` those of some sources."""
        lease = self._lease()
        with self._counting:
            in_hand = set(self._in_hand)
        due = ledger.due_or_stray(self._started_at, lease, in_hand)
        chosen = and_(due, tracked_runs.c.source.not_in(without))
        with writing(self._engine) as connection:
            claims = ledger.claim(connection, lease, chosen, limit)
            fetched = [claim for claim in claims if claim.last_fetched_at]
            known = store.known(
                connection, {claim.run_id: claim.first_tracked_at for claim in fetched}
            )
        with self._counting:
            self._in_hand.update(claim.run_id for claim in claims)
        return [
            claim._replace(**known[claim.run_id]._asdict()) if claim.run_id in known else claim
            for claim in claims
        ]

    def lease_is_old(self) -> bool:
        """Tell whether it is time to renew the lease: a third of it is over."""
        return time.monotonic() - self._renewed_at > self._rules.lease_for.total_seconds() / 3

    def renew(self) -> None:
        """Keep the runs that are under way."""
        self._renewed_at = time.monotonic()
        with writing(self._engine) as connection:
            ledger.renew(connection, self._lease())

    def count(self) -> None:
        """Bring all series and durations up to date that are marked, by this pass or another."""
        aggregates.count_marked(self._engine, self._report_rules)

    def _is_count_due(self) -> bool:
        """Tell whether enough is uncounted, to one of those who ask."""
        with self._counting:
            is_due = self._uncounted >= COUNT_EVERY
            self._uncounted = 0 if is_due else self._uncounted
            return is_due

    def release(self) -> None:
        """Give back what was claimed and not finished."""
        with writing(self._engine) as connection:
            ledger.release(connection, self._owner)

    def keep(self, batch: Mapping[Claim, Outcome]) -> set[str]:
        """Store outcomes and their ledger rows in one transaction, then count them.

        An outcome that the database will not take costs its own run, not the others'. Returns
        the applications of which answers were stored.
        """
        if self._is_count_due():
            self.count()
        try:
            return self._keep(batch)
        except DatabaseError as error:
            if not error.is_of_values:
                raise
            for claim in batch:
                self._undecided.pop(claim.run_id, None)
            return set[str]().union(*[self._keep_alone(*each) for each in batch.items()])

    def _keep_alone(self, claim: Claim, outcome: Outcome) -> set[str]:
        try:
            return self._keep({claim: outcome})
        except DatabaseError as error:
            if not error.is_of_values:
                raise
            return self._keep({claim: Refused(claim.run_id, f"cannot be stored: {error}")})

    def _keep(self, batch: Mapping[Claim, Outcome]) -> set[str]:
        run_ids = [claim.run_id for claim in batch]
        with writing(self._engine) as connection:
            held = ledger.held(connection, self._owner, run_ids)
            mine = {claim: batch[claim] for claim in batch if claim.run_id in held}
            answers = [each for each in mine.values() if isinstance(each, Answer)]
            saved = store.save(connection, answers)
            ends = {
                end.recorded.run_id: end for end in _store(connection, mine, saved, self._rules)
            }
            ledger.record(connection, [self._after_this_pass(end) for end in ends.values()])
            # Those not held any more were kept by a commit whose answer was lost.
            self._undecided |= ends
        with self._counting:
            self._count(batch.values(), saved.values())
        return {store.application_of(answer.rows) for answer in answers}

    def _count(self, outcomes: Collection[Outcome], saved: Collection[Saved]) -> None:
        """Count what was committed."""
        for outcome in outcomes:
            if isinstance(outcome, Refused) and outcome.traceback:
                log.error("internal error", run_id=outcome.run_id, exception=outcome.traceback)
            if end := self._undecided.pop(outcome.run_id, None):
                _count(self.tally, end)
        self._in_hand.difference_update(outcome.run_id for outcome in outcomes)
        self._uncounted += sum(save.is_new or save.is_changed for save in saved)

    def _after_this_pass(self, end: _End) -> Recorded:
        """Return how the run stands, not due again in this pass, which would never be over.

        So it would be after the clock was set back.
        """
        recorded = end.recorded
        due_at = recorded.standing.due_at
        if due_at is None or due_at > self._started_at:
            return recorded
        later = self._started_at + timedelta(milliseconds=1)
        return recorded._replace(standing=recorded.standing._replace(due_at=later))

    def _due(self) -> ColumnElement[bool]:
        """Say which runs were due when the pass began, and are free now."""
        return ledger.due(self._started_at, clock.now())

    def _lease(self) -> Lease:
        now = clock.now()
        return Lease(self._owner, now, now + self._rules.lease_for)


def _kind(outcome: Outcome, saved: Mapping[str, Saved], recorded: Recorded) -> str:
    match outcome:
        case Answer():
            save = saved[outcome.run_id]
            return "new" if save.is_new else "changed" if save.is_changed else "unchanged"
        case Reject():
            return "rejected"
        case Refused() | Postponed():
            return "failed"
        case Deferred():
            return "deferred"
        case Unchanged() | Missing():
            return "failed" if recorded.standing.state is State.FAILED else "unchanged"


def _store(
    connection: Connection,
    batch: Mapping[Claim, Outcome],
    saved: Mapping[str, Saved],
    rules: Polling,
) -> list[_End]:
    outcomes = batch.values()
    store.reject(connection, [each for each in outcomes if isinstance(each, Reject)])
    seen = {
        claim.run_id: saved[claim.run_id].archived.seen(claim.first_tracked_at)
        if claim.run_id in saved
        else claim.seen
        for claim in batch
    }
    _heed_absence(connection, batch)
    ends = []
    for claim, outcome in batch.items():
        recorded = _recorded(outcome, claim, seen[claim.run_id], rules)
        ends.append(_End(_kind(outcome, saved, recorded), recorded))
    return ends


def _heed_absence(connection: Connection, batch: Mapping[Claim, Outcome]) -> None:
    """Note which archived runs the API denies having, and which ones it has again."""
    lost = [
        claim.run_id
        for claim, outcome in batch.items()
        if isinstance(outcome, Missing) and claim.seen and not claim.gone_at
    ]
    back = [
        claim.run_id
        for claim, outcome in batch.items()
        if isinstance(outcome, Answer | Unchanged) and claim.gone_at
    ]
    for room in (ledger, store):
        if lost:
            room.mark_gone(connection, lost, clock.now())
        if back:
            room.unmark_gone(connection, back)


def _recorded(outcome: Outcome, claim: Claim, seen: Seen | None, rules: Polling) -> Recorded:
    """Return how the run stands after `outcome`."""
    match outcome:
        case Answer() | Unchanged() if seen:
            # A clock that was set back must not make a run look fetched earlier than before.
            fetched_at = max(outcome.fetched_at, claim.last_fetched_at or outcome.fetched_at)
            standing = lifecycle.after_answer(seen, outcome.fetched_at, rules)
            return Recorded(claim.run_id, standing, fetched_at)
        case Missing():
            standing = lifecycle.after_missing(seen, outcome.reason, outcome.fetched_at, rules)
        case Postponed():
            standing = _postponed(outcome, claim, rules)
        case Deferred():
            due_at = clock.now() + timedelta(seconds=outcome.wait_s)
            standing = claim.standing._replace(
                state=State.RETRYING, due_at=due_at, last_error=outcome.reason
            )
        case Reject() | Refused():
            standing = lifecycle.after_refusal(outcome.reason)
        case _:
            raise AssertionError(f"run {claim.run_id} was answered, yet is not archived")
    return Recorded(claim.run_id, standing, None)


def _postponed(outcome: Postponed, claim: Claim, rules: Polling) -> Standing:
    trouble = outcome.trouble
    wait = timedelta(seconds=trouble.wait_s) if trouble.wait_s is not None else None
    failure = lifecycle.Trouble(trouble.reason, wait, trouble.chance)
    return lifecycle.after_trouble(claim.standing, failure, clock.now(), rules)


def _count(tally: Tally, end: _End) -> None:
    setattr(tally, end.kind, getattr(tally, end.kind) + 1)
    run_id, standing = end.recorded.run_id, end.recorded.standing
    tally.to_retry += end.kind == "failed" and standing.state is State.RETRYING
    if standing.state is State.RUNNING:
        tally.waiting += 1
    elif standing.state is State.FAILED and end.kind in {"new", "changed"}:
        tally.failed += 1
    if end.kind == "deferred":
        return  # the API failed, which is told once for all of them
    if standing.state in {State.FAILED, State.RETRYING}:
        log.warning("run failed", run_id=run_id, reason=standing.last_error)
    elif standing.last_error:
        log.info("run gone", run_id=run_id, reason=standing.last_error)
