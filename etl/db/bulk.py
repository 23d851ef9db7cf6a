"""Write many rows at once, each database by its fastest way: long statements or COPY.

Rows are tuples in the order of the table's columns, with JSON as text and booleans as bool.
They go past the columns' types, whose rules for times are therefore applied here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import date
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sqlalchemy import JSON, Column, Connection, Table
from sqlalchemy.exc import DBAPIError

from etl.db.schema import Day, Timestamp, day_to_text, to_milliseconds, to_text

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

Row = tuple[Any, ...]
HEIGHTS = (64, 16, 4, 1)
"""How many rows one statement of SQLite's has. Few sizes, since it keeps what it has compiled."""


def upsert_into(connection: Connection, table: Table) -> "sqlite.Insert | postgresql.Insert":
    """Return the database's own INSERT, which knows ON CONFLICT."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql  # noqa: PLC0415  only where it is in use

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite  # noqa: PLC0415

    return sqlite.insert(table)


def insert(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Add `rows`. Raises sqlalchemy's IntegrityError where one is there already."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        _copy(connection, table, rows)
    else:
        _values(connection, "INSERT INTO", table, rows)


def add_missing(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Add those of `rows` whose primary keys are not there."""
    if rows:
        names = [column.name for column in table.columns]
        connection.execute(
            upsert_into(connection, table).on_conflict_do_nothing(),
            [dict(zip(names, row, strict=True)) for row in rows],
        )


