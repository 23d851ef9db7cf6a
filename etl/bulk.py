"""Write many rows at once, each database by its fastest way: executemany or COPY.

Rows are tuples in the order of the table's columns, with JSON as text and booleans as bool.
They go past the columns' types, whose rules for times are therefore applied here.
"""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, cast

from sqlalchemy import JSON, Connection, Table
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
    storable_rows = storable(connection, table, rows)
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    if connection.dialect.name == "postgresql":
        _copy(connection, f"COPY {table.name} ({columns}) FROM STDIN", storable_rows)
        return
    marks = ", ".join("?" * len(table.columns))
    statement = f"INSERT INTO {table.name} ({columns}) VALUES ({marks})"  # noqa: S608  our names
    connection.exec_driver_sql(statement, storable_rows)


def read(connection: Connection, table: Table, run_ids: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the rows of `run_ids` as `storable` would have them, by the table's key."""
    is_postgresql = connection.dialect.name == "postgresql"
    columns = ", ".join(
        f'"{column.name}"::text'
        if is_postgresql and isinstance(column.type, JSON)
        else f'"{column.name}"'
        for column in table.columns
    )
    marks = ", ".join(["%s" if is_postgresql else "?"] * len(run_ids)) or "NULL"
    keys = ", ".join(column.name for column in table.primary_key)
    statement = f"SELECT {columns} FROM {table.name} WHERE run_id IN ({marks}) ORDER BY {keys}"  # noqa: S608  our names
    return [tuple(row) for row in connection.exec_driver_sql(statement, tuple(run_ids))]


def update(connection: Connection, table: Table, names: Sequence[str], rows: Sequence[Row]) -> None:
    """Set the columns `names` by primary key; a row has their values, then those of the key."""
    if not rows:
        return
    mark = "%s" if connection.dialect.name == "postgresql" else "?"
    changes = ", ".join(f'"{name}" = {mark}' for name in names)
    keys = " AND ".join(f"{column.name} = {mark}" for column in table.primary_key)
    statement = f"UPDATE {table.name} SET {changes} WHERE {keys}"  # noqa: S608  our names
    connection.exec_driver_sql(statement, storable(connection, table, rows))


def _copy(connection: Connection, statement: str, rows: Sequence[Row]) -> None:
    """Send `rows` past sqlalchemy; what the driver raises comes as sqlalchemy's all the same."""
    driver: Any = connection.connection.driver_connection
    driver_error = connection.dialect.loaded_dbapi.Error
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
    except driver_error as error:
        known = DBAPIError.instance(statement, None, error, driver_error)
        raise cast("DBAPIError", known) from error


def storable(connection: Connection, table: Table, rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Return `rows` as the driver takes and gives them: as they are, but for times.

    Raises:
        ValueError: a time is naive.
    """
    if not any(isinstance(column.type, Timestamp | Day) for column in table.columns):
        return [tuple(row) for row in rows]
    prepared = _in_utc if connection.dialect.name == "postgresql" else _as_text
    return [tuple(map(prepared, row)) for row in rows]


def _in_utc(value: Any) -> Any:
    return to_milliseconds(value) if isinstance(value, datetime) else value


def _as_text(value: Any) -> Any:
    if isinstance(value, datetime):
        return to_text(value)
    return day_to_text(value) if isinstance(value, date) else value
