"""The things that a pass is given: archive, settings, clock; progress, signal, way of fetching."""

from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import Engine

from etl.config.settings import Config
from etl.db.database_clock import keep_clock
from etl.fetch.door import Clock, Way
from etl.fetch.rate_limit import Pauses
from etl.ingest.interrupt import Interrupt

Progress = Callable[[int, int], None]
"""Called with (runs done, runs due) now and then."""


class IngestContext(NamedTuple):
    """All that a pass needs and does not change."""

    engine: Engine
    config: Config
    now: Clock
    way: Way | None = None
    """The way of fetching; by default the one that suits the number of due runs."""
    pauses: Pauses = Pauses()
    patience_s: float = 60.0
    """The longest wait for a database that is away."""
    shared_clock: Callable[[Engine, Clock], Clock] = keep_clock
    """Makes the clock of a pass, one that all hosts share."""

    def agree_on_time(self) -> "IngestContext":
        """Return the context with the shared clock. Raises DatabaseError."""
        return self._replace(now=self.shared_clock(self.engine, self.now), shared_clock=keep_clock)


class PassHooks(NamedTuple):
    """The caller's side of one pass."""

    progress: Progress
    interrupt: Interrupt
