"""`demo`: the whole job on made-up runs, from an API on loopback to a report."""

import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Engine

from etl import clock, display
from etl.config.settings import (
    DEFAULT_RULES,
    Api,
    Config,
    Database,
    Log,
    Polling,
    Security,
    Source,
)
from etl.db import database
from etl.ingest.context import IngestContext, PassHooks
from etl.ingest.interrupt import Interrupt
from etl.ingest.one_pass import PassOrder, run_pass
from etl.ingest.tally import Tally
from etl.intake.formats import read_list
from etl.ledger import tracking
from etl.ledger.tracking import Entry
from etl.reports import catalog, forms
from etl.reports.model import Request
from etl.sandbox import listing
from etl.sandbox.app import READ_KEY
from etl.sandbox.clock import Clock
from etl.sandbox.server import Sandbox, running
from etl.sandbox.world import World
from etl.secrets.keys import DEFAULT_SOURCE
from etl.telemetry import log

# The made-up world stands still, so that the demo shows the same whenever it is run.
TODAY = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
REPORTS = ("overview", "flaky", "unresolved", "durations")
ROWS = 5


def run(file: Path) -> int:
    """Archive the sandbox's runs into the SQLite file `file`, and report on them."""
    display.note("starting a made-up API on loopback: no key and no network are needed")
    with (
        running(World(end=TODAY), Clock(TODAY, speed=0)) as sandbox,
        _settings(sandbox, file) as config,
    ):
        log.configure(config.log)
        engine = database.connect(config.database.url)
        tally = _archive(engine, config, sandbox)
    with database.reading(engine) as connection:
        _print_reports(connection, tally)
    _print_next_steps(file)
    return tally.exit_code


@contextmanager
def _settings(sandbox: Sandbox, file: Path) -> Iterator[Config]:
    with tempfile.TemporaryDirectory() as folder:
        key_file = Path(folder, "api.key")
        key_file.write_text(READ_KEY)
        yield Config(
            sources={DEFAULT_SOURCE: Source(sandbox.url, key_file=str(key_file))},
            database=Database(f"sqlite:///{file.absolute()}"),
            api=Api(sandbox.url, max_requests_per_second=0),
            polling=Polling(give_up_after=timedelta(days=36_500)),  # its runs stand still for good
            security=Security(str(Path(folder, "token.key"))),
            log=Log(level="error"),
        )


def _archive(engine: Engine, config: Config, sandbox: Sandbox) -> Tally:
    runs = read_list("".join(listing.render(sandbox.world, listing.Format.CSV, TODAY)).encode())
    database.prepare(engine)
    with database.writing(engine) as connection:
        entries = [Entry(run.run_id, None, None, run.labels) for run in runs.runs]
        tracking.track(connection, entries, clock.now())
    with display.progress("archiving") as progress, Interrupt().listening() as interrupt:
        ingest = IngestContext(engine, config, clock.now)
        return run_pass(ingest, PassOrder("demo"), PassHooks(progress, interrupt))


def _print_reports(connection: Connection, tally: Tally) -> None:
    display.say(
        f"{tally.new} runs archived, {tally.changed} changed, {tally.unchanged} asked again and"
        f" unchanged, {tally.failed + tally.rejected} failed"
    )
    request = Request(TODAY, DEFAULT_RULES, ZoneInfo("UTC"), most_rows=ROWS)
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
