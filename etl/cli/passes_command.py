"""`passes`: the last passes, with their length and counts."""

from typing import TYPE_CHECKING

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
    """List the last passes: trigger, length, counts, exit code."""
    from sqlalchemy import select

    from etl.db.schema import ingests

    query = select(ingests).order_by(ingests.c.id.desc())
    with session.open_to_read() as archive, archive.reading() as connection:
        found = [dict(row) for row in connection.execute(query.limit(rows or None)).mappings()]
    for row in found:
        length = row["finished_at"] - row["started_at"] if row["finished_at"] else None
        row["duration_s"] = length.total_seconds() if length is not None else None
    if as_json:
        display.as_json(found)
        return 0
    names = ["id", "started_at", "duration_s", "trigger", "requests", "new", "changed"]
    names += ["failed", "rejected", "exit_code"]
    heads = ["pass", "started at", "s", "trigger", "sent", "new", "changed"]
    heads += ["failed", "rejected", "exit"]
    display.table(heads, [[row[name] for name in names] for row in found])
    return 0
