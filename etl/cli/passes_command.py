"""`passes`: the last passes, with their length and counts."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from etl import display
from etl.cli import options

if TYPE_CHECKING:
    from etl.cli.session import Session


@click.command(epilog="Example: result-archiver passes --rows 50")
@click.option(
    "--rows",
    type=options.NUMBER,
    metavar="N",
    default=20,
    show_default=True,
    help="At most this number of passes, 0 is all.",
)
@options.as_json
@options.pass_session
def passes(session: "Session", *, rows: int, as_json: bool) -> int:
    """List the last passes: trigger, length, counts, exit code.

    In the table rejected answers count as failed, and runs without news as same. A pass that has
    not ended, or was killed, has no length or exit code, and its counts up to now.
    """
    from etl.ledger.passes import read_passes

    with session.open_to_read() as archive, archive.reading() as connection:
        found = read_passes(connection, rows or None)
    if as_json:
        display.as_json([{**row, "duration_s": _measure_s(row)} for row in found])
        return 0
    heads = ["pass", "started at", "length", "trigger", "requests", "new", "changed", "same"]
    display.table([*heads, "failed", "exit"], [_row(each) for each in found])
    return 0


def _measure_s(row: "dict[str, Any]") -> float | None:
    """Return the length of a pass in seconds; None for one that has not ended."""
    if row["finished_at"] is None:
        return None
    length: timedelta = row["finished_at"] - row["started_at"]
    return length.total_seconds()


def _row(row: "dict[str, Any]") -> list[Any]:
    length_s = _measure_s(row)
    length = None if length_s is None else str(timedelta(seconds=round(length_s)))
    before = [row["id"], row["started_at"], length, row["trigger"], row["requests"]]
    counts = [row["new"], row["changed"], row["unchanged"], row["failed"] + row["rejected"]]
    return [*before, *counts, row["exit_code"]]
