"""Read the views as a user does: by plain SQL, without our column types."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text


def prefix(connection: Connection) -> str:
    return "reporting." if connection.dialect.name == "postgresql" else ""


def select_all(connection: Connection, view: str) -> list[dict[str, Any]]:
    """Return what a user gets from a view."""
    rows = connection.execute(text(f"SELECT * FROM {prefix(connection)}{view}")).mappings()
    return [dict(row) for row in rows]


def only(row: Mapping[str, Any], names: str) -> dict[str, Any]:
    """Return some columns of a row."""
    return {name: row[name] for name in names.split()}


def as_read(moment: datetime | None, connection: Connection) -> Any:
    """Return a moment as a query without our types gives it: text on SQLite."""
    if moment is None or connection.dialect.name == "postgresql":
        return moment
    return moment.replace(tzinfo=None).isoformat(" ", "milliseconds")
