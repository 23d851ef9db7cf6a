"""Prometheus metrics: a file for cron, an endpoint for the service.

The metrics are read from the database, which has all state: cron and the service show the same,
and nothing is lost when a process ends.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, Engine, func, select

from etl import clock
from etl.config.settings import Telemetry
from etl.db.database import reading
from etl.db.schema import OUTCOMES, ingests
from etl.errors import DatabaseError, UsageError
from etl.ledger import standings
from etl.telemetry.log import get_logger

log = get_logger()


class ArchiveCollector(Collector):
    """The archive's metrics, read anew for each scrape."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; only `result_archiver_database_up 0` when the database is away."""
        try:
            with reading(self._engine) as connection:
                metrics = [*_ledger_metrics(connection), *_pass_metrics(connection)]
        except DatabaseError as error:
            log.warning("metrics not read", reason=str(error))
            metrics = []
        up = bool(metrics)
        yield GaugeMetricFamily(
            "result_archiver_database_up", "Whether the archive's database answers.", value=up
        )
        yield from metrics


def _ledger_metrics(connection: Connection) -> Iterator[Metric]:
    now = clock.now()
    found = standings.standings(connection, now)
    by_state = GaugeMetricFamily(
        "result_archiver_runs", "Tracked runs by state of the ledger.", labels=["state"]
    )
    for state, count in found.by_state.items():
        by_state.add_metric([state], count)
    yield by_state
    yield GaugeMetricFamily("result_archiver_due_runs", "Runs that are due now.", value=found.due)
    waiting_s = (now - found.oldest_due_at).total_seconds() if found.oldest_due_at else 0
    yield GaugeMetricFamily(
        "result_archiver_oldest_due_age_seconds", "For how long a run is due.", value=waiting_s
    )


def _pass_metrics(connection: Connection) -> Iterator[Metric]:
    row = connection.execute(
        select(
            func.count(),
            *[func.coalesce(func.sum(ingests.c[name]), 0) for name in OUTCOMES],
            func.max(ingests.c.finished_at).label("last_finished"),
            func.max(ingests.c.finished_at).filter(ingests.c.exit_code == 0).label("last_success"),
        )
    ).one()
    yield CounterMetricFamily("result_archiver_passes", "Passes begun.", value=row[0])
    outcomes = CounterMetricFamily(
        "result_archiver_outcomes", "Runs fetched, by what came of it.", labels=["outcome"]
    )
    for name, count in zip(OUTCOMES, row[1 : 1 + len(OUTCOMES)], strict=True):
        outcomes.add_metric([name], int(count))
    yield outcomes
    yield _moment("last_pass", "When the last pass ended.", row.last_finished)
    yield _moment("last_success", "When a pass last ended with exit code 0.", row.last_success)


def _moment(name: str, help_text: str, moment: datetime | None) -> Metric:
    return GaugeMetricFamily(
        f"result_archiver_{name}_timestamp_seconds",
        help_text,
        value=moment.timestamp() if moment else 0,
    )


def registry(engine: Engine) -> CollectorRegistry:
    """Return a registry that has the archive's metrics and no other."""
    found = CollectorRegistry()
    found.register(ArchiveCollector(engine))
    return found


def write_file(engine: Engine, file: str) -> None:
    """Write the metrics to `file`, whole and at once. Never raises."""
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        write_to_textfile(file, registry(engine))
    except OSError as error:
        log.warning("metrics file not written", file=file, reason=error.strerror)


def serve(engine: Engine, settings: Telemetry) -> None:
    """Serve /metrics from a thread, if `telemetry.metrics_port` is set. Raises UsageError."""
    if not settings.metrics_port:
        return
    try:
        start_http_server(settings.metrics_port, settings.metrics_host, registry(engine))
    except OSError as error:
        raise UsageError(
            f"telemetry.metrics_port: {settings.metrics_host}:{settings.metrics_port} cannot be"
            f" had: {error.strerror}"
        ) from None
