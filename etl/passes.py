"""A pass with all that belongs around it: watched lists, metrics, pings.

What `ingest` does once, and the service again and again.
"""

from sqlalchemy import Engine

from etl import clock, database, ledger, lists, pipeline
from etl.config import DEFAULT_SOURCE, Config
from etl.keeper import Tally
from etl.lists import Given
from etl.log import get_logger
from etl.ping import ping
from etl.pipeline import Interrupt, Order, Progress
from etl.secrets import open_vault

log = get_logger()


class Pass:
    """Passes over one archive: what `ingest` does once and the service again and again."""

    def __init__(self, engine: Engine, config: Config, trigger: str) -> None:
        self._engine = engine
        self._config = config
        self._trigger = trigger
        self._bad_lines = 0

    def track(self, given: Given) -> ledger.Tracked:
        """Add `given` to the ledger, in a new database if need be.

        Its bad lines count for the next pass: that cannot be all well then.
        """
        self._bad_lines += given.bad_lines
        entries = lists.entries(given.runs, open_vault(self._config))
        database.prepare(self._engine)
        with database.writing(self._engine) as connection:
            tracked = ledger.track(connection, entries, clock.now())
            closed = ledger.sources_without_permission(connection) if tracked.new else set()
        for source in sorted(closed):
            count = sum(_lacks_token(entry, source) for entry in entries)
            if count:
                log.warning(
                    "runs without a read token, which this key needs: it has no read permission",
                    source=source,
                    runs=count,
                )
        return tracked

    def run(self, progress: Progress, interrupt: Interrupt) -> Tally:
        """Track what the watched lists say, fetch what is due, and tell how it went.

        Raises:
            ArchiverError: the pass could not be done; metrics and ping have told so.
        """
        settings = self._config.telemetry
        ping(settings, "/start")
        is_well = False
        try:
            self.track(lists.read_watched(self._config))
            bad_lines, self._bad_lines = self._bad_lines, 0
            tally = pipeline.run_pass(
                self._engine, self._config, Order(self._trigger, bad_lines), progress, interrupt
            )
            is_well = tally.exit_code == 0
        finally:
            if settings.metrics_file is not None:
                from etl import metrics  # noqa: PLC0415  a fifth of the start of a pass

                metrics.write_file(self._engine, settings.metrics_file)
            ping(settings, "" if is_well else "/fail")
        return tally


def _lacks_token(entry: ledger.Entry, source: str) -> bool:
    return entry.read_token is None and (entry.source or DEFAULT_SOURCE) == source
