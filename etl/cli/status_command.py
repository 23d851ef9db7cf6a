"""`status`: the ledger at a glance."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from etl import display
from etl.cli import options

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from etl.cli.session import Session

RECENT = 5
"""How many passes and failed runs are shown."""


@click.command(epilog="Example: result-archiver status")
@options.as_json
@options.pass_session
def status(session: "Session", *, as_json: bool) -> int:
    """Show the ledger at a glance: states, failures, last passes."""

    now = session.now
    with session.open_to_read() as archive, archive.reading() as connection:
        summary = _summarize(connection, now)
    if as_json:
        display.as_json(summary)
    else:
        _print_status(summary, now)
    return 0


def _summarize(connection: "Connection", now: datetime) -> dict[str, Any]:
    from sqlalchemy import select

    from etl.db.schema import ingests, tracked_runs
    from etl.ledger import standings

    passes = select(ingests).order_by(ingests.c.id.desc()).limit(RECENT)
    failures = (
        select(tracked_runs.c.run_id, tracked_runs.c.state, tracked_runs.c.last_error)
        .where(tracked_runs.c.state.in_(["failed", "retrying"]))
        .order_by(tracked_runs.c.state, tracked_runs.c.run_id)
        .limit(RECENT)
    )
    return {
        **standings.standings(connection, now)._asdict(),
        "passes": [dict(row) for row in connection.execute(passes).mappings()],
        "failures": [dict(row) for row in connection.execute(failures).mappings()],
    }


def _print_status(summary: dict[str, Any], now: datetime) -> None:
    display.table(["state", "runs"], summary["by_state"].items())
    display.say(f"{summary['due']} due now, {summary['leased']} being fetched")
    if summary["oldest_due_at"]:
        display.say(f"waiting since {display.safe(summary['oldest_due_at'])} UTC at the longest")
    if summary["next_due_at"]:
        display.say(f"next due at {display.safe(summary['next_due_at'])} UTC")
    if summary["passes"]:
        names = ["started_at", "new", "changed", "unchanged", "failed", "rejected", "exit_code"]
        display.say(f"\nlast passes (now {display.safe(now)} UTC)")
        display.table(names, [[row[name] for name in names] for row in summary["passes"]])
    if summary["failures"]:
        display.say("\nfailed or to be tried again (first few; `retry` makes them due)")
        display.table(
            ["run_id", "reason"], [(r["run_id"], r["last_error"]) for r in summary["failures"]]
        )
