"""The beginning of a command: settings, logs, the time, and how it opens the archive."""

from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from etl import clock
from etl.config import loading
from etl.config.settings import Config
from etl.db import opening
from etl.db.opening import Archive
from etl.telemetry import log


class Session(NamedTuple):
    """The settings of a command and the time at its beginning."""

    config: Config
    now: datetime

    def open_to_read(self) -> AbstractContextManager[Archive]:
        """Open the archive without the right to write. Raises DatabaseError if there is none."""
        return opening.open_to_read(self.config.database.url)

    def open_to_write(self) -> AbstractContextManager[Archive]:
        """Open the archive. Raises DatabaseError if there is none."""
        return opening.open_to_write(self.config.database.url)

    def open_or_create(self) -> AbstractContextManager[Archive]:
        """Open the archive, a new one if need be. Raises DatabaseError."""
        return opening.open_or_create(self.config.database.url)

    def open_as_it_is(self) -> AbstractContextManager[Archive]:
        """Open the database, with or without tables, without the right to write."""
        return opening.open_as_it_is(self.config.database.url)

    def open_to_migrate(self) -> AbstractContextManager[Archive]:
        """Open the database, with or without tables."""
        return opening.open_to_migrate(self.config.database.url)


def begin(path: Path | None) -> Session:
    """Load the settings of `path` and set up the logs. Raises ConfigError."""
    config = loading.load(path)
    log.configure(config.log)
    return Session(config, clock.now())
