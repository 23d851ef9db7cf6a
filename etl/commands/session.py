"""What most commands begin with: settings, logs and the database."""

from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine

from etl import config, database, log


class Session(NamedTuple):
    """The settings, and the database they name (not connected yet)."""

    engine: Engine
    config: config.Config


def open_session(path: Path | None) -> Session:
    """Load the settings and set up the logs. Raises ConfigError or DatabaseError."""
    settings = config.load(path)
    log.configure(settings.log)
    return Session(database.connect(settings.database.url), settings)
