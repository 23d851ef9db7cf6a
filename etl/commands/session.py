"""What most commands begin with: settings, logs and the database."""

from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine

from etl import config, database, log


class Session(NamedTuple):
    """The settings, and the database they name (not connected yet)."""

    config: config.Config
    engine: Engine


def open_session(path: Path | None) -> Session:
    """Load the settings and set up the logs. Raises ConfigError or DatabaseError."""
    settings = config.load(path)
    log.configure(settings.log)
    return Session(settings, database.connect(settings.database.url))
