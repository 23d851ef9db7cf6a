"""Prometheus metrics: a file for cron, an endpoint for the service.

The metrics are read from the database, which has all state: cron and the service show the same
values, and no value is lost when a process ends. Only the passes that a service missed are counted
in its process.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, Engine, func, select

from etl.answers.outcome import Reason
from etl.config.settings import Telemetry
from etl.db.database import reading
from etl.db.schema import OUTCOMES, ingests
from etl.errors import DatabaseError, UsageError
from etl.ledger import standings
from etl.ledger.lifecycle import State
from etl.secrets.keys import DEFAULT_SOURCE
from etl.telemetry.log import get_logger

log = get_logger()

FINAL_REASONS = (
    Reason.NOT_FOUND,
    Reason.DENIED,
    Reason.UNREADABLE,
    Reason.TOO_MANY_ATTEMPTS,
    Reason.NEVER_ENDED,
    Reason.INTERNAL_ERROR,
)
"""The reasons for which a run is given up: a metric that is 0 shows that nothing failed."""

missed_passes = Counter({"missed": 0, "skipped": 0, "caught_up": 0})
"""The passes that this process's schedule did not do at their time."""


class ArchiveCollector(Collector):
    """The archive's metrics, read from the database at each scrape."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; only `result_archiver_database_up 0` without the database."""
        try:
            with reading(self._engine) as connection:
                metrics = [*_ledger_metrics(connection, self._clock()), *_pass_metrics(connection)]
                metrics.append(_missed_metric())
        except DatabaseError as error:
            log.warning("metrics not read", reason=str(error))
            metrics = []
        up = bool(metrics)
        yield GaugeMetricFamily(
            "result_archiver_database_up", "Whether the archive's database answers.", value=up
        )
        yield from metrics


def _ledger_metrics(connection: Connection, now: datetime) -> Iterator[Metric]:
    ledger = standings.standings(connection, now)
    by_source = ledger.by_source or {DEFAULT_SOURCE: {}}
    runs = GaugeMetricFamily(
        "result_archiver_runs",
        "Tracked runs by source and state of the ledger.",
        labels=["source", "state"],
    )
    for source, states in by_source.items():
        for state in State:
            runs.add_metric([source, state], states.get(state, 0))
    yield runs
    failed = GaugeMetricFamily(
        "result_archiver_failed_runs",
        "Runs that were given up, by source and reason.",
        labels=["source", "reason"],
    )
    counts = {(each.source, each.reason): each.runs for each in ledger.failed}
    for source in by_source:
        for reason in FINAL_REASONS:
            failed.add_metric([source, reason], counts.get((source, reason), 0))
    yield failed
    yield GaugeMetricFamily("result_archiver_due_runs", "Runs that are due now.", value=ledger.due)
    yield GaugeMetricFamily(
        "result_archiver_overdue_runs",
        "Runs that have been due for an hour or more.",
        value=ledger.overdue,
    )
    oldest = ledger.oldest_due_at
    yield GaugeMetricFamily(
        "result_archiver_oldest_due_age_seconds",
        "Age of the longest-overdue run, in seconds.",
        value=max((now - oldest).total_seconds(), 0) if oldest else 0,
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
    yield CounterMetricFamily("result_archiver_passes", "Passes started.", value=row[0])
    outcomes = CounterMetricFamily(
        "result_archiver_outcomes", "Runs fetched, by outcome.", labels=["outcome"]
    )
    for name, count in zip(OUTCOMES, row[1 : 1 + len(OUTCOMES)], strict=True):
        outcomes.add_metric([name], int(count))
    yield outcomes
    yield _moment("last_pass", "End of the last pass, as a Unix time.", row.last_finished)
    yield _moment(
        "last_success", "End of the last pass with exit code 0, as a Unix time.", row.last_success
    )


def _missed_metric() -> Metric:
    missed = CounterMetricFamily(
        "result_archiver_passes_missed",
        "Passes that the service missed, skipped or caught up, since its start.",
        labels=["way"],
    )
    for way, passes in missed_passes.items():
        missed.add_metric([way], passes)
    return missed


def _moment(name: str, help_text: str, moment: datetime | None) -> Metric:
    return GaugeMetricFamily(
        f"result_archiver_{name}_timestamp_seconds",
        help_text,
        value=moment.timestamp() if moment else 0,
    )


def make_registry(engine: Engine, clock: Callable[[], datetime]) -> CollectorRegistry:
    """Return a registry that has the archive's metrics and no other."""
    registry = CollectorRegistry()
    registry.register(ArchiveCollector(engine, clock))
    return registry


def write_metrics(engine: Engine, clock: Callable[[], datetime], file: str) -> None:
    """Replace `file` by the metrics of now, in one step. Never raises."""
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        write_to_textfile(file, make_registry(engine, clock))
    except OSError as error:
        log.warning("metrics file not written", file=file, reason=error.strerror)


def serve_metrics(engine: Engine, clock: Callable[[], datetime], settings: Telemetry) -> None:
    """Serve /metrics from a thread, if `telemetry.metrics_port` is set. Raises UsageError."""
    if not settings.metrics_port:
        return
    try:
        registry = make_registry(engine, clock)
        start_http_server(settings.metrics_port, settings.metrics_host, registry)
    except OSError as error:
        raise UsageError(
            f"telemetry.metrics_port: {settings.metrics_host}:{settings.metrics_port} cannot be"
            f" opened: {error.strerror}"
        ) from None
