"""Batches into the database: each is one transaction that stores answers and ledger rows.

On PostgreSQL two threads commit side by side, SQLite has one writer.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from sqlalchemy import Connection

from etl.answers.compression import decompress
from etl.answers.outcome import (
    Answer,
    Deferred,
    Missing,
    Outcome,
    Postponed,
    Reason,
    Reject,
    Unchanged,
)
from etl.archive import identity, rejects, store
from etl.archive.store import StoredAnswer
from etl.db import database
from etl.db.archive_settings import require_settings
from etl.db.database import writing
from etl.derived.plans import Application, Plan, build_plan
from etl.errors import DatabaseError
from etl.fetch.door import FetchedBatch
from etl.ingest import pass_workers
from etl.ingest.context import IngestContext
from etl.ingest.held_runs import HeldRuns
from etl.ingest.patience import Patience
from etl.ingest.plan_repeats import PlanRepeats
from etl.ingest.tally import RunEnd, Tally, kind_of
from etl.ledger import leases
from etl.ledger.lifecycle import State
from etl.ledger.verdicts import Claim, judge_outcome, postpone_past
from etl.telemetry.log import bind_context, get_logger
from etl.telemetry.log import context as log_context

REFRESH_EVERY = 5000
"""New answers after which aggregates are refreshed: the more at once, the less work for each."""

T = TypeVar("T")

log = get_logger()


class Committed(NamedTuple):
    """A committed batch: how its runs ended, and how its answers changed the archive."""

    ends: Sequence[RunEnd]
    saved: Collection[StoredAnswer]
    plans: list[Plan]
    """The plans of its answers."""


class BatchStore:
    """Stores batches of one pass. Several threads may call `commit` at a time."""

    def __init__(self, ingest: IngestContext, held: HeldRuns) -> None:
        self._ingest = ingest
        self._held = held
        self._rules = ingest.config.reporting.rules
        self._unacknowledged: dict[str, RunEnd] = {}
        """The ends of runs in a transaction whose commit is not acknowledged yet."""

    def commit(self, outcomes: Collection[Outcome], requests: int) -> list[Committed]:
        """Store outcomes and their ledger rows in one transaction; `requests` were sent so far.

        An outcome with values that the database refuses costs its own run, not the others'.
        """
        try:
            return [self._commit(outcomes, requests)]
        except DatabaseError as error:
            if not error.is_of_values:
                raise
            for outcome in outcomes:
                self._unacknowledged.pop(outcome.run_id, None)
            return [self._commit_alone(outcome, requests) for outcome in outcomes]

    def _commit_alone(self, outcome: Outcome, requests: int) -> Committed:
        try:
            return self._commit([outcome], requests)
        except DatabaseError as error:
            if not error.is_of_values or not isinstance(outcome, Answer):
                raise
            return self._commit([_refused(outcome, error)], requests)

    def _commit(self, outcomes: Collection[Outcome], requests: int) -> Committed:
        run_ids = [outcome.run_id for outcome in outcomes]
        claims = {claim.run_id: claim for claim in self._held.claims_of(run_ids)}
        with writing(self._ingest.engine) as connection:
            require_settings(connection, self._ingest.config.reporting)
            held = leases.lock_held(connection, self._held.owner, run_ids, self._ingest.now)
            ours = [outcome for outcome in outcomes if outcome.run_id in held]
            answers = [each for each in ours if isinstance(each, Answer)]
            saved = store.store_answers(connection, answers, self._rules)
            rejects.keep_rejects(connection, _rejects(ours))
            _mark_absence(connection, ours, claims)
            ends = [self._judge(each, claims[each.run_id], saved) for each in ours]
            leases.record(connection, [end.recorded for end in ends])
            pass_workers.count_ends(connection, self._held.owner, ends, requests)
            self._unacknowledged |= {end.recorded.run_id: end for end in ends}
        # A run no longer leased to us was stored by a commit whose acknowledgement got lost, or
        # its lease has expired: then it has no end here.
        known = [self._unacknowledged.pop(run_id, None) for run_id in run_ids]
        self._held.drop(run_ids)
        self._held.has_lost_runs |= None in known
        plans = [
            build_plan(each.source, each.rows.run.application, each.rows.run.name)
            for each in answers
        ]
        return Committed([end for end in known if end], saved.values(), plans)

    def _judge(self, outcome: Outcome, claim: Claim, saved: Mapping[str, StoredAnswer]) -> RunEnd:
        seen = claim.seen
        if outcome.run_id in saved:
            seen = saved[outcome.run_id].archived.seen(claim.first_tracked_at)
        rules = self._ingest.config.polling
        recorded = judge_outcome(outcome, claim, seen, self._ingest.now(), rules)
        kind = kind_of(outcome, saved, recorded)
        return RunEnd(kind, postpone_past(recorded, self._held.started_at))


def _refused(answer: Answer, error: DatabaseError) -> Reject:
    """Return an answer that the database refuses as a reject, with its body."""
    body = decompress(answer.body.compressed, answer.body.encoding)
    message = f"cannot be stored: {error}"
    return Reject(
        answer.run_id,
        answer.fetched_at,
        200,
        Reason.INTERNAL_ERROR,
        message,
        body,
        answer.body.sha256,
    )


def _rejects(outcomes: Collection[Outcome]) -> list[Reject]:
    """Return the answers to be kept in `rejects`, also those of an API that is down."""
    failed = [each for each in outcomes if isinstance(each, Deferred | Postponed)]
    rejects = [each for each in outcomes if isinstance(each, Reject)]
    return rejects + [each.reject for each in failed if each.reject]


def _mark_absence(
    connection: Connection, outcomes: Collection[Outcome], claims: Mapping[str, Claim]
) -> None:
    """Mark archived runs that the API answers with 404; clear the mark when it has them again."""
    back = {}
    for outcome in outcomes:
        claim = claims[outcome.run_id]
        if isinstance(outcome, Missing) and claim.seen and not claim.gone_at:
            leases.mark_gone(connection, [outcome.run_id], outcome.fetched_at)
        elif isinstance(outcome, Answer | Unchanged) and claim.gone_at:
            back[outcome.run_id] = outcome.fetched_at
    leases.clear_gone(connection, back)


class Commits:
    """The threads that commit the batches of a pass, and count them in its tally."""

    def __init__(
        self, ingest: IngestContext, batches: BatchStore, tally: Tally, patience: Patience
    ) -> None:
        self._ingest = ingest
        self._batches = batches
        self._tally = tally
        self._patience = patience
        self._counting = threading.Lock()
        """Held to change the tally and the counts below."""
        self._repeats = PlanRepeats()
        self._unrefreshed = 0
        self._pending: list[Future[None]] = []
        self._threads = ThreadPoolExecutor(
            database.writers(ingest.engine), initializer=partial(bind_context, **log_context())
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Wait for all commits; batches that came before an error are stored, too."""
        if error is not None:
            self._threads.shutdown(wait=True)
            return
        try:
            self._raise_errors(self._pending)
        finally:
            self._threads.shutdown(wait=True)

    def submit(self, batch: FetchedBatch) -> None:
        """Commit a batch by one of the threads. Raises the error of an earlier batch."""
        self._raise_errors([each for each in self._pending if each.done()])
        self._pending = [each for each in self._pending if not each.done()]
        self._pending.append(self._threads.submit(self._commit, batch))

    def run(self, task: Callable[[], T]) -> T:
        """Return the result of `task`, run by one of the threads in its turn.

        A claim beside a commit would poll for SQLite's lock, and mostly lose.
        """
        return self._threads.submit(self._patience.run, task).result()

    def _raise_errors(self, futures: Sequence[Future[None]]) -> None:
        for future in futures:
            future.result()

    def _commit(self, batch: FetchedBatch) -> None:
        outcomes = batch.outcomes()
        engine, zone = self._ingest.engine, self._ingest.config.reporting.zone
        if self._is_refresh_due():
            self._patience.run(partial(identity.refresh_archive, engine, self._ingest.now(), zone))
        commit = partial(self._batches.commit, outcomes, batch.batch.requests)
        committed = self._patience.run(commit)
        self._report(outcomes)
        for each in committed:
            if repeated := self._count(each):
                measure = partial(identity.measure_new, engine, repeated)
                self._patience.run(partial(measure, self._ingest.now(), zone))
        batch.done()

    def _is_refresh_due(self) -> bool:
        with self._counting:
            is_due = self._unrefreshed >= REFRESH_EVERY
            self._unrefreshed = 0 if is_due else self._unrefreshed
            return is_due

    def _count(self, committed: Committed) -> set[Application]:
        """Count a batch; return the applications whose test ids can be compared by now."""
        with self._counting:
            self._tally.add(committed.ends)
            for end in committed.ends:
                _log_end(end)
            self._unrefreshed += sum(each.is_new or each.is_changed for each in committed.saved)
            return self._repeats.add(committed.plans)

    def _report(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Postponed | Reject) and outcome.traceback:
                log.error("internal error", run_id=outcome.run_id, exception=outcome.traceback)


def _log_end(end: RunEnd) -> None:
    run_id, standing = end.recorded.run_id, end.recorded.standing
    if end.kind == "deferred":
        return  # the API failed, which is logged once for all of them
    if standing.state in {State.FAILED, State.RETRYING}:
        log.warning("run failed", run_id=run_id, reason=standing.last_error)
    elif standing.last_error:
        log.info("run gone", run_id=run_id, reason=standing.last_error)
