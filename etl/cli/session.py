"""What most commands begin with: settings, logs and the database."""

from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine

from etl.config import loading
from etl.config.settings import Config
from etl.db import database
from etl.telemetry import log


class Session(NamedTuple):
    """The settings, and the database they name (not connected yet)."""

    engine: Engine
    config: Config


def open_session(path: Path | None) -> Session:
    """Load the settings and set up the logs. Raises ConfigError or DatabaseError."""
    settings = loading.load(path)
    log.configure(settings.log)
    return Session(database.connect(settings.database.url), settings)
