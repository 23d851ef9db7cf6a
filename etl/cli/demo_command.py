"""`demo`: the whole job on made-up runs, from an API on loopback to a report."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from etl.ingest.tally import Tally

REPORTS = ("overview", "flaky", "unresolved", "durations")
ROWS = 5


@click.command(epilog="Example: result-archiver demo")
@click.option(
    "--file",
    type=options.FILE,
    metavar="FILE",
    default="demo.db",
    show_default=True,
    help="The archive to make.",
)
def demo(file: Path) -> int:
    """Show the whole job on made-up runs, without a key or a network."""
    from etl.cli import demo_archive
    from etl.db.opening import open_or_create
    from etl.telemetry import log

    demo_archive.mark(file)
    display.note("starting a made-up API on loopback: no key and no network are needed")
    with demo_archive.serving(file) as (sandbox, config):
        log.configure(config.log)
        with open_or_create(config.database.url, config.to_store) as archive:
            tally = demo_archive.ingest_all(archive, config, sandbox)
            with archive.reading() as connection:
                _print_reports(connection, tally)
    _print_next_steps(file)
    return tally.exit_code


def _print_reports(connection: "Connection", tally: "Tally") -> None:
    from zoneinfo import ZoneInfo

    from etl.cli.demo_archive import TODAY
    from etl.config.settings import DEFAULT_RULES
    from etl.reports import catalog, forms
    from etl.reports.model import ReportRequest

    display.say(
        f"{tally.new} runs archived, {tally.changed} changed, {tally.unchanged} asked again and"
        f" unchanged, {tally.failed + tally.rejected} failed"
    )
    request = ReportRequest(TODAY, DEFAULT_RULES, ZoneInfo("UTC"), most_rows=ROWS)
    for name in REPORTS:
        display.say()
        forms.show_table(catalog.run(connection, catalog.find(name), request))


def _print_next_steps(file: Path) -> None:
    shown = shlex.quote(str(file))
    display.say("\nWhat to try next:")
    display.say(
        f"  sqlite3 {shown}               # or any other SQL client; docs/TABLES.md explains"
    )
    display.say("  result-archiver init          # write a config.toml for your own account")
    display.say("  result-archiver ingest --from runs.csv")
