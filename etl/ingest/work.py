"""The work of a pass: claim due runs, fetch them, commit them, until nothing is due."""

from collections.abc import Mapping
from functools import partial

from msgspec.structs import replace
from sqlalchemy import func, select

from etl.config.settings import Database, Telemetry
from etl.db import database
from etl.db.database import reading
from etl.db.schema import ingests
from etl.fetch.breaker import Halt
from etl.fetch.door import Fetching, open_fetching
from etl.fetch.messages import Begin
from etl.fetch.rate_limit import RequestLimits
from etl.ingest.begin import OpenPass
from etl.ingest.commits import BatchStore, Commits
from etl.ingest.context import IngestContext, PassHooks
from etl.ingest.held_runs import HeldRuns
from etl.ingest.patience import Patience
from etl.ingest.tally import Tally
from etl.ledger import standings
from etl.secrets.keys import require_keys
from etl.telemetry.log import get_logger

log = get_logger()

CLAIM_AT_LEAST = 1000
GRACE_S = 6.0
"""Runs under way may take this long to come back after a signal."""


def work(ingest: IngestContext, opened: OpenPass, hooks: PassHooks) -> None:
    """Fetch and store all runs that were due when the pass began; count them in its tally.

    Raises:
        ConfigError: a source that is due has no key. Nothing was fetched.
        DatabaseError: the database went away. All commits are whole.
        FetchingLostError: the process that fetches went away.
    """
    held = HeldRuns(ingest.engine, ingest.config.polling, opened.lease.since, ingest.now)
    due = held.count_due()
    require_keys(ingest.config.sources, set(due))
    _warn_of_leased_runs(ingest)
    if hooks.interrupt.signal is not None:
        opened.tally.halt = Halt.INTERRUPTED
        opened.tally.halt_reason = hooks.interrupt.name
    elif due:
        try:
            _fetch_due(_begin(ingest, due), ingest, held, opened.tally, hooks)
        finally:
            held.release()


def _warn_of_leased_runs(ingest: IngestContext) -> None:
    """Warn of due runs that another process holds: it may have been killed."""
    with reading(ingest.engine) as connection:
        if leased := standings.find_held_elsewhere(connection, ingest.now()):
            log.warning(
                "due runs are leased to another process; they are free when its lease expires",
                runs=leased.runs,
                until=leased.until.isoformat(timespec="seconds"),
            )


def _fetch_due(
    begin: Begin, ingest: IngestContext, held: HeldRuns, tally: Tally, hooks: PassHooks
) -> None:
    patience = Patience(ingest.patience_s)
    with (
        held.heartbeat(),
        Commits(ingest, BatchStore(ingest, held), tally, patience) as commits,
        open_fetching(begin, ingest.now, ingest.way) as fetching,
        hooks.interrupt.calling(partial(_stop, fetching, patience)),
    ):
        for batch in fetching.batches(lambda *wanted: commits.run(partial(held.claim, *wanted))):
            commits.submit(batch)
            hooks.progress(tally.done, begin.due)
    hooks.progress(tally.done, begin.due)
    tally.requests = fetching.requests
    if end := fetching.end:
        tally.asked_wait_s, tally.halt = end.asked_wait_s, end.halt
        tally.halt_reason = end.halt_reason
    if hooks.interrupt.signal is not None:
        tally.halt, tally.halt_reason = Halt.INTERRUPTED, hooks.interrupt.name


def _stop(fetching: Fetching, patience: Patience) -> None:
    patience.end()
    fetching.stop(GRACE_S)


def _begin(ingest: IngestContext, due: Mapping[str, int]) -> Begin:
    """Return the first message of a pass, without the settings of database and telemetry."""
    config, api = ingest.config, ingest.config.api
    limits = RequestLimits(
        api.connections,
        api.max_requests_per_second,
        api.attempts,
        api.max_wait_s,
        config.polling.max_requests_per_pass,
        ingest.pauses,
    )
    with reading(ingest.engine) as connection:
        asked_until = connection.scalar(select(func.max(ingests.c.wait_until)))
        controls = {
            source: control
            for source in due
            if (control := standings.control_of(connection, source))
        }
    asked_wait_s = (asked_until - ingest.now()).total_seconds() if asked_until else 0
    return Begin(
        # The database and telemetry settings stay here: their URLs may have passwords.
        replace(config, database=Database(), telemetry=Telemetry()),
        limits,
        sum(due.values()),
        batches=1 + database.writers(ingest.engine),
        low_mark=max(CLAIM_AT_LEAST, 4 * api.connections) // 2,
        asked_wait_s=max(0.0, asked_wait_s),
        controls=controls,
    )
