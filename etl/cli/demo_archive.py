"""The demo's archive: a month of passes over the runs of a made-up API."""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import URL, Connection, func, select

from etl import display
from etl.config.settings import Api, Config, Log, Polling, Security, Source
from etl.db.opening import Archive
from etl.db.schema import ingests
from etl.errors import UsageError
from etl.export.own_files import DEMO_ARCHIVE, mark_database, read_application_id
from etl.fetch.door import in_threads
from etl.ingest.context import IngestContext, PassHooks
from etl.ingest.interrupt import Interrupt
from etl.ingest.one_pass import PassOrder, run_pass
from etl.intake.formats import read_list
from etl.ledger import tracking
from etl.ledger.tracking import Entry
from etl.sandbox import listing
from etl.sandbox.api import READ_KEY
from etl.sandbox.server import Sandbox, running
from etl.sandbox.world import World
from etl.sandbox.world_clock import Clock
from etl.secrets.keys import DEFAULT_SOURCE

TRIGGER = "demo"
MONTH = timedelta(days=30)
STEP = timedelta(hours=12)
"""Time between two passes of the made-up month."""
PASSES = MONTH // STEP + 1
IS_DEMO = ingests.c.trigger == TRIGGER


def mark(file: Path) -> None:
    """Mark a new file as a demo archive.

    Raises:
        UsageError: `file` exists and is no demo archive, or cannot be written.
    """
    try:
        if not file.exists() or (file.is_file() and not file.stat().st_size):
            mark_database(file, DEMO_ARCHIVE)
        elif not file.is_file() or read_application_id(file) != DEMO_ARCHIVE:
            raise UsageError(
                f"--file {file}: exists, and is no demo archive",
                "the demo's runs are made up: give the name of a new file",
            )
    except (OSError, sqlite3.Error) as error:
        raise UsageError(f"--file {file}: cannot be written: {error}") from None


def read_today(connection: Connection, now: datetime) -> datetime:
    """Return the end of the made-up month: that of the archive's passes, or now if it has none."""
    first = select(func.min(ingests.c.started_at)).where(IS_DEMO)
    began_at = connection.scalar(first)
    return began_at + MONTH if began_at else now.replace(second=0, microsecond=0)


@contextmanager
def serving(today: datetime) -> Iterator[tuple[Sandbox, Config]]:
    """Serve the made-up API, whose past runs end `today`; give the settings of passes."""
    with (
        running(World(end=today), Clock(today, speed=0)) as sandbox,
        tempfile.TemporaryDirectory() as folder,
    ):
        key_file = Path(folder, "api.key")
        key_file.write_text(READ_KEY)
        yield (
            sandbox,
            Config(
                sources={DEFAULT_SOURCE: Source(sandbox.url, key_file=str(key_file))},
                api=Api(sandbox.url, max_requests_per_second=0),
                security=Security(str(Path(folder, "token.key"))),
                log=Log(level="error"),
            ),
        )


def database_url(file: Path) -> str:
    """Return the URL of an archive in `file`."""
    url = URL.create("sqlite", database=str(file))
    return url.render_as_string()  # escapes "?", "%" and "#" in the path


def ingest_month(archive: Archive, config: Config, sandbox: Sandbox) -> int:
    """Do the passes of the month that the archive lacks; return the exit code of the last one.

    The sandbox's clock is the only clock, and stands still during a pass.
    """
    ingest = IngestContext(archive.engine, config, sandbox.clock.now, in_threads)
    code = 0
    with display.progress("archiving a month") as progress, Interrupt().listening() as interrupt:
        hooks = PassHooks(lambda _done, _total: None, interrupt)
        for number, moment in _list_passes(archive, sandbox.clock.now(), config.polling):
            progress(number, PASSES)
            sandbox.clock.set(now=moment)
            with archive.writing() as connection:
                tracking.track(connection, _list_started(sandbox.world, moment), moment)
                if number == PASSES:
                    tracking.make_due(connection, None, moment)  # so that each run is seen twice
            if code := run_pass(ingest, PassOrder(TRIGGER), hooks).exit_code:
                break
    return code


def read_totals(connection: Connection) -> str:
    """Return the sums of the passes, in a line."""
    query = select(
        func.sum(ingests.c.new), func.sum(ingests.c.changed), func.count(ingests.c.finished_at)
    )
    new, changed, passes = connection.execute(query.where(IS_DEMO)).one()
    return f"{new} runs archived, and {changed} changes of them, by {passes} passes within a month"


def _list_passes(archive: Archive, today: datetime, polling: Polling) -> list[tuple[int, datetime]]:
    """Return number and time of the passes to do; all are after the leases of a killed one."""
    with archive.reading() as connection:
        done = select(func.count(ingests.c.finished_at)).where(IS_DEMO)
        killed = select(func.max(ingests.c.started_at)).where(
            IS_DEMO, ingests.c.finished_at.is_(None)
        )
        numbers = range((connection.scalar(done) or 0) + 1, PASSES + 1)
        killed_at = connection.scalar(killed)
    earliest = killed_at + polling.lease_for if killed_at else today - MONTH
    return [(number, max(today - (PASSES - number) * STEP, earliest)) for number in numbers]


def _list_started(world: World, moment: datetime) -> list[Entry]:
    """Return the runs that have started by `moment`, with the labels of a CI job."""
    runs = read_list("".join(listing.render(world, listing.Format.CSV, moment)).encode())
    return [Entry(run.run_id, None, None, run.labels) for run in runs.runs]
