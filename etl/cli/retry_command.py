"""`retry`: make failed runs due again."""

from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options

if TYPE_CHECKING:
    from etl.cli.session import Session


@click.command(epilog="Example: result-archiver retry")
@options.run_ids
@options.as_json
@options.pass_session
def retry(session: "Session", *, run_ids: tuple[str, ...], as_json: bool) -> int:
    """Make failed runs (the given ones, or all) due again.

    The exit code is 1 if a given run is not tracked.
    """
    from etl.ledger import tracking

    with session.open_to_write() as archive, archive.writing() as connection:
        untracked = tracking.unknown(connection, run_ids)
        changed = tracking.retry(connection, run_ids or None, session.now)
    for run_id in untracked:
        display.note(f"run {display.safe(run_id)}: is not tracked; `result-archiver track` adds it")
    if as_json:
        display.as_json({"retrying": changed, "unknown": untracked})
    else:
        display.say(f"{changed} failed runs are due again")
    return 1 if untracked else 0
