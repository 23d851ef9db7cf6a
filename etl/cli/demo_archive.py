"""The demo's archive: the runs of a made-up API, archived by one pass."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from etl import clock, display
from etl.config.settings import Api, Config, Database, Log, Polling, Security, Source
from etl.db.opening import Archive
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
                database=Database(f"sqlite:///{file.absolute()}"),
                api=Api(sandbox.url, max_requests_per_second=0),
                polling=Polling(give_up_after=timedelta(days=36_500)),  # its runs stand still
                security=Security(str(Path(folder, "token.key"))),
                log=Log(level="error"),
            ),
        )


def ingest_all(archive: Archive, config: Config, sandbox: Sandbox) -> Tally:
    """Track all runs of the made-up API, and archive them in one pass."""
    runs = read_list("".join(listing.render(sandbox.world, listing.Format.CSV, TODAY)).encode())
    entries = [Entry(run.run_id, None, None, run.labels) for run in runs.runs]
    with archive.writing() as connection:
        tracking.track(connection, entries, clock.now())
    with display.progress("archiving") as progress, Interrupt().listening() as interrupt:
        ingest = IngestContext(archive.engine, config, clock.now)
        return run_pass(ingest, PassOrder("demo"), PassHooks(progress, interrupt))
