"""Write many rows at once, each database by its fastest way: executemany or COPY.

Rows are tuples in the order of the table's columns, with JSON as text and booleans as bool.
They go past the columns' types, whose rules for times are therefore applied here.
"""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from etl.schema import Day, Timestamp, day_to_text, to_milliseconds, to_text

Row = Sequence[Any]


def upsert_into(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return the database's own INSERT, which knows ON CONFLICT."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def insert(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Add `rows`. Raises sqlalchemy's IntegrityError where one is there already."""
    if not rows:
        return
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    if connection.dialect.name == "postgresql":
        _copy(connection, f"COPY {table.name} ({columns}) FROM STDIN", _in_utc(table, rows))
        return
    marks = ", ".join("?" * len(table.columns))
    statement = f"INSERT INTO {table.name} ({columns}) VALUES ({marks})"  # noqa: S608  our names
    connection.exec_driver_sql(statement, _as_text(table, rows))


def update(connection: Connection, table: Table, names: Sequence[str], rows: Sequence[Row]) -> None:
    """Set the columns `names` by primary key; a row has their values, then those of the key."""
    if not rows:
        return
    is_postgresql = connection.dialect.name == "postgresql"
    mark = "%s" if is_postgresql else "?"
    changes = ", ".join(f'"{name}" = {mark}' for name in names)
    keys = " AND ".join(f"{column.name} = {mark}" for column in table.primary_key)
    statement = f"UPDATE {table.name} SET {changes} WHERE {keys}"  # noqa: S608  our names
    values = _in_utc(table, rows) if is_postgresql else _as_text(table, rows)
    connection.exec_driver_sql(statement, values)


def _copy(connection: Connection, statement: str, rows: Sequence[Row]) -> None:
    """Send `rows` past sqlalchemy, and raise what the driver raises as sqlalchemy would have."""
    driver: Any = connection.connection.driver_connection
    errors = connection.dialect.loaded_dbapi.Error
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
    except errors as error:
        raise DBAPIError.instance(statement, None, error, errors) from error


def _in_utc(table: Table, rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Return `rows` as PostgreSQL takes them: as they are, but for times of day."""
    return _converted(table, rows, _to_utc_if_time)


def _as_text(table: Table, rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Return `rows` as SQLite takes them: as they are, but for times and days."""
    return _converted(table, rows, _to_text_if_time)


def _converted(table: Table, rows: Sequence[Row], convert: Convert) -> list[tuple[Any, ...]]:
    if not any(isinstance(column.type, Timestamp | Day) for column in table.columns):
        return [tuple(row) for row in rows]
    return [tuple(map(convert, row)) for row in rows]


def _to_utc_if_time(value: Any) -> Any:
    return to_milliseconds(value) if isinstance(value, datetime) else value


def _to_text_if_time(value: Any) -> Any:
    if isinstance(value, datetime):
        return to_text(value)
    return day_to_text(value) if isinstance(value, date) else value
