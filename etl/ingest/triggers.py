"""The moments of the service's passes: an interval, or a cron line read by cronsim."""

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger
from cronsim import CronSim, CronSimError

from etl.config.settings import Schedule
from etl.errors import ConfigError

CRON_FIELDS = 5
LONGEST_GAP = timedelta(hours=2)
"""The most that any zone's clocks are put forward."""
REMEDY = "give five fields such as '*/15 * * * *'"


class CronLine(BaseTrigger):  # type: ignore[misc]  # APScheduler has no type hints
    """The moments of a cron line in one time zone.

    Where the clocks change, a named hour fires once: a repeated one the first time, a skipped one
    an hour later. cronsim by itself would fire at the end of the gap; it is therefore asked for
    wall clock times. With `*` for the hours the line follows the
    zone's clock.
    """

    __slots__ = ("_clock", "_line", "_zone")

    def __init__(self, line: str, zone: ZoneInfo) -> None:
        """Raise CronSimError for a line that cannot be read."""
        fields = line.split()
        if len(fields) != CRON_FIELDS:  # cronsim would take a sixth one for seconds
            raise CronSimError(f"it has {len(fields)} fields")
        # To cronsim a Sunday by name is the first day of the week only.
        self._line = re.sub("-sun", "-7", line, flags=re.IGNORECASE)
        self._zone = zone
        self._clock = zone if fields[1] == "*" else None
        CronSim(self._line, datetime.min.replace(tzinfo=UTC))

    def get_next_fire_time(
        self, previous_fire_time: datetime | None, now: datetime
    ) -> datetime | None:
        """Return the first moment after the previous one, else from `now` on; None if none is."""
        earliest = now.astimezone(UTC)
        if previous_fire_time is not None:
            earliest = previous_fire_time.astimezone(UTC) + timedelta(microseconds=1)
        before = (earliest - LONGEST_GAP).astimezone(self._zone)  # after a gap its times still come
        times = CronSim(self._line, before.replace(tzinfo=self._clock))
        moments = (time.replace(tzinfo=self._zone).astimezone(UTC) for time in times)
        return next((moment for moment in moments if moment >= earliest), None)

    def __str__(self) -> str:
        return f"cron[{self._line}]"


def make_trigger(schedule: Schedule) -> BaseTrigger:
    """Return APScheduler's trigger for the settings. Raises ConfigError for a bad cron line."""
    if not schedule.cron:
        seconds = max(1, round(schedule.every.total_seconds()))
        return IntervalTrigger(seconds=seconds, timezone=UTC)
    try:
        return CronLine(schedule.cron, ZoneInfo(schedule.time_zone))
    except CronSimError as error:
        raise ConfigError(f"schedule.cron is {schedule.cron!r}: {error}", REMEDY) from None
