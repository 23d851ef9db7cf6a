"""The beginning of a command: settings, logs, the time, and how it opens the archive."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace
from sqlalchemy import Engine

from etl import clock, display
from etl.config import loading
from etl.config.settings import Config, LogLevel
from etl.db import opening
from etl.db.database_clock import correct_clock
from etl.db.opening import Archive
from etl.fetch.door import Clock, Way
from etl.fetch.rate_limit import Pauses
from etl.ingest.context import IngestContext
from etl.telemetry import log

Progress = Callable[[int, int], None]


class Wiring(NamedTuple):
    """The parts of a pass that tests replace."""

    clock: Clock = clock.now
    way: Way | None = None
    pauses: Pauses = Pauses()
    patience_s: float = 60.0
    shared_clock: Callable[[Engine, Clock], Clock] = correct_clock


class Session(NamedTuple):
    """The settings of a command, the time at its beginning, and the clock."""

    config: Config
    now: datetime
    wiring: Wiring

    def progress(self, title: str) -> AbstractContextManager[Progress]:
        """Show the progress of long work on a terminal, unless only warnings are wanted."""
        is_quiet = self.config.log.level not in {"debug", "info"}
        return nullcontext(_show_nothing) if is_quiet else display.progress(title)

    def ingest_into(self, archive: Archive) -> IngestContext:
        """Return the context of passes into an open archive."""
        return IngestContext(archive.engine, self.config, *self.wiring)

    def open_to_read(self) -> AbstractContextManager[Archive]:
        """Open the archive without the right to write. Raises DatabaseError if there is none."""
        return opening.open_to_read(self.config.database.url)

    def open_to_write(self) -> AbstractContextManager[Archive]:
        """Open the archive. Raises DatabaseError if there is none."""
        return opening.open_to_write(self.config.database.url)

    def open_to_rebuild(self) -> AbstractContextManager[Archive]:
        """Open the archive, whose derived rows may be incomplete. Raises DatabaseError."""
        return opening.open_to_rebuild(self.config.database.url)

    def open_or_create(self) -> AbstractContextManager[Archive]:
        """Open the archive, a new one if need be. Raises DatabaseError."""
        return opening.open_or_create(self.config.database.url, self.config.to_store)

    def open_as_it_is(self) -> AbstractContextManager[Archive]:
        """Open the database, with or without tables, without the right to write."""
        return opening.open_as_it_is(self.config.database.url)

    def open_to_migrate(self) -> AbstractContextManager[Archive]:
        """Open the database, with or without tables."""
        return opening.open_to_migrate(self.config.database.url)


def begin(path: Path | None, level: LogLevel | None, wiring: Wiring | None = None) -> Session:
    """Load the settings of `path` and set up the logs; `level` overrides theirs.

    Raises ConfigError.
    """
    wiring = wiring or Wiring()
    config = loading.load(path)
    if level is not None:
        config = replace(config, log=replace(config.log, level=level))
    log.configure(config.log)
    return Session(config, wiring.clock(), wiring)


def _show_nothing(_done: int, _total: int) -> None:
    """Show no progress."""
