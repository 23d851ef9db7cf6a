"""`refresh`: the derived tables brought up to date by themselves, without a pass."""

from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options

if TYPE_CHECKING:
    from etl.cli.session import Session


@click.command(epilog="Example: result-archiver refresh")
@options.pass_session
def refresh(session: "Session") -> int:
    """Recompute the derived tables that commits have marked.

    A pass does it before it ends; this is for views that must not wait, or after a kill.
    """
    from etl.archive import identity
    from etl.db.archive_settings import read_settings
    from etl.derived.marks import count_marked

    with session.open_to_write() as archive:
        with archive.reading() as connection:
            zone = read_settings(connection).reporting.zone
            marked = count_marked(connection)
        identity.refresh_archive(archive.engine, session.now, zone)
    display.say(f"derived tables are up to date; they lacked {marked} revisions of runs")
    return 0
