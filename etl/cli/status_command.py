"""`status`: the ledger at a glance, the failed runs, and a check for monitoring."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from etl import display
from etl.cli import options

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from etl.cli.session import Session
    from etl.ledger.standings import FailedRun, Standings

RECENT = 5
"""How many passes and retrying runs are shown."""


@click.command(epilog="Example: result-archiver status --check")
@click.option("--failed", is_flag=True, help="List all runs that were given up, and why.")
@click.option("--check", is_flag=True, help="Exit with 1 if runs failed or are overdue.")
@options.as_json
@options.pass_session
def status(session: "Session", *, failed: bool, check: bool, as_json: bool) -> int:
    """Show the ledger at a glance: states, failures, last passes."""
    from etl.ledger import standings

    now = session.now
    with session.open_to_read() as archive, archive.reading() as connection:
        found = standings.standings(connection, now)
        if failed:
            _print_failed(standings.read_failed(connection), now, as_json=as_json)
        else:
            _print_glance(_summarize(connection, found), now, as_json=as_json)
    return _check(found) if check else 0


def _check(found: "Standings") -> int:
    """Print on stderr what needs a person; return 1 if there is something."""
    problems = []
    if count := sum(each.runs for each in found.failed):
        problems.append(f"{count} runs failed; `result-archiver status --failed` lists them")
    if found.overdue:
        problems.append(f"{found.overdue} runs are overdue by an hour or more; do passes run?")
    for problem in problems:
        display.note(f"check: {problem}")
    return 1 if problems else 0


def _print_failed(runs: "list[FailedRun]", now: datetime, *, as_json: bool) -> None:
    if as_json:
        display.as_json({"failed": [each._asdict() for each in runs]})
        return
    rows = [
        (
            each.run_id,
            each.source,
            each.reason,
            f"{max((now - each.since).days, 0)} d",
            each.last_error,
        )
        for each in runs
    ]
    display.table(["run id", "source", "reason", "age", "message"], rows)
    display.say(f"{len(runs)} runs failed; `result-archiver retry` makes them due")


def _summarize(connection: "Connection", found: "Standings") -> dict[str, Any]:
    from sqlalchemy import select

    from etl.db.schema import tracked_runs
    from etl.derived.marks import count_marked
    from etl.ledger.passes import read_passes

    failures = (
        select(tracked_runs.c.run_id, tracked_runs.c.state, tracked_runs.c.last_error)
        .where(tracked_runs.c.state.in_(["failed", "retrying"]))
        .order_by(tracked_runs.c.state, tracked_runs.c.run_id)
        .limit(RECENT)
    )
    return {
        **found._asdict(),
        "failed": [each._asdict() for each in found.failed],
        "passes": read_passes(connection, RECENT),
        "failures": [dict(row) for row in connection.execute(failures).mappings()],
        "unrefreshed": count_marked(connection),
    }


def _print_glance(summary: dict[str, Any], now: datetime, *, as_json: bool) -> None:
    if as_json:
        display.as_json(summary)
        return
    display.table(["state", "runs"], summary["by_state"].items())
    if len(summary["by_source"]) > 1:
        rows = [
            (source, state, runs)
            for source, states in summary["by_source"].items()
            for state, runs in states.items()
        ]
        display.table(["source", "state", "runs"], rows)
    if summary["failed"]:
        rows = [tuple(each.values()) for each in summary["failed"]]
        display.table(["failed: source", "reason", "runs"], rows)
    display.say(f"{summary['due']} due now, {summary['leased']} being fetched")
    if summary["oldest_due_at"]:
        display.say(f"waiting since {display.safe(summary['oldest_due_at'])} UTC at the longest")
    if summary["next_due_at"]:
        display.say(f"next due at {display.safe(summary['next_due_at'])} UTC")
    if summary["unrefreshed"]:
        display.say(
            f"views lack {summary['unrefreshed']} revisions of runs; a pass adds them before it"
            " ends, `result-archiver refresh` does now"
        )
    if summary["passes"]:
        counts = ["new", "changed", "unchanged", "gone", "failed", "rejected"]
        names = ["started_at", *counts, "exit_code"]
        display.say(f"\nlast passes (now {display.safe(now)} UTC)")
        display.table(names, [[row[name] for name in names] for row in summary["passes"]])
    if summary["failures"]:
        display.say("\nfailed or retrying (the first; --failed lists all that failed)")
        display.table(
            ["run_id", "message"], [(r["run_id"], r["last_error"]) for r in summary["failures"]]
        )
