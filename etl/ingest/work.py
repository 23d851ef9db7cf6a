"""The work of a pass: claim due runs, fetch them, commit them, until nothing is due."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

from msgspec.structs import replace

from etl.answers.outcome import Target
from etl.config.settings import Api, Database, Telemetry
from etl.db import database
from etl.db.checkpoints import checkpointing
from etl.db.database import reading, writing
from etl.errors import ArchiverError, DatabaseError
from etl.fetch.door import Fetching, open_fetching
from etl.fetch.messages import Begin, TargetAsk
from etl.fetch.permits import Halt, Permits
from etl.fetch.rate_limit import RequestLimits
from etl.ingest import pass_workers
from etl.ingest.begin import OpenPass
from etl.ingest.commits import BatchStore, Commits
from etl.ingest.context import IngestContext, PassHooks
from etl.ingest.held_runs import HeldRuns
from etl.ingest.interrupt import Interrupt
from etl.ingest.patience import Patience
from etl.ingest.permit_taker import PermitTaker
from etl.ingest.tally import Tally, exit_code
from etl.ledger import leases, source_limits, standings
from etl.ledger.source_limits import Worker
from etl.secrets.keys import require_keys
from etl.telemetry.log import get_logger

log = get_logger()

MOST_WAITING = 500
"""More runs of a source are claimed when this number waits to be fetched, or fewer are left:"""
SHARE_WAITING = 16
"""this part of the due runs, so that several workers end at about the same time;"""
WAITING_S = 15.0
"""the requests of this time, so that a worker that dies holds few runs."""
GRACE_S = 6.0
"""Runs under way may take this long to come back after a signal."""


def work(ingest: IngestContext, opened: OpenPass, hooks: PassHooks) -> None:
    """Fetch and store all runs that were due when the pass began; count them in its tally.

    Raises:
        ConfigError: a source that is due has no key. Nothing was fetched.
        DatabaseError: the database went away. All commits are whole.
        FetchingLostError: the process that fetches went away.
    """
    held = HeldRuns.of_pass(ingest, opened.lease.since)
    due = held.count_due()
    require_keys(ingest.config.sources, set(due))
    if hooks.interrupt.signal is not None:
        opened.tally.halt = Halt.INTERRUPTED
        opened.tally.halt_reason = hooks.interrupt.name
    elif due:
        with _counted(ingest, held.owner, opened.tally, hooks.interrupt):
            while due and opened.tally.halt is None:
                held.has_lost_runs = False
                begin = _begin(ingest, due, opened.max_requests)
                _fetch_due(begin, ingest, held, opened.tally, hooks)
                # Nobody else may have taken the runs whose leases have expired.
                is_limited = opened.max_requests > 0
                due = held.count_due() if held.has_lost_runs and not is_limited else {}


@contextmanager
def _counted(
    ingest: IngestContext, name: str, tally: Tally, interrupt: Interrupt
) -> Iterator[None]:
    """Register the worker with its pass; in the end record how, and give back all that it has."""
    patience = Patience(ingest.patience_s)
    with writing(ingest.engine) as connection:
        pass_workers.open_worker(connection, name, tally.pass_id or 0, ingest.now())
    try:
        yield
    except Exception as error:
        tally.exit_code = error.exit_code if isinstance(error, ArchiverError) else 1
        with suppress(DatabaseError):  # if that is the error, it is being raised already
            _close_worker(ingest, name, tally)
        raise
    tally.exit_code = exit_code(tally, interrupt.signal, 0)
    patience.run(partial(_close_worker, ingest, name, tally))


def _close_worker(ingest: IngestContext, name: str, tally: Tally) -> None:
    # If the database is lost, leases and the worker's rows expire.
    with writing(ingest.engine) as connection:
        pass_workers.close_worker(connection, name, tally, ingest.now())
        source_limits.leave(connection, name)
        leases.release(connection, name)


def warn_of_leased_runs(ingest: IngestContext) -> None:
    """Warn of due runs that another process holds: it may have been killed."""
    with reading(ingest.engine) as connection:
        if leased := standings.find_held_elsewhere(connection, ingest.now()):
            log.warning(
                "due runs are leased to another process; they are free when its lease expires",
                runs=leased.runs,
                until=leased.until.isoformat(timespec="seconds"),
            )


def warn_of_spent_budget(ingest: IngestContext, opened: OpenPass) -> None:
    """Warn of runs that stay due, since the pass has sent all requests that it may."""
    if 0 < opened.max_requests <= opened.tally.requests:
        due = sum(HeldRuns.of_pass(ingest, opened.lease.since).count_due().values())
        if due:
            log.warning(
                "polling.max_requests_per_pass is reached; the other runs stay due",
                requests=opened.tally.requests,
                runs=due,
            )


def _fetch_due(
    begin: Begin, ingest: IngestContext, held: HeldRuns, tally: Tally, hooks: PassHooks
) -> None:
    patience = Patience(ingest.patience_s)
    worker = Worker(held.owner, tally.pass_id or 0)
    permits = PermitTaker(ingest.engine, worker, begin.limits, patience)
    with (
        held.heartbeat(),
        permits.serving(),
        checkpointing(ingest.engine),
        Commits(ingest, BatchStore(ingest, held), tally, patience) as commits,
        open_fetching(begin, ingest.now, ingest.way) as fetching,
        hooks.interrupt.calling(partial(_stop, fetching, patience)),
    ):
        permits.answer_by(partial(_permit, fetching, held), partial(fetching.stop, 0.0))
        held.report_expiry_to(fetching.drop)
        claim = partial(_claim, commits, held, held.claimed + begin.due)
        for batch in fetching.batches(claim, permits.ask):
            commits.submit(batch)
            hooks.progress(tally.done, begin.due)
    if permits.error is not None:
        raise permits.error
    hooks.progress(tally.done, begin.due)
    tally.requests += fetching.requests
    if end := fetching.end:
        tally.halt, tally.halt_reason = end.halt, end.halt_reason
    if hooks.interrupt.signal is not None:
        tally.halt, tally.halt_reason = Halt.INTERRUPTED, hooks.interrupt.name


def _permit(fetching: Fetching, held: HeldRuns, permits: Permits) -> None:
    held.check_expiry()  # before further requests: others may have the runs that wait
    fetching.permit(permits)


def _claim(commits: Commits, held: HeldRuns, most: int, ask: TargetAsk) -> list[Target]:
    """Claim runs, unless all that were due are claimed: a worker alone need not ask for more."""
    held.give_up(ask.dropped)
    if held.claimed >= most:
        return []
    return commits.run(partial(held.claim, ask.count, ask.without))


def _stop(fetching: Fetching, patience: Patience) -> None:
    patience.end()
    fetching.stop(GRACE_S)


def _low_mark(due: int, api: Api) -> int:
    """Return the number of waiting runs at which a worker claims twice as many more."""
    rate = api.max_requests_per_second
    most = min(MOST_WAITING, int(rate * WAITING_S)) if rate else MOST_WAITING
    return max(2 * api.connections, min(most, due // SHARE_WAITING))


def _begin(ingest: IngestContext, due: Mapping[str, int], max_requests: int) -> Begin:
    """Return the first message of a pass, without the settings of database and telemetry."""
    config, api = ingest.config, ingest.config.api
    limits = RequestLimits(
        api.connections,
        api.max_requests_per_second,
        api.attempts,
        api.max_wait_s,
        max_requests,
        ingest.pauses,
    )
    with reading(ingest.engine) as connection:
        controls = {
            source: control
            for source in due
            if (control := standings.control_of(connection, source))
        }
    return Begin(
        # The database and telemetry settings stay here: their URLs may have passwords.
        replace(config, database=Database(), telemetry=Telemetry()),
        limits,
        sum(due.values()),
        batches=1 + database.writers(ingest.engine),
        low_mark=_low_mark(sum(due.values()), api),
        sources=len(due),
        controls=controls,
    )
