"""A pass with all that belongs around it: watched lists, metrics, pings.

What `ingest` does once, and the service again and again.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice

from sqlalchemy import Connection

from etl import clock
from etl.archive import identity
from etl.config.settings import DEFAULT_SOURCE
from etl.db import database
from etl.derived import aggregates
from etl.ingest import pipeline
from etl.ingest.keeper import Tally
from etl.ingest.pipeline import Interrupt, Means, Order, Progress
from etl.intake import lists
from etl.intake.lists import Given
from etl.ledger import ledger
from etl.ledger.ledger import Entry, Tracked
from etl.secrets import open_vault
from etl.telemetry.log import get_logger
from etl.telemetry.ping import ping

BATCH_RUNS = 500

log = get_logger()


class Pass:
    """Passes over one archive: what `ingest` does once and the service again and again."""

    def __init__(self, means: Means, trigger: str) -> None:
        self._means = means
        self._engine = means.engine
        self._config = means.config
        self._trigger = trigger
        self._bad_lines = 0

    def track(self, given: Given) -> Tracked:
        """Add `given` to the ledger, in a new database if need be.

        Its bad lines count for the next pass: that cannot be all well then.
        """
        return self._add(given, lambda _connection, _run_ids: None)

    def track_and_make_due(self, given: Given) -> Tracked:
        """Track `given`, and have even final runs among them fetched by the next pass."""

        def make_due(connection: Connection, run_ids: list[str]) -> None:
            ledger.make_due(connection, run_ids, clock.now())

        return self._add(given, make_due)

    def _add(self, given: Given, then: Callable[[Connection, list[str]], None]) -> Tracked:
        """Add runs a batch at a time, so that memory does not grow with the list."""
        database.prepare(self._engine)
        vault = open_vault(self._config)
        tracked = Tracked(0, 0)
        lacking: Counter[str] = Counter()
        runs = given.runs
        while batch := list(islice(runs, BATCH_RUNS)):
            entries = lists.entries(batch, vault)
            with database.writing(self._engine) as connection:
                added = self._track(connection, entries)
                then(connection, [entry.run_id for entry in entries])
            lacking.update(
                entry.source or DEFAULT_SOURCE for entry in entries if entry.read_token is None
            )
            tracked = Tracked(tracked.new + added.new, tracked.known + added.known)
        self._bad_lines += given.bad_lines
        if tracked.new:
            self._warn_of_missing_tokens(lacking)
        return tracked

    def _track(self, connection: Connection, entries: list[Entry]) -> Tracked:
        """Track a batch; the commit of an archived run may confirm that a test is flaky."""
        label = aggregates.COMMIT_LABEL
        commits = {each.run_id: each.labels[label] for each in entries if label in each.labels}
        plans = aggregates.recommitted(connection, commits)
        added = ledger.track(connection, entries, clock.now())
        aggregates.refresh_plans(connection, plans, self._config.rules)
        return added

    def _warn_of_missing_tokens(self, lacking: Counter[str]) -> None:
        """Say which sources' runs will fail for want of a token, while it may still be found."""
        with database.reading(self._engine) as connection:
            closed = ledger.sources_without_permission(connection)
        for source in sorted(closed & lacking.keys()):
            log.warning(
                "runs without a read token, which this key needs: it has no read permission",
                source=source,
                runs=lacking[source],
            )

    def run(self, progress: Progress, interrupt: Interrupt) -> Tally:
        """Track what the watched lists say, fetch what is due, and tell how it went.

        Raises:
            ArchiverError: the pass could not be done; metrics and ping have told so.
        """
        settings = self._config.telemetry
        ping(settings, "/start")
        is_well = False
        started_at = clock.now()
        try:
            self.track(lists.read_watched(self._config))
            bad_lines, self._bad_lines = self._bad_lines, 0
            tally = pipeline.run_pass(
                self._means,
                Order(self._trigger, bad_lines),
                progress,
                interrupt,
            )
            if interrupt.signal is None:
                # Even if nothing changed: the pass before may have been killed in it.
                zone, rules = self._config.reporting_zone, self._config.rules
                settle = partial(identity.settle, self._engine, started_at, zone, rules)
                pipeline.Patience().do(settle)  # each of its transactions may be done twice
            is_well = tally.exit_code == 0
        finally:
            if settings.metrics_file is not None:
                from etl.telemetry import prometheus  # noqa: PLC0415  a fifth of the start of a pass

                prometheus.write_file(self._engine, settings.metrics_file)
            ping(settings, "" if is_well else "/fail")
        return tally
