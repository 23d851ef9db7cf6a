"""The service: passes by interval or cron line, until a signal.

APScheduler only says when; it keeps no state of its own, so that a restart, a second instance or
cron beside the service changes nothing.
"""

import time
from datetime import UTC

from apscheduler.schedulers.background import BackgroundScheduler

from etl.errors import ArchiverError
from etl.ingest.context import IngestContext, PassHooks
from etl.ingest.interrupt import Interrupt
from etl.ingest.missed_passes import EVENTS, MissedPasses
from etl.ingest.one_pass import PassOrder, run_pass
from etl.ingest.summary import log_counts, log_halt
from etl.ingest.triggers import make_trigger
from etl.telemetry import prometheus
from etl.telemetry.log import get_logger, log_error, pass_lines

TICK_S = 0.1
"""The interval at which signals are looked for."""

log = get_logger()


def serve(ingest: IngestContext, interrupt: Interrupt) -> None:
    """Do a pass now and whenever the schedule says, until `interrupt` gets a signal.

    Raises:
        ConfigError: the schedule cannot be read.
        UsageError: the metrics port cannot be had.
    """
    config = ingest.config
    trigger = make_trigger(config.schedule)
    prometheus.serve_metrics(ingest.engine, ingest.now, config.telemetry)
    scheduler = BackgroundScheduler(timezone=UTC)
    scheduler.add_job(
        do_pass,
        trigger,
        args=[ingest, interrupt],
        next_run_time=ingest.now(),  # by default the first pass waits for the schedule
        misfire_grace_time=int(config.schedule.misfire_grace.total_seconds()) or 1,
        coalesce=True,  # passes that were missed become one
        max_instances=1,  # a pass that lasts longer than the interval is not doubled
    )
    scheduler.add_listener(MissedPasses(trigger).hear, EVENTS)
    scheduler.start()
    log.info("service started", trigger=str(trigger))
    try:
        while interrupt.signal is None:
            time.sleep(TICK_S)
    finally:
        scheduler.shutdown(wait=True)  # the pass in hand sees the signal too, and ends by itself
    log.info("service stopped")


def do_pass(ingest: IngestContext, interrupt: Interrupt) -> None:
    """Do one pass; whatever happens is logged here, and the next pass comes all the same."""
    with pass_lines(ingest.now()):
        try:
            hooks = PassHooks(lambda _done, _total: None, interrupt)
            tally = run_pass(ingest, PassOrder("schedule"), hooks)
            log_halt(tally)
            log_counts(tally)
        except ArchiverError as error:
            log_error(error)
        except Exception:  # a bug of ours must not end the service
            log.exception("pass failed, and should not have: please report it")
