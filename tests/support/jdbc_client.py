"""Answer queries by a JDBC driver, in the time zone of TZ.

Its parent first sends the URL and the properties of the connection. Drivers are those of Debian.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jpype

from tests.support.line_protocol import Answer, answer_queries, read_line

JARS = ("/usr/share/java/postgresql.jar", "/usr/share/java/sqlite-jdbc.jar")
LIBRARIES = (Path("/usr/lib/jni"), *Path("/usr/lib").glob("*/jni"))
LIST_VIEWS = "views"


def main() -> None:
    """Start Java, connect, and answer."""
    jpype.startJVM(
        f"-Duser.timezone={os.environ['TZ']}",
        f"-Djava.library.path={':'.join(map(str, LIBRARIES))}",
        classpath=[jar for jar in JARS if Path(jar).is_file()],
        convertStrings=True,
    )
    url, properties = read_line()
    given = jpype.JClass("java.util.Properties")()
    given.putAll(properties)
    connection = jpype.JClass("java.sql.DriverManager").getConnection(url, given)

    def run(query: str, values: Sequence[Any]) -> Answer:
        if query == LIST_VIEWS:
            views = connection.getMetaData().getTables(None, None, "%", ["VIEW"])
            return Answer({"view": "VARCHAR"}, [row[2:3] for row in rows_of(views)])
        statement = connection.prepareStatement(query)
        for place, value in enumerate(values, start=1):
            bind(statement, place, value)
        results = statement.executeQuery()
        return Answer(types_of(results.getMetaData()), rows_of(results))

    answer_queries(run, jpype.JClass("java.sql.SQLException"))


def bind(statement: Any, place: int, value: Any) -> None:
    """Bind a value as Java programs do."""
    match value:
        case {"date": text}:
            statement.setDate(place, jpype.JClass("java.sql.Date").valueOf(text))
        case {"timestamp": text}:
            statement.setTimestamp(place, jpype.JClass("java.sql.Timestamp").valueOf(text))
        case _:
            statement.setString(place, value)


def types_of(columns: Any) -> dict[str, str]:
    """Return the JDBC type of each column."""
    by_code = jpype.JClass("java.sql.JDBCType")
    return {
        columns.getColumnLabel(place): by_code.valueOf(columns.getColumnType(place)).getName()
        for place in range(1, columns.getColumnCount() + 1)
    }


def rows_of(results: Any) -> list[list[Any]]:
    """Return the rows; times and days as text of the computer's clock."""
    types = list(types_of(results.getMetaData()).values())
    rows = []
    while results.next():
        rows.append([value_of(results, place, kind) for place, kind in enumerate(types, start=1)])
    return rows


def value_of(results: Any, place: int, kind: str) -> Any:
    """Return a value as JSON has it, by the getter for its type."""
    if kind in {"DATE", "TIMESTAMP"}:
        moment = results.getTimestamp(place)
        return moment and moment.toLocalDateTime().toString()
    if kind in {"BIGINT", "INTEGER"}:
        value: Any = int(results.getLong(place))
    elif kind == "DOUBLE":
        value = float(results.getDouble(place))
    elif kind in {"BIT", "BOOLEAN"}:
        value = bool(results.getBoolean(place))
    else:
        value = results.getString(place)
    return None if results.wasNull() else value


if __name__ == "__main__":
    main()
