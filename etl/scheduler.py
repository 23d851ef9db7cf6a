"""When passes happen, and all that belongs around one: watched lists, metrics, pings.

APScheduler only says when; it keeps no state of its own, so that a restart, a second instance or
cron beside the service changes nothing.
"""

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy import Engine

from etl import clock, database, ledger, lists, pipeline, telemetry
from etl.config import DEFAULT_SOURCE, Config, Schedule
from etl.errors import ArchiverError, ConfigError
from etl.keeper import Tally
from etl.lists import Given
from etl.log import get_logger
from etl.pipeline import Interrupt, Progress
from etl.secrets import open_vault

log = get_logger()


class Pass:
    """Passes over one archive: what `ingest` does once and the service again and again."""

    def __init__(self, engine: Engine, config: Config, trigger: str) -> None:
        self._engine = engine
        self._config = config
        self._trigger = trigger

    def track(self, given: Given) -> ledger.Tracked:
        """Add `given` to the ledger, in a new database if need be."""
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
        telemetry.ping(settings, "/start")
        is_well = False
        try:
            given = lists.read(lists.watched(self._config), self._config)
            self.track(given)
            tally = pipeline.run_pass(
                self._engine, self._config, self._trigger, progress, interrupt
            )
            if given.bad_lines and not tally.exit_code:
                tally.exit_code = 1
            is_well = tally.exit_code == 0
        finally:
            telemetry.write_metrics(self._engine, settings)
            telemetry.ping(settings, "" if is_well else "/fail")
        return tally


def _lacks_token(entry: ledger.Entry, source: str) -> bool:
    return entry.read_token is None and (entry.source or DEFAULT_SOURCE) == source


def serve(engine: Engine, config: Config, interrupt: Interrupt) -> None:
    """Do a pass now and whenever the schedule says, until `interrupt` gets a signal.

    Raises:
        ConfigError: the schedule cannot be read.
        UsageError: the metrics port cannot be had.
    """
    trigger = make_trigger(config.schedule)
    telemetry.serve_metrics(engine, config.telemetry)
    scheduler = BackgroundScheduler(timezone=UTC)
    scheduler.add_job(
        _sweep,
        trigger,
        args=[Pass(engine, config, "schedule"), interrupt],
        next_run_time=datetime.now(UTC),  # by default the first pass waits for the schedule
        misfire_grace_time=int(config.schedule.misfire_grace.total_seconds()) or 1,
        coalesce=True,  # passes that were missed become one
        max_instances=1,  # a pass that lasts longer than the interval is not doubled
    )
    scheduler.start()
    log.info("service started", trigger=str(trigger))
    try:
        while interrupt.signal is None:
            time.sleep(pipeline.TICK_S)
    finally:
        scheduler.shutdown(wait=True)  # the pass in hand sees the signal too, and ends by itself
    log.info("service stopped")


def _sweep(the_pass: Pass, interrupt: Interrupt) -> None:
    """Do one pass; whatever happens is logged here, and the next pass comes all the same."""
    with structlog.contextvars.bound_contextvars(pass_started=clock.now().isoformat()):
        try:
            tally = the_pass.run(lambda _done, _total: None, interrupt)
        except ArchiverError as error:
            log.warning("pass failed", reason=str(error), exit_code=error.exit_code)
        else:
            log.info("pass finished", **tally.summary())


def make_trigger(schedule: Schedule) -> BaseTrigger:
    """Return APScheduler's trigger for the settings. Raises ConfigError for a bad cron line."""
    if not schedule.cron:
        return IntervalTrigger(seconds=_seconds(schedule.every))
    try:
        cron = CronTrigger.from_crontab(schedule.cron, timezone=ZoneInfo(schedule.time_zone))
    except ValueError as error:
        raise ConfigError(
            f"schedule.cron is {schedule.cron!r}: {error}; give five fields such as '*/15 * * * *'"
        ) from None
    return OnceWhenClocksGoBack(cron, names_hours=schedule.cron.split()[1] != "*")


def _seconds(every: timedelta) -> int:
    return max(1, round(every.total_seconds()))


class OnceWhenClocksGoBack(BaseTrigger):  # type: ignore[misc]  # APScheduler has no type hints
    """A cron trigger whose named hours do not come twice on the day that has one hour twice.

    On the day that lacks an hour, CronTrigger fires once as it is.
    """

    __slots__ = ("_cron", "_names_hours")

    def __init__(self, cron: CronTrigger, *, names_hours: bool) -> None:
        self._cron = cron
        self._names_hours = names_hours

    def get_next_fire_time(
        self, previous_fire_time: datetime | None, now: datetime
    ) -> datetime | None:
        """Return the next moment after `now`; None when there is none any more."""
        moment: datetime | None = self._cron.get_next_fire_time(previous_fire_time, now)
        while moment is not None and moment.fold and self._names_hours:
            later = (moment.astimezone(UTC) + timedelta(seconds=1)).astimezone(moment.tzinfo)
            moment = self._cron.get_next_fire_time(None, later)
        return moment

    def __str__(self) -> str:
        return str(self._cron)
