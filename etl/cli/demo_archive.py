"""The demo's archive: the runs of a made-up API, archived by one pass."""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import URL

from etl import clock, display
from etl.config.settings import Api, Config, Database, Log, Polling, Security, Source
from etl.db.opening import Archive
from etl.errors import UsageError
from etl.export.own_files import DEMO_ARCHIVE, mark_database, read_application_id
from etl.ingest.context import IngestContext, PassHooks
from etl.ingest.interrupt import Interrupt
from etl.ingest.one_pass import PassOrder, run_pass
from etl.ingest.tally import Tally
from etl.intake.formats import read_list
from etl.ledger import tracking
from etl.ledger.tracking import Entry
from etl.sandbox import listing
from etl.sandbox.api import READ_KEY
from etl.sandbox.server import Sandbox, running
from etl.sandbox.world import World
from etl.sandbox.world_clock import Clock
from etl.secrets.keys import DEFAULT_SOURCE

# The made-up world stands still, so that the demo shows the same whenever it is run.
TODAY = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)


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


@contextmanager
def serving(file: Path) -> Iterator[tuple[Sandbox, Config]]:
    """Serve the made-up API; give settings that archive its runs into `file`."""
    with (
        running(World(end=TODAY), Clock(TODAY, speed=0)) as sandbox,
        tempfile.TemporaryDirectory() as folder,
    ):
        key_file = Path(folder, "api.key")
        key_file.write_text(READ_KEY)
        yield (
            sandbox,
            Config(
                sources={DEFAULT_SOURCE: Source(sandbox.url, key_file=str(key_file))},
                database=Database(_database_url(file)),
                api=Api(sandbox.url, max_requests_per_second=0),
                polling=Polling(give_up_after=timedelta(days=36_500)),  # its runs stand still
                security=Security(str(Path(folder, "token.key"))),
                log=Log(level="error"),
            ),
        )


def _database_url(file: Path) -> str:
    url = URL.create("sqlite", database=str(file.absolute()))
    return url.render_as_string()  # escapes "?", "%" and "#" in the path


def ingest_all(archive: Archive, config: Config, sandbox: Sandbox) -> Tally:
    """Track all runs of the made-up API, and archive them in one pass."""
    runs = read_list("".join(listing.render(sandbox.world, listing.Format.CSV, TODAY)).encode())
    entries = [Entry(run.run_id, None, None, run.labels) for run in runs.runs]
    ingest = IngestContext(archive.engine, config, clock.now)
    with archive.writing() as connection:
        tracking.track(connection, entries, ingest.now())
    with display.progress("archiving") as progress, Interrupt().listening() as interrupt:
        return run_pass(ingest, PassOrder("demo"), PassHooks(progress, interrupt))
