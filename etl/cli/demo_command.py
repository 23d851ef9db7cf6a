"""`demo`: the whole job on made-up runs, from an API on loopback to a report."""

import shlex
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options

if TYPE_CHECKING:
    from sqlalchemy import Connection

REPORTS = {"overview": 20, "flaky": 2}
"""The reports to print, with their number of rows."""
BEFORE = timedelta(days=14)
NEXT_STEPS = """\
What to try next:
  export RESULT_ARCHIVER__DATABASE__URL={url}
  result-archiver report unresolved --as-of {day}   # open tests as of that day
  result-archiver report resolution    # decisions: bounds of the time they took
  result-archiver report --format html --output page.html
  result-archiver export --sqlite copy.db      # for BI tools, see docs/BI.md
  result-archiver init                 # a config.toml for your own account"""


@click.command(epilog="Example: result-archiver demo")
@click.option(
    "--file",
    type=options.FILE,
    metavar="FILE",
    default="demo.db",
    show_default=True,
    help="The archive to make.",
)
@click.pass_context
def demo(context: click.Context, /, *, file: Path) -> int:
    """Show the whole job on made-up runs, without a key or a network.

    Simulates a month of passes, which ends today. Again, it goes on where it was interrupted.
    """
    from etl.cli import demo_archive
    from etl.cli.session import Wiring
    from etl.db.opening import open_or_create
    from etl.telemetry import log

    wiring = context.find_root().obj or Wiring()
    demo_archive.mark(file)
    display.note("starting a made-up API on loopback: no key and no network are needed")
    with open_or_create(demo_archive.database_url(file)) as archive:
        with archive.reading() as connection:
            today = demo_archive.read_today(connection, wiring.clock())
        with demo_archive.serving(today) as (sandbox, config):
            log.configure(config.log)
            if code := demo_archive.ingest_month(archive, config, sandbox):
                display.note(f"the month ends early; go on: demo --file {shlex.quote(str(file))}")
                return code
        with archive.reading() as connection:
            display.say(f"{demo_archive.read_totals(connection)}\n")
            _print_reports(connection, today)
    url = shlex.quote(demo_archive.database_url(file))
    display.say(NEXT_STEPS.format(url=url, day=(today - BEFORE).date()))
    return 0


def _print_reports(connection: "Connection", today: datetime) -> None:
    from zoneinfo import ZoneInfo

    from etl.config.settings import DEFAULT_RULES
    from etl.reports import catalog, forms
    from etl.reports.model import ReportRequest

    for name, rows in REPORTS.items():
        request = ReportRequest(today, DEFAULT_RULES, ZoneInfo("UTC"), most_rows=rows)
        forms.show_table(catalog.run(connection, catalog.find(name), request))
        display.say()
