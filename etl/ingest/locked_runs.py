"""Due runs that a transaction of another process has locked: its host may be lost."""

import threading
from math import ceil

from etl.db.database import writing
from etl.fetch.permits import Halt
from etl.ingest.begin import OpenPass
from etl.ingest.context import IngestContext, PassHooks
from etl.ingest.patience import Patience
from etl.ledger import leases
from etl.ledger.leases import DueRuns
from etl.telemetry.log import get_logger

log = get_logger()

POLL_S = 0.2
SOON_S = 2.0
"""Locks that last longer are told: other claims and commits end sooner."""


def await_locked_runs(ingest: IngestContext, opened: OpenPass, hooks: PassHooks) -> bool:
    """Wait while all runs that stay due are locked; tell whether they are to be fetched now.

    A server ends the transaction of a lost host within a minute. If the locks outlast
    `patience_s`, the exit code is 1. Runs that stay due for another reason are not waited for.
    """
    tally = opened.tally
    if opened.max_requests or tally.halt is not None or hooks.interrupt.signal is not None:
        return False
    patience, is_over = Patience(ingest.patience_s), threading.Event()
    with hooks.interrupt.calling(is_over.set):
        due = patience.run(lambda: _read_due(ingest, opened))
        if not due.are_locked:
            return False
        for poll in range(ceil(ingest.patience_s / POLL_S)):
            if poll * POLL_S == SOON_S:
                log.warning("waiting for runs that another process has locked", runs=due.number)
            if is_over.wait(POLL_S):
                tally.halt, tally.halt_reason = Halt.INTERRUPTED, hooks.interrupt.name
                return False
            due = patience.run(lambda: _read_due(ingest, opened))
            if not due.are_locked:
                return due.number > 0
    log.error("runs that another process has locked stay due", runs=due.number)
    tally.exit_code = tally.exit_code or 1
    return False


def _read_due(ingest: IngestContext, opened: OpenPass) -> DueRuns:
    with writing(ingest.engine) as connection:
        return leases.read_due(connection, leases.due(opened.lease.since, ingest.now()))
