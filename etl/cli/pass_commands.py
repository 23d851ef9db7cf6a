"""`track`, `ingest` and `retry`: what changes the archive."""

import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from sqlalchemy import Engine

from etl import clock, display
from etl.cli.session import open_session
from etl.db import database
from etl.errors import UsageError
from etl.fetch.breaker import Halt
from etl.ingest import begin
from etl.ingest.context import IngestContext, PassHooks
from etl.ingest.interrupt import Interrupt
from etl.ingest.one_pass import PassOrder, run_pass
from etl.ingest.tally import Tally
from etl.intake import arguments, lists
from etl.intake.arguments import Wanted
from etl.ledger import standings, tracking
from etl.runtime import tune_heap
from etl.secrets.keys import DEFAULT_SOURCE, require_keys


def track(path: Path | None, wanted: Wanted, *, as_json: bool) -> int:
    """Add runs to the ledger; 1 if lines of a list were bad."""
    session = open_session(path)
    given = arguments.read(wanted, session.config)
    if not wanted.run_ids and not wanted.lists:
        raise UsageError("no runs were given; name run IDs, or a list with --from FILE")
    tracked = begin.track(IngestContext(*session, clock.now), given)
    if as_json:
        display.as_json({**tracked._asdict(), "bad_lines": given.bad_lines})
    else:
        display.say(f"{tracked.new} new, {tracked.known} known already")
    return 1 if given.bad_lines else 0


def ingest(path: Path | None, wanted: Wanted, *, wait: bool, as_json: bool) -> int:
    """Track the given runs, then do one pass, or (`wait`) passes until every run has finished."""
    tune_heap()
    session = open_session(path)
    given = arguments.read(wanted, session.config)
    named = {wanted.source or DEFAULT_SOURCE} if wanted.run_ids else set()
    require_keys(session.config.sources, named)
    setting = IngestContext(*session, clock.now)
    if wanted.refresh:
        begin.track_and_make_due(setting, given)
    else:
        begin.track(setting, given)
    if wanted.refresh and not wanted.run_ids and not wanted.lists:
        _make_all_due(session.engine)
    with Interrupt().listening() as interrupt:
        tally = _run(setting, PassOrder("ingest", given.bad_lines), interrupt)
        while wait and tally.halt is None and _sleep_until_due(session.engine, interrupt):
            tally = _combined(tally, _run(setting, PassOrder("ingest"), interrupt))
    _tell(tally, as_json=as_json)
    return tally.exit_code


def schedule(path: Path | None) -> int:
    """Do passes as scheduled until SIGINT or SIGTERM; that is the regular end: 0."""
    from etl.ingest import scheduler  # noqa: PLC0415  APScheduler, which only the service needs

    tune_heap()
    session = open_session(path)
    require_keys(session.config.sources, set(session.config.sources))
    with Interrupt().listening() as interrupt:
        scheduler.serve(IngestContext(*session, clock.now), interrupt)
    return 0


def _make_all_due(engine: Engine) -> None:
    with database.writing(engine) as connection:
        tracking.make_due(connection, None, clock.now())


def _run(setting: IngestContext, order: PassOrder, interrupt: Interrupt) -> Tally:
    with display.progress("archiving") as progress:
        return run_pass(setting, order, PassHooks(progress, interrupt))


def _sleep_until_due(engine: Engine, interrupt: Interrupt) -> bool:
    """Sleep until a run that is still going is due, or a signal comes; False if none is going."""
    with database.reading(engine) as connection:
        due_at = standings.next_going(connection)
    while due_at is not None and clock.now() < due_at and interrupt.signal is None:
        time.sleep(0.2)
    return due_at is not None  # on a signal, too: the pass that follows ends at once, and says so


def _combined(first: Tally, then: Tally) -> Tally:
    """Add up two passes; what waited or had to be tried again counts as the last one left it."""
    return Tally(
        new=first.new + then.new,
        changed=first.changed + then.changed,
        unchanged=first.unchanged + then.unchanged,
        waiting=then.waiting,
        failed=first.failed - first.to_retry + then.failed,
        rejected=first.rejected + then.rejected,
        requests=first.requests + then.requests,
        halt=then.halt,
        halt_reason=then.halt_reason,
        to_retry=then.to_retry,
        exit_code=then.exit_code or _exit_code_of_failures(first),
    )


def _exit_code_of_failures(tally: Tally) -> int:
    """Return 1 if something failed in a pass that no later one can make good."""
    return 1 if tally.failed > tally.to_retry or tally.rejected else 0


def _tell(tally: Tally, *, as_json: bool) -> None:
    if tally.halt is not None:
        display.note(f"error: {_halted(tally)}")
    if as_json:
        display.as_json(tally.summary())
        return
    display.say(
        f"{tally.new} new, {tally.changed} changed, {tally.unchanged} unchanged,"
        f" {tally.waiting} still going, {tally.failed} failed, {tally.rejected} rejected"
        f" ({tally.requests} request{'' if tally.requests == 1 else 's'})"
    )


def _halted(tally: Tally) -> str:
    match tally.halt:
        case Halt.REFUSED:
            return f"{tally.halt_reason}; what is due stays due"
        case Halt.INTERRUPTED:
            return f"interrupted by {tally.halt_reason}; what is due stays due"
        case Halt.BUSY:
            return f"{tally.halt_reason}, longer than api.max_wait_s; what is due stays due"
        case _:
            return f"the API is down: {tally.halt_reason}; what is due stays due"


def preview(path: Path | None, wanted: Wanted, *, as_json: bool) -> int:
    """Say which runs a pass would fetch; write nothing."""
    session = open_session(path)
    given = arguments.read(wanted, session.config)
    watched = lists.read_watched(session.config)
    listed = list(dict.fromkeys(run.run_id for run in chain(given.runs, watched.runs)))
    runs = [{"run_id": run_id, "state": "new"} for run_id in listed]
    if database.has_archive(session.engine):
        with database.reading(session.engine) as connection:
            states = standings.states(connection, listed if wanted.refresh and listed else None)
            unknown = set(tracking.unknown(connection, listed))
            due = standings.due_runs(connection, clock.now())
        runs = [run for run in runs if run["run_id"] in unknown]
        wanted_again = states if wanted.refresh else {}
        runs += [{"run_id": key, "state": state} for key, state in (due | wanted_again).items()]
    if as_json:
        display.as_json({"would_fetch": runs})
    else:
        for run in runs:
            display.say(f"{display.safe(run['run_id'])}  {run['state']}")
        display.note(f"{len(runs)} runs would be fetched; nothing was changed")
    return 1 if given.bad_lines or watched.bad_lines else 0


def retry(path: Path | None, run_ids: Sequence[str], *, as_json: bool) -> int:
    """Make failed runs due again; 1 if one of those named is not tracked."""
    session = open_session(path)
    database.require_archive(session.engine)
    with database.writing(session.engine) as connection:
        strangers = tracking.unknown(connection, run_ids)
        changed = tracking.retry(connection, run_ids or None, clock.now())
    for run_id in strangers:
        display.note(f"run {display.safe(run_id)}: is not tracked; `result-archiver track` adds it")
    if as_json:
        display.as_json({"retrying": changed, "unknown": strangers})
    else:
        display.say(f"{changed} failed runs are due again")
    return 1 if strangers else 0
