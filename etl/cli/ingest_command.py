"""`ingest`: one pass, or passes until every run has finished."""

import time
from datetime import datetime
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import dask_option, options
from etl.errors import ArchiverError, UsageError

if TYPE_CHECKING:
    from etl.cli.session import Session
    from etl.db.opening import Archive
    from etl.ingest.context import IngestContext
    from etl.ingest.interrupt import Interrupt
    from etl.ingest.one_pass import PassOrder
    from etl.ingest.runners import Workers
    from etl.ingest.tally import Tally
    from etl.intake.arguments import Wanted
    from etl.intake.lists import Given


@click.command(epilog="Example: result-archiver ingest --from runs.csv")
@options.run_ids
@options.lists
@options.source
@click.option("--refresh", is_flag=True, help="Fetch the given runs (or all) even if final.")
@click.option("--wait", is_flag=True, help="Repeat until every run has finished.")
@click.option("--dry-run", is_flag=True, help="Only list the runs that would be fetched.")
@options.workers
@dask_option.dask
@options.as_json
@options.quiet
@options.verbose
@options.pass_session
def ingest(
    session: "Session",
    *,
    run_ids: tuple[str, ...],
    lists: tuple[str, ...],
    source: str | None,
    refresh: bool,
    wait: bool,
    dry_run: bool,
    workers: int | None,
    dask: str | None,
    as_json: bool,
) -> int:
    """Do one pass: fetch and store all runs that are due.

    Runs that are given, and those of the lists in runs.sources, are tracked first.
    """
    from etl.intake.arguments import Wanted

    wanted = Wanted(run_ids, lists, source, (), refresh)
    if dry_run:
        return _preview(session, wanted, as_json=as_json)
    together = _place_on_dask(dask, workers) if dask else _place_here(workers)
    return _ingest(session, wanted, together, wait=wait, as_json=as_json)


def _place_on_dask(address: str, number: int | None) -> "Workers":
    """Return workers on a Dask cluster, by default one for each of its workers."""
    from etl.ingest.runners import Workers

    runner = dask_option.connect_to_dask(address)
    return Workers(number or runner.count_workers(), runner)


def _place_here(number: int | None) -> "Workers | None":
    """Return workers on this machine, None for this process alone."""
    if number is None:
        return None
    from etl.ingest.runners import ProcessRunner, Workers

    config_file = click.get_current_context().meta.get(options.CONFIG_FILE)
    return Workers(number, ProcessRunner(config_file))


def _ingest(
    session: "Session",
    wanted: "Wanted",
    workers: "Workers | None",
    *,
    wait: bool,
    as_json: bool,
) -> int:
    from etl.fetch.door import check_routes
    from etl.ingest.summary import log_counts, log_halt
    from etl.intake import arguments
    from etl.runtime import tune_heap
    from etl.secrets.keys import DEFAULT_SOURCE, require_keys
    from etl.telemetry.log import log_error, pass_lines

    tune_heap()
    given = arguments.read(wanted, session.config)
    require_keys(
        session.config.sources, {wanted.source or DEFAULT_SOURCE} if wanted.run_ids else set()
    )
    check_routes(session.config)
    with pass_lines(session.now):
        try:
            tally = _do_passes(session, wanted, given, workers, wait=wait)
        except UsageError:
            raise  # no pass has begun
        except ArchiverError as error:
            log_error(error)
            return error.exit_code
        log_halt(tally)
        if as_json:
            display.as_json(tally.summary())
        else:
            log_counts(tally)
    return tally.exit_code


