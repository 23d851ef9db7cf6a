"""The service: passes by interval or cron line, until a signal.

APScheduler only says when; it keeps no state of its own, so that a restart, a second instance or
cron beside the service changes nothing.
"""

import re
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from etl.config.settings import Schedule
from etl.errors import ArchiverError, ConfigError
from etl.ingest.context import IngestContext, PassHooks
from etl.ingest.interrupt import Interrupt
from etl.ingest.one_pass import PassOrder, run_pass
from etl.telemetry import prometheus
from etl.telemetry.log import bound_context, get_logger

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")

TICK_S = 0.1
"""The interval at which signals are looked for."""

log = get_logger()


def serve(ingest: IngestContext, interrupt: Interrupt) -> None:
    """Do a pass now and whenever the schedule says, until `interrupt` gets a signal.

    Raises:
        ConfigError: the schedule cannot be read.
        UsageError: the metrics port cannot be had.
    """
    config = ingest.config
    trigger = make_trigger(config.schedule)
    prometheus.serve_metrics(ingest.engine, ingest.now, config.telemetry)
    scheduler = BackgroundScheduler(timezone=UTC)
    scheduler.add_job(
        _sweep,
        trigger,
        args=[ingest, interrupt],
        next_run_time=datetime.now(UTC),  # by default the first pass waits for the schedule
        misfire_grace_time=int(config.schedule.misfire_grace.total_seconds()) or 1,
        coalesce=True,  # passes that were missed become one
        max_instances=1,  # a pass that lasts longer than the interval is not doubled
    )
    scheduler.start()
    log.info("service started", trigger=str(trigger))
    try:
        while interrupt.signal is None:
            time.sleep(TICK_S)
    finally:
        scheduler.shutdown(wait=True)  # the pass in hand sees the signal too, and ends by itself
    log.info("service stopped")


def _sweep(ingest: IngestContext, interrupt: Interrupt) -> None:
    """Do one pass; whatever happens is logged here, and the next pass comes all the same."""
    with bound_context(pass_started=ingest.now().isoformat()):
        try:
            hooks = PassHooks(lambda _done, _total: None, interrupt)
            tally = run_pass(ingest, PassOrder("schedule"), hooks)
        except ArchiverError as error:
            log.warning("pass failed", reason=str(error), exit_code=error.exit_code)
        except Exception:  # a bug of ours must not end the service
            log.exception("pass failed, and should not have: please report it")
        else:
            log.info("pass finished", pass_id=tally.pass_id, **tally.summary())


def make_trigger(schedule: Schedule) -> BaseTrigger:
    """Return APScheduler's trigger for the settings. Raises ConfigError for a bad cron line."""
    if not schedule.cron:
        return IntervalTrigger(seconds=_seconds(schedule.every), timezone=UTC)
    try:
        trigger = _cron_trigger(schedule)
    except ValueError as error:
        raise ConfigError(
            f"schedule.cron is {schedule.cron!r}: {error}; give five fields such as '*/15 * * * *'"
        ) from None
    return trigger


def _seconds(every: timedelta) -> int:
    return max(1, round(every.total_seconds()))


def _cron_trigger(schedule: Schedule) -> BaseTrigger:
    """Read a cron line as crontab(5) means it. Raises ValueError."""
    fields = schedule.cron.split()
    if len(fields) != 5:
        raise ValueError(f"it has {len(fields)} fields")
    minute, hour, day, month, weekday = fields
    days = [(day, _weekdays(weekday))]
    if not day.startswith("*") and not weekday.startswith("*"):  # then either will do
        days = [(day, "*"), ("*", _weekdays(weekday))]
    zone = ZoneInfo(schedule.time_zone)
    clock_of_cron = zone if hour == "*" else UTC
    cron = OrTrigger(
        [
            CronTrigger(None, month, day, None, weekday, hour, minute, timezone=clock_of_cron)
            for day, weekday in days
        ]
    )
    trigger = cron if hour == "*" else NamedHours(cron, zone)
    if trigger.get_next_fire_time(None, datetime.now(UTC)) is None:
        raise ValueError("there is no such day")
    return trigger


def _weekdays(field: str) -> str:
    """Return cron's days of the week by name: in numbers, APScheduler's 0 is Monday."""
    if field == "*":
        return field
    return ",".join(name for part in field.lower().split(",") for name in _weekday_names(part))


def _weekday_names(part: str) -> list[str]:
    day = "[0-7]|" + "|".join(WEEKDAYS)
    match = re.fullmatch(rf"(?:\*|({day})(?:-({day}))?)(?:/([1-7]))?", part)
    if match is None:
        raise ValueError(f"{part!r} is no day of the week")
    first, last, step = match.groups()
    start = _weekday(first or "sun")
    end = _weekday(last or first or "sat")
    if last and end == 0:
        end = 7  # a week may end with its Sunday
    if start > end:
        raise ValueError(f"{part!r} goes backwards")
    return [WEEKDAYS[number % 7] for number in range(start, end + 1, int(step or 1))]


def _weekday(day: str) -> int:
    return WEEKDAYS.index(day) if day in WEEKDAYS else int(day)


class NamedHours(BaseTrigger):  # type: ignore[misc]  # APScheduler has no type hints
    """A cron trigger whose hours come once a day, also when the clocks change.

    An hour that comes twice counts the first time; a time that is left out comes an hour later.
    CronTrigger itself would repeat the one, and miss the other where it is midnight.
    """

    __slots__ = ("_cron", "_zone")

    def __init__(self, cron: BaseTrigger, zone: ZoneInfo) -> None:
        self._cron = cron  # made for UTC: it is asked for wall clock times
        self._zone = zone

    def get_next_fire_time(
        self, previous_fire_time: datetime | None, now: datetime
    ) -> datetime | None:
        """Return the next moment after the previous one; None when there is none any more."""
        earliest = now.astimezone(UTC)
        if previous_fire_time:
            earliest = previous_fire_time.astimezone(UTC) + timedelta(microseconds=1)
        wall = earliest.astimezone(self._zone).replace(tzinfo=UTC)
        while wall := self._cron.get_next_fire_time(None, wall):
            moment: datetime = wall.replace(tzinfo=self._zone, fold=0).astimezone(UTC)
            if moment >= earliest:
                return moment
            wall += timedelta(microseconds=1)
        return None

    def __str__(self) -> str:
        return str(self._cron)
