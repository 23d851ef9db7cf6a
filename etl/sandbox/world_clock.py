"""A clock that can be set and sped up, to watch ten days of a run's life in seconds."""

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

MAX_SPEED = 1_000_000.0


class Clock:
    """Starts at `now` and runs `speed` times as fast as time does; at speed 0 it stands still.

    May be read and set from several threads. `monotonic` gives seconds, from anywhere.
    """

    def __init__(
        self,
        now: datetime,
        speed: float = 1.0,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._speed = _checked_speed(speed)
        self._set_at = monotonic()
        self._set_to = _checked_now(now)

    @property
    def speed(self) -> float:
        """How many seconds of the clock pass in a second."""
        return self._speed

    def now(self) -> datetime:
        """Return the clock's time, which is aware."""
        with self._lock:
            elapsed_s = self._monotonic() - self._set_at
            return self._set_to + timedelta(seconds=elapsed_s * self._speed)

    def set(self, *, now: datetime | None = None, speed: float | None = None) -> None:
        """Set the time, the speed or both; None leaves one as it is.

        A ValueError if the time is naive, or the speed is not from 0 to `MAX_SPEED`.
        """
        to = self.now() if now is None else _checked_now(now)
        speed = self._speed if speed is None else _checked_speed(speed)
        with self._lock:
            self._set_at, self._set_to, self._speed = self._monotonic(), to, speed


def _checked_now(now: datetime) -> datetime:
    if now.tzinfo is None:
        raise ValueError(f"{now} has no time zone; give an aware datetime")
    return now


def _checked_speed(speed: float) -> float:
    if not 0 <= speed <= MAX_SPEED:  # refuses nan, too
        raise ValueError(f"speed {speed} is not from 0 to {MAX_SPEED:.0f}")
    return speed
