"""One pass from top to bottom: begin, work, end. The service does one after another."""

from typing import NamedTuple

from etl.errors import OutOfFilesError, is_out_of_files
from etl.ingest import pass_workers
from etl.ingest.begin import (
    OpenPass,
    adopt_settings,
    open_pass,
    reopen_pass,
    require_token_key,
    track,
)
from etl.ingest.context import IngestContext, PassHooks
from etl.ingest.end import end_pass, fail_pass
from etl.ingest.locked_runs import await_locked_runs
from etl.ingest.runners import Workers, await_others, work_together
from etl.ingest.tally import Tally, exit_code
from etl.ingest.work import warn_of_leased_runs, warn_of_spent_budget, work
from etl.intake import lists
from etl.telemetry.log import bind_context
from etl.telemetry.ping import ping


class PassOrder(NamedTuple):
    """The trigger of a pass, and the number of bad lines in the lists given to it.

    `workers` do its work; None: this process does.
    """

    trigger: str
    bad_lines: int = 0
    workers: Workers | None = None


def run_pass(ingest: IngestContext, order: PassOrder, hooks: PassHooks) -> Tally:
    """Track the watched lists, fetch and store all due runs, and report the pass.

    Raises:
        ConfigError: the token key of this host is not the archive's. No pass has begun.
        ArchiverError: the pass could not be done; metrics and ping have reported it.
    """
    try:
        return _run_pass(ingest, order, hooks)
    except Exception as error:
        if is_out_of_files(error):
            raise OutOfFilesError from error
        raise


def _run_pass(ingest: IngestContext, order: PassOrder, hooks: PassHooks) -> Tally:
    telemetry = ingest.config.telemetry
    ping(telemetry, "/start")
    is_well = False
    try:
        ingest = ingest.agree_on_time()
        watched = lists.read_watched(ingest.config)
        track(ingest, watched)
        require_token_key(ingest)
        opened = open_pass(ingest, order.trigger)
        bind_context(pass_id=opened.tally.pass_id)
        bad_lines = order.bad_lines + watched.bad_lines
        ingest = adopt_settings(ingest)
        _work_or_fail(ingest, opened, hooks, order.workers)
        stopped_by = hooks.interrupt.signal
        # Workers were stopped by a signal of their own, which is passed on.
        code = 0 if stopped_by is not None else opened.tally.exit_code
        codes = code, exit_code(opened.tally, stopped_by, bad_lines)
        opened.tally.exit_code = pass_workers.worst_of(codes)
        end_pass(ingest, opened, is_interrupted=stopped_by is not None)
        is_well = opened.tally.exit_code == 0
    finally:
        if telemetry.metrics_file is not None:
            from etl.telemetry import prometheus  # noqa: PLC0415  a fifth of the start of a pass

            prometheus.write_metrics(ingest.engine, ingest.now, telemetry.metrics_file)
        ping(telemetry, "" if is_well else "/fail")
    return opened.tally


def join_pass(ingest: IngestContext, pass_id: int, hooks: PassHooks) -> Tally:
    """Work for a pass that another process has begun, and return the counts of this worker.

    If the pass has ended, there is nothing to do.

    Raises:
        UsageError: there is no such pass.
        ConfigError: the token key of this host is not the archive's.
    """
    ingest = adopt_settings(ingest.agree_on_time())
    opened = reopen_pass(ingest, pass_id)
    if opened is None:
        return Tally(pass_id=pass_id)
    require_token_key(ingest)
    bind_context(pass_id=pass_id)
    work(ingest, opened, hooks)
    return opened.tally


def _work_or_fail(
    ingest: IngestContext, opened: OpenPass, hooks: PassHooks, workers: Workers | None
) -> None:
    try:
        if workers is None:
            warn_of_leased_runs(ingest)
        _work(ingest, opened, hooks, workers)
        while await_locked_runs(ingest, opened, hooks):
            _work(ingest, opened, hooks, workers)
        warn_of_spent_budget(ingest, opened)
    except Exception as error:
        fail_pass(ingest, opened, error)
        raise


def _work(
    ingest: IngestContext, opened: OpenPass, hooks: PassHooks, workers: Workers | None
) -> None:
    """Do the work that is due now, by this process or by workers, and sum up that of the pass."""
    tally, exit_code = opened.tally, opened.tally.exit_code
    opened = opened._replace(tally=Tally(pass_id=tally.pass_id))
    try:
        if workers is None:
            work(ingest, opened, hooks)
        else:
            work_together(ingest, opened, hooks, workers)
        await_others(ingest, opened, hooks)
    finally:
        tally.copy(opened.tally)
        tally.exit_code = pass_workers.worst_of([exit_code, tally.exit_code])
