"""`retry`: make failed runs due again."""

from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options
from etl.errors import UsageError

if TYPE_CHECKING:
    from etl.cli.session import Session


@click.command(epilog="Example: result-archiver retry --reason denied")
@options.run_ids
@click.option(
    "--reason", metavar="CODE", help="Only runs that failed for this reason, such as denied."
)
@options.as_json
@options.pass_session
def retry(
    session: "Session", *, run_ids: tuple[str, ...], reason: str | None, as_json: bool
) -> int:
    """Make failed runs (the given ones, or all) due again.

    The exit code is 1 if a given run is not tracked, or was dropped.
    """
    from etl.answers.outcome import Reason
    from etl.cli.run_facts import TAKE_BACK
    from etl.ledger import tracking

    if reason is not None and reason not in set(Reason):
        raise UsageError(f"--reason {reason!r}: give one of {', '.join(sorted(Reason))}")
    code = Reason(reason) if reason else None
    with session.open_to_write() as archive, archive.writing() as connection:
        untracked = tracking.unknown(connection, run_ids)
        dropped = tracking.read_dropped(connection, run_ids)
        changed = tracking.retry(connection, run_ids or None, session.now, code)
    for run_id in untracked:
        display.note(f"run {display.safe(run_id)}: is not tracked; `result-archiver track` adds it")
    for run_id in sorted(dropped):
        display.note(f"run {display.safe(run_id)}: was dropped; {TAKE_BACK}")
    if as_json:
        display.as_json({"retrying": changed, "unknown": untracked})
    else:
        display.say(f"{changed} failed runs are due again")
    return 1 if untracked or dropped else 0