def _do_passes(
    session: "Session",
    wanted: "Wanted",
    given: "Given",
    workers: "Workers | None",
    *,
    wait: bool,
) -> "Tally":
    from etl.ingest import begin
    from etl.ingest.interrupt import Interrupt
    from etl.ingest.one_pass import PassOrder

    with session.open_or_create() as archive, Interrupt().listening() as interrupt:
        context = session.ingest_into(archive).agree_on_time()
        track = begin.track_and_make_due if wanted.refresh else begin.track_named
        track(context, given)
        if wanted.refresh and not wanted.run_ids and not wanted.lists:
            _make_all_due(archive, session.now)
        run = partial(_run, session, context, interrupt)
        tally = run(PassOrder("ingest", given.bad_lines, workers))
        while wait and tally.halt is None and _sleep_until_due(context, interrupt):
            tally = _combined(tally, run(PassOrder("ingest", 0, workers)))
    return tally


def _make_all_due(archive: "Archive", now: datetime) -> None:
    from etl.ledger import tracking

    with archive.writing() as connection:
        tracking.make_due(connection, None, now)


def _run(
    session: "Session", context: "IngestContext", interrupt: "Interrupt", order: "PassOrder"
) -> "Tally":
    from etl.ingest.context import PassHooks
    from etl.ingest.one_pass import run_pass

    with session.progress("archiving") as progress:
        return run_pass(context, order, PassHooks(progress, interrupt))


def _sleep_until_due(context: "IngestContext", interrupt: "Interrupt") -> bool:
    """Sleep until an unfinished run is due, or a signal comes; False if all have finished."""
    from etl.db.database import reading
    from etl.ledger import standings

    with reading(context.engine) as connection:
        due_at = standings.next_going(connection)
    while due_at is not None and context.now() < due_at and interrupt.signal is None:
        time.sleep(0.2)
    return due_at is not None  # on a signal, too: the pass that follows ends at once, and says so


def _combined(first: "Tally", then: "Tally") -> "Tally":
    """Add up two passes; runs still waiting or retrying count as the last pass left them."""
    from etl.ingest.tally import Tally

    return Tally(
        new=first.new + then.new,
        changed=first.changed + then.changed,
        unchanged=first.unchanged + then.unchanged,
        gone=first.gone + then.gone,
        waiting=then.waiting,
        failed=first.failed + first.rejected - first.to_retry + then.failed,
        rejected=then.rejected,
        requests=first.requests + then.requests,
        halt=then.halt,
        halt_reason=then.halt_reason,
        to_retry=then.to_retry,
        exit_code=then.exit_code or _exit_code_of_failures(first),
        pass_id=then.pass_id,
        standing_failed=then.standing_failed,
    )


def _exit_code_of_failures(tally: "Tally") -> int:
    """Return 1 if something failed in a pass that no later one can make good."""
    return 1 if tally.failed + tally.rejected > tally.to_retry else 0


def _preview(session: "Session", wanted: "Wanted", *, as_json: bool) -> int:
    """List the runs that a pass would fetch; write nothing."""
    from etl.db import database
    from etl.intake import arguments, lists
    from etl.ledger import standings, tracking

    given = arguments.read(wanted, session.config)
    watched = lists.read_watched(session.config)
    listed = list(dict.fromkeys(run.run_id for run in chain(given.runs, watched.runs)))
    runs = [{"run_id": run_id, "state": "new"} for run_id in listed]
    with session.open_as_it_is() as archive:
        if database.has_archive(archive.engine):
            with archive.reading() as connection:
                states = standings.states(connection, listed if wanted.refresh and listed else None)
                unknown = set(tracking.unknown(connection, listed))
                due = standings.due_runs(connection, session.now)
            runs = [run for run in runs if run["run_id"] in unknown]
            refreshed = {
                run_id: state
                for run_id, state in states.items()
                if wanted.refresh and state != "dropped"
            }
            runs += [{"run_id": key, "state": state} for key, state in (due | refreshed).items()]
    if as_json:
        display.as_json({"would_fetch": runs})
    else:
        for run in runs:
            display.say(f"{display.safe(run['run_id'])}  {run['state']}")
        display.note(f"{len(runs)} runs would be fetched; nothing was changed")
    return 1 if given.bad_lines or watched.bad_lines else 0