def replace(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Add `rows`, each instead of the one with its primary key if there is one."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        places = [list(table.columns).index(column) for column in table.primary_key]
        delete(connection, table, [tuple(row[place] for place in places) for row in rows])
        _copy(connection, table, rows)
    else:
        _values(connection, "INSERT OR REPLACE INTO", table, rows)


def _values(connection: Connection, verb: str, table: Table, rows: Sequence[Row]) -> None:
    statement = f"{verb} {table.name} ({_columns(table)}) VALUES {{values}}"
    _many_at_once(connection, statement, storable(connection, table.columns, rows))


def _columns(table: Table) -> str:
    return ", ".join(f'"{column.name}"' for column in table.columns)


def read(
    connection: Connection, table: Table, keys: Sequence[str], column: str = "run_id"
) -> list[tuple[Any, ...]]:
    """Return the rows with one of `keys` in `column`, as `storable` has them and in key order."""
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
    """Return the values of the columns `names`, by primary key, of those `keys` that are there.

    The values are as `storable` has them, the keys as they were given.
    """
    verb = f"SELECT {_key_and(table, names)} FROM {table.name}"  # noqa: S608  our names
    return _by_key(connection, verb, table, keys)


def take(
    connection: Connection, table: Table, names: Sequence[str], keys: Sequence[Row]
) -> dict[Row, Row]:
    """Delete rows by primary key, and return what `find` would have returned of them."""
    returning = f" RETURNING {_key_and(table, names)}"
    return _by_key(connection, f"DELETE FROM {table.name}", table, keys, returning)  # noqa: S608  our names


def _key_and(table: Table, names: Sequence[str]) -> str:
    keys = [column.name for column in table.primary_key]
    return ", ".join(f'"{name}"' for name in [*keys, *names])


def _by_key(
    connection: Connection, verb: str, table: Table, keys: Sequence[Row], also: str = ""
) -> dict[Row, Row]:
    """Run `verb` for rows, and return by their keys, as they were given, the rest of each row."""
    if not keys:
        return {}
    columns = list(table.primary_key)
    given = dict(zip(storable(connection, columns, keys), keys, strict=True))
    rows = _with_keys(connection, verb, table, list(given), also)
    return {given[row[: len(columns)]]: row[len(columns) :] for row in rows}


def delete(connection: Connection, table: Table, keys: Sequence[Row]) -> None:
    """Delete rows by primary key."""
    if keys:
        storable_keys = storable(connection, list(table.primary_key), keys)
        _with_keys(connection, f"DELETE FROM {table.name}", table, storable_keys)  # noqa: S608  our names


def _with_keys(
    connection: Connection, verb: str, table: Table, keys: Sequence[Row], also: str = ""
) -> list[Row]:
    """Run `verb` for the rows with these primary keys, and return the rows that it gives.

    `also` is SQL that stands behind the keys.
    """
    if connection.dialect.name == "sqlite":
        # With `IN (VALUES ...)` it would read whatever has the first column of a key, or all rows.
        is_it = " AND ".join(f"{column.name} = ?" for column in table.primary_key)
        statement = f"{verb} WHERE {{values}}{also}"
        return _many_at_once(connection, statement, keys, _Each(f"({is_it})", " OR "))
    names = ", ".join(column.name for column in table.primary_key)
    given = ", ".join(f"%s::{_sql_type(connection, column)}[]" for column in table.primary_key)
    result = connection.exec_driver_sql(
        f"{verb} WHERE ({names}) IN (SELECT * FROM unnest({given})){also}",  # noqa: S608  our names
        tuple(map(list, zip(*keys, strict=True))),
    )
    return [tuple(row) for row in result] if result.returns_rows else []


def update(
    connection: Connection,
    table: Table,
    names: Sequence[str],
    rows: Sequence[Row],
    also: str = "",
) -> None:
    """Set the columns `names` by primary key; a row has their values, then those of the key.

    `also` is SQL that sets further columns, the same in each row.
    """
    if not rows:
        return
    columns = [table.columns[name] for name in names] + list(table.primary_key)
    given = {column.name: f"given.column{place}" for place, column in enumerate(columns, start=1)}
    changes = ", ".join([*(f'"{name}" = {given[name]}' for name in names), *filter(None, [also])])
    keys = " AND ".join(f"{table.name}.{key.name} = {given[key.name]}" for key in table.primary_key)
    storable_rows = storable(connection, columns, rows)
    if connection.dialect.name == "postgresql":
        source = ", ".join(f"%s::{_sql_type(connection, column)}[]" for column in columns)
        aliases = ", ".join(f"column{place}" for place in range(1, len(columns) + 1))
        connection.exec_driver_sql(
            f"UPDATE {table.name} SET {changes} FROM unnest({source}) AS given ({aliases})"  # noqa: S608  our names
            f" WHERE {keys}",
            tuple(map(list, zip(*storable_rows, strict=True))),
        )
        return
    statement = f"UPDATE {table.name} SET {changes} FROM (VALUES {{values}}) AS given WHERE {keys}"  # noqa: S608  our names
    _many_at_once(connection, statement, storable_rows)


def _sql_type(connection: Connection, column: Column[Any]) -> str:
    name: str = column.type.compile(dialect=connection.dialect)
    return name.partition(" COLLATE ")[0]


class _Each(NamedTuple):
    """How a statement spells one row, with a mark for each value, and what stands between two."""

    spelt: str
    between: str = ", "


def _many_at_once(
    connection: Connection, statement: str, rows: Sequence[Row], each: _Each | None = None
) -> list[Row]:
    """Run `statement` with the values of as many rows as it may have, again and again.

    Returns the rows that it gives.

    SQLite works outside of Python's lock: with a statement for each row, the writing thread
    would have to wait for its turn after each of them.
    """
    each = each or _Each(f"({', '.join('?' * len(rows[0]))})")
    start = 0
    found: list[Row] = []
    with _cursor(connection, statement) as cursor:
        for height in HEIGHTS:
            text = statement.format(values=each.between.join([each.spelt] * height))
            while len(rows) - start >= height:
                cursor.execute(text, tuple(chain.from_iterable(rows[start : start + height])))
                found += cursor
                start += height
    return found


def _copy(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    statement = f"COPY {table.name} ({_columns(table)}) FROM STDIN"
    storable_rows = storable(connection, table.columns, rows)
    with _cursor(connection, statement) as cursor, cursor.copy(statement) as copy:
        for row in storable_rows:
            copy.write_row(row)


@contextmanager
def _cursor(connection: Connection, statement: str) -> Iterator[Any]:
    """Give a cursor of the driver's own; what it raises comes as sqlalchemy's all the same."""
    driver: Any = connection.connection.driver_connection
    driver_error = connection.dialect.loaded_dbapi.Error
    try:
        with closing(driver.cursor()) as cursor:
            yield cursor
    except driver_error as error:
        known = DBAPIError.instance(statement, None, error, driver_error)
        raise cast("DBAPIError", known) from error


def storable(
    connection: Connection, columns: Iterable[Column[Any]], rows: Sequence[Row]
) -> list[Row]:
    """Return `rows`, which have values of `columns`, as the driver takes and gives them.

    They are as they were, but for times.

    Raises:
        ValueError: a time is naive.
    """
    ways = _ON_POSTGRESQL if connection.dialect.name == "postgresql" else _ON_SQLITE
    way_of = [ways.get(type(column.type)) for column in columns]
    if not rows or not any(way_of):
        return list(rows)
    # Column by column: to look at each value of each row takes longer than all the rest.
    values = [
        [way(value) if isinstance(value, date) else value for value in column] if way else column
        for way, column in zip(way_of, zip(*rows, strict=True), strict=True)
    ]
    return list(zip(*values, strict=True))


_ON_POSTGRESQL: Mapping[type, Callable[[Any], Any]] = {Timestamp: to_milliseconds}
_ON_SQLITE: Mapping[type, Callable[[Any], Any]] = {
    Timestamp: lru_cache(4096)(to_text),  # the same few times stand in all rows of a batch
    Day: day_to_text,
}
