"""Read and write many rows at once, by the fastest way of each database: long statements or COPY.

Rows are tuples in the order of the table's columns, with JSON as text and booleans as bool. They
bypass the columns' types, so the rules for times are applied here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import date
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sqlalchemy import JSON, Column, Connection, Table
from sqlalchemy.exc import DBAPIError

from etl.answers.rows import Row
from etl.db.schema import Day, Timestamp, day_to_text, to_milliseconds, to_text

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

HEIGHTS = (64, 16, 4, 1)
"""Rows per statement on SQLite. Few sizes, since compiled statements are cached."""


def upsert_into(connection: Connection, table: Table) -> "sqlite.Insert | postgresql.Insert":
    """Return the database's own INSERT, which supports ON CONFLICT."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql  # noqa: PLC0415  loads slowly, and only one of the two is needed

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite  # noqa: PLC0415

    return sqlite.insert(table)


def insert(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert `rows`. Raises sqlalchemy's IntegrityError if a key exists."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        _copy_rows(connection, table, rows)
    else:
        _insert_values(connection, "INSERT INTO", table, rows)


def insert_missing(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert those of `rows` whose primary keys do not exist."""
    if rows:
        names = [column.name for column in table.columns]
        connection.execute(
            upsert_into(connection, table).on_conflict_do_nothing(),
            [dict(zip(names, row, strict=True)) for row in rows],
        )


def replace(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert `rows`, replacing those with the same primary keys."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        places = [list(table.columns).index(column) for column in table.primary_key]
        delete(connection, table, [tuple(row[place] for place in places) for row in rows])
        _copy_rows(connection, table, rows)
    else:
        _insert_values(connection, "INSERT OR REPLACE INTO", table, rows)


def _insert_values(connection: Connection, verb: str, table: Table, rows: Sequence[Row]) -> None:
    statement = f"{verb} {table.name} ({_list_columns(table)}) VALUES {{values}}"
    _run_many(connection, statement, to_driver_values(connection, table.columns, rows))


def _list_columns(table: Table) -> str:
    return ", ".join(f'"{column.name}"' for column in table.columns)


def read(
    connection: Connection, table: Table, keys: Sequence[str], column: str = "run_id"
) -> list[tuple[Any, ...]]:
    """Return the rows with one of `keys` in `column`, as raw driver values, in key order."""
    is_postgresql = connection.dialect.name == "postgresql"
    columns = ", ".join(
        f'"{column.name}"::text'
        if is_postgresql and isinstance(column.type, JSON)
        else f'"{column.name}"'
        for column in table.columns
    )
    marks = ", ".join(["%s" if is_postgresql else "?"] * len(keys)) or "NULL"
    order = ", ".join(column.name for column in table.primary_key)
    statement = f"SELECT {columns} FROM {table.name} WHERE {column} IN ({marks}) ORDER BY {order}"  # noqa: S608  our names
    return [tuple(row) for row in connection.exec_driver_sql(statement, tuple(keys))]


def find(
    connection: Connection, table: Table, names: Sequence[str], keys: Sequence[Row]
) -> dict[Row, Row]:
    """Return the columns `names` of those `keys` that exist, by primary key.

    The columns are raw driver values, the keys are those given.
    """
    verb = f"SELECT {_list_key_and(table, names)} FROM {table.name}"  # noqa: S608  our names
    return _run_by_key(connection, verb, table, keys)


def take(
    connection: Connection, table: Table, names: Sequence[str], keys: Sequence[Row]
) -> dict[Row, Row]:
    """Delete rows by primary key, and return them as `find` does."""
    returning = f" RETURNING {_list_key_and(table, names)}"
    return _run_by_key(connection, f"DELETE FROM {table.name}", table, keys, returning)  # noqa: S608  our names


def _list_key_and(table: Table, names: Sequence[str]) -> str:
    keys = [column.name for column in table.primary_key]
    return ", ".join(f'"{name}"' for name in [*keys, *names])


def _run_by_key(
    connection: Connection, verb: str, table: Table, keys: Sequence[Row], suffix: str = ""
) -> dict[Row, Row]:
    """Run `verb` for the rows with these keys, and return the other columns by the given keys."""
    if not keys:
        return {}
    columns = list(table.primary_key)
    given = dict(zip(to_driver_values(connection, columns, keys), keys, strict=True))
    rows = _run_with_keys(connection, verb, table, list(given), suffix)
    return {given[row[: len(columns)]]: row[len(columns) :] for row in rows}


def delete(connection: Connection, table: Table, keys: Sequence[Row]) -> None:
    """Delete rows by primary key."""
    if keys:
        driver_keys = to_driver_values(connection, list(table.primary_key), keys)
        _run_with_keys(connection, f"DELETE FROM {table.name}", table, driver_keys)  # noqa: S608  our names


def _run_with_keys(
    connection: Connection, verb: str, table: Table, keys: Sequence[Row], suffix: str = ""
) -> list[Row]:
    """Run `verb` for the rows with these primary keys, and return its result rows.

    `suffix` is SQL that follows the keys.
    """
    if connection.dialect.name == "sqlite":
        # `IN (VALUES ...)` would use only the first column of the key's index, or none.
        is_it = " AND ".join(f"{column.name} = ?" for column in table.primary_key)
        statement = f"{verb} WHERE {{values}}{suffix}"
        return _run_many(connection, statement, keys, _RowTemplate(f"({is_it})", " OR "))
    names = ", ".join(column.name for column in table.primary_key)
    given = ", ".join(f"%s::{_sql_type(connection, column)}[]" for column in table.primary_key)
    result = connection.exec_driver_sql(
        f"{verb} WHERE ({names}) IN (SELECT * FROM unnest({given})){suffix}",  # noqa: S608  our names
        tuple(map(list, zip(*keys, strict=True))),
    )
    return [tuple(row) for row in result] if result.returns_rows else []


def update(
    connection: Connection,
    table: Table,
    names: Sequence[str],
    rows: Sequence[Row],
    assignments: str = "",
) -> None:
    """Set the columns `names` by primary key; a row has their values, then those of the key.

    `assignments` is SQL that sets further columns, the same in each row.
    """
    if not rows:
        return
    columns = [table.columns[name] for name in names] + list(table.primary_key)
    given = {column.name: f"given.column{place}" for place, column in enumerate(columns, start=1)}
    changed = [f'"{name}" = {given[name]}' for name in names]
    changes = ", ".join([*changed, assignments] if assignments else changed)
    keys = " AND ".join(f"{table.name}.{key.name} = {given[key.name]}" for key in table.primary_key)
    driver_rows = to_driver_values(connection, columns, rows)
    if connection.dialect.name == "postgresql":
        source = ", ".join(f"%s::{_sql_type(connection, column)}[]" for column in columns)
        aliases = ", ".join(f"column{place}" for place in range(1, len(columns) + 1))
        connection.exec_driver_sql(
            f"UPDATE {table.name} SET {changes} FROM unnest({source}) AS given ({aliases})"  # noqa: S608  our names
            f" WHERE {keys}",
            tuple(map(list, zip(*driver_rows, strict=True))),
        )
        return
    statement = f"UPDATE {table.name} SET {changes} FROM (VALUES {{values}}) AS given WHERE {keys}"  # noqa: S608  our names
    _run_many(connection, statement, driver_rows)


def _sql_type(connection: Connection, column: Column[Any]) -> str:
    name: str = column.type.compile(dialect=connection.dialect)
    return name.partition(" COLLATE ")[0]


class _RowTemplate(NamedTuple):
    """The SQL of one row, with a mark for each value, and the separator between rows."""

    row: str
    separator: str = ", "


def _run_many(
    connection: Connection, statement: str, rows: Sequence[Row], each: _RowTemplate | None = None
) -> list[Row]:
    """Run `statement` for `rows`, as many at once as `HEIGHTS` allows; return its result rows.

    SQLite runs outside of Python's interpreter lock: with a statement for each row, the writing
    thread would have to wait for that lock after each of them.
    """
    each = each or _RowTemplate(f"({', '.join('?' * len(rows[0]))})")
    start = 0
    results: list[Row] = []
    with _open_cursor(connection, statement) as cursor:
        for height in HEIGHTS:
            text = statement.format(values=each.separator.join([each.row] * height))
            while len(rows) - start >= height:
                cursor.execute(text, tuple(chain.from_iterable(rows[start : start + height])))
                results += cursor
                start += height
    return results


def _copy_rows(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    statement = f"COPY {table.name} ({_list_columns(table)}) FROM STDIN"
    driver_rows = to_driver_values(connection, table.columns, rows)
    with _open_cursor(connection, statement) as cursor, cursor.copy(statement) as copy:
        for row in driver_rows:
            copy.write_row(row)


@contextmanager
def _open_cursor(connection: Connection, statement: str) -> Iterator[Any]:
    """Open a cursor of the driver; its errors are raised as sqlalchemy's."""
    driver: Any = connection.connection.driver_connection
    driver_error = connection.dialect.loaded_dbapi.Error
    try:
        with closing(driver.cursor()) as cursor:
            yield cursor
    except driver_error as error:
        translated = DBAPIError.instance(statement, None, error, driver_error)
        raise cast("DBAPIError", translated) from error


def to_driver_values(
    connection: Connection, columns: Iterable[Column[Any]], rows: Sequence[Row]
) -> list[Row]:
    """Convert the times in `rows`, whose values belong to `columns`, to raw driver values.

    Raises:
        ValueError: a time is naive.
    """
    converters = _ON_POSTGRESQL if connection.dialect.name == "postgresql" else _ON_SQLITE
    per_column = [converters.get(type(column.type)) for column in columns]
    if not rows or not any(per_column):
        return list(rows)
    # Column by column: checking each value of each row would take longer than all the rest.
    values = [
        [convert(value) if isinstance(value, date) else value for value in column]
        if convert
        else column
        for convert, column in zip(per_column, zip(*rows, strict=True), strict=True)
    ]
    return list(zip(*values, strict=True))


_ON_POSTGRESQL: Mapping[type, Callable[[Any], Any]] = {Timestamp: to_milliseconds}
_ON_SQLITE: Mapping[type, Callable[[Any], Any]] = {
    Timestamp: lru_cache(4096)(to_text),  # all rows of a batch have the same few times
    Day: day_to_text,
}
