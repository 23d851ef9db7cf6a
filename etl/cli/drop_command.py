"""`drop`: take runs out of the archive."""

from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options
from etl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from etl.archive.removal import RunContent
    from etl.cli.session import Session


@click.command(epilog="Example: result-archiver drop my-mistyped-run --yes")
@options.run_ids
@click.option("--yes", is_flag=True, help="Drop them; without it they are only listed.")
@options.as_json
@options.pass_session
def drop(session: "Session", *, run_ids: tuple[str, ...], yes: bool, as_json: bool) -> int:
    """Take runs out of the archive; lists do not bring them back.

    Their payloads and history are lost. `track --again` fetches them once more, as new runs.
    Without --yes nothing is changed, and the exit code is 2.
    """
    if not run_ids:
        raise UsageError("drop: no runs were given", "name their run IDs")
    contents = _drop(session, run_ids) if yes else _list(session, run_ids)
    if as_json:
        listed = [each._asdict() for each in contents]
        display.as_json({"runs": listed, "dropped": len(contents) if yes else 0})
    else:
        _print_contents(contents)
    if not yes:
        display.note(f"{len(contents)} runs would be dropped for good; add --yes to drop them")
        return 2
    if not as_json:
        display.say(f"{len(contents)} runs dropped; `result-archiver track --again` takes one back")
    return 0


def _list(session: "Session", run_ids: "Sequence[str]") -> "list[RunContent]":
    from etl.archive.removal import read_contents

    with session.open_to_read() as archive, archive.snapshot() as connection:
        contents = read_contents(connection, run_ids)
    _refuse_untracked(run_ids, contents)
    return contents


def _drop(session: "Session", run_ids: "Sequence[str]") -> "list[RunContent]":
    from etl.archive import identity
    from etl.archive.removal import drop_runs, read_contents
    from etl.db.archive_settings import hold_settings
    from etl.derived import refresh

    with session.open_to_write() as archive:
        with archive.writing() as connection:
            contents = read_contents(connection, run_ids)
            _refuse_untracked(run_ids, contents)
            reporting = hold_settings(connection)
            drop_runs(connection, run_ids, session.now, reporting.zone, reporting.rules)
        identity.apply_decisions(archive.engine, reporting.zone)
        refresh.refresh_marked(archive.engine)
    return contents


def _refuse_untracked(run_ids: "Sequence[str]", contents: "Sequence[RunContent]") -> None:
    """Raise UsageError if one of `run_ids` is not tracked."""
    untracked = sorted({*run_ids} - {each.run_id for each in contents})
    if untracked:
        listed = ", ".join(display.safe(run_id) for run_id in untracked)
        raise UsageError(f"nothing was dropped: not tracked: {listed}", "correct the run IDs")


def _print_contents(contents: "Sequence[RunContent]") -> None:
    heads = [name.replace("_", " ") for name in contents[0]._fields]
    display.table(heads, contents)
