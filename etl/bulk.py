"""Write many rows at once, each database by its fastest way: executemany or COPY.

Rows are tuples in the order of the table's columns, with JSON as text and booleans as bool.
"""

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

from etl.schema import Day, Timestamp, day_to_text, to_text

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
        _copy(connection, f"COPY {table.name} ({columns}) FROM STDIN", rows)
        return
    marks = ", ".join("?" * len(table.columns))
    statement = f"INSERT INTO {table.name} ({columns}) VALUES ({marks})"  # noqa: S608  our names
    connection.exec_driver_sql(statement, _storable(table, rows))


def update(connection: Connection, table: Table, names: Sequence[str], rows: Sequence[Row]) -> None:
    """Set the columns `names` by primary key; a row has their values, then those of the key."""
    if not rows:
        return
    is_postgresql = connection.dialect.name == "postgresql"
    mark = "%s" if is_postgresql else "?"
    changes = ", ".join(f'"{name}" = {mark}' for name in names)
    keys = " AND ".join(f"{column.name} = {mark}" for column in table.primary_key)
    statement = f"UPDATE {table.name} SET {changes} WHERE {keys}"  # noqa: S608  our names
    values = [tuple(row) for row in rows] if is_postgresql else _storable(table, rows)
    connection.exec_driver_sql(statement, values)


def _copy(connection: Connection, statement: str, rows: Iterable[Row]) -> None:
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


def _storable(table: Table, rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Return `rows` as SQLite takes them: as they are, but for times."""
    if not any(isinstance(column.type, Timestamp | Day) for column in table.columns):
        return [tuple(row) for row in rows]
    return [tuple(map(_as_text_if_time, row)) for row in rows]


def _as_text_if_time(value: Any) -> Any:
    if isinstance(value, datetime):
        return to_text(value)
    return day_to_text(value) if isinstance(value, date) else value
