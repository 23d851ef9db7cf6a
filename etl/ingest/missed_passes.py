"""The passes that did not come at their time: logged, and counted for Prometheus."""

from datetime import datetime
from typing import Protocol

from apscheduler.events import (
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    EVENT_JOB_SUBMITTED,
    JobExecutionEvent,
    JobSubmissionEvent,
)

from etl.telemetry import prometheus
from etl.telemetry.log import get_logger

EVENTS = EVENT_JOB_SUBMITTED | EVENT_JOB_MAX_INSTANCES | EVENT_JOB_MISSED

log = get_logger()


class Trigger(Protocol):
    """APScheduler's interface of a trigger."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        """Return the moment after the previous one."""


class MissedPasses:
    """Hears APScheduler's events of the service's job.

    APScheduler tells the last of several moments that have come by the time it looks, as after a
    suspension of the machine: the trigger tells the number of the others.
    """

    def __init__(self, trigger: Trigger) -> None:
        self._trigger = trigger
        self._last_at: datetime | None = None

    def hear(self, event: JobSubmissionEvent | JobExecutionEvent) -> None:
        """Log and count the passes that an event says did not come at their time."""
        if event.code == EVENT_JOB_MISSED:
            _note("missed", 1, event.scheduled_run_time, "later than schedule.misfire_grace allows")
            return
        at = event.scheduled_run_times[-1]
        earlier = self._count_since_last(at)
        self._last_at = at
        if event.code == EVENT_JOB_MAX_INSTANCES:
            _note("skipped", earlier + 1, at, "the pass before is still running")
        elif earlier:
            _note("caught_up", earlier, at, "this process did not run; one pass makes up for all")

    def _count_since_last(self, at: datetime) -> int:
        """Count the moments between the last event and `at`."""
        count, moment = 0, self._last_at
        while moment := moment and self._trigger.get_next_fire_time(moment, moment):
            if moment >= at:
                break
            count += 1
        return count


def _note(way: str, passes: int, at: datetime, reason: str) -> None:
    prometheus.missed_passes[way] += passes
    event = f"passes {way.replace('_', ' ')}"
    log.warning(event, passes=passes, scheduled_at=at.isoformat(), reason=reason)
