"""Answer queries by an ODBC driver. Its parent first sends the connection string."""

from collections.abc import Sequence
from datetime import date, datetime, time
from typing import Any

import pyodbc

from tests.support.line_protocol import Answer, answer_queries, read_line

LIST_VIEWS = "views"


def main() -> None:
    """Connect, and answer."""
    connection = pyodbc.connect(read_line(), autocommit=True)

    def run(query: str, values: Sequence[Any]) -> Answer:
        cursor = connection.cursor()
        if query == LIST_VIEWS:
            views = [[view.table_name] for view in cursor.tables(tableType="VIEW")]
            return Answer({"view": "str"}, views)
        cursor.execute(query, *map(bound, values))
        types = {name: kind.__name__ for name, kind, *_ in cursor.description or ()}
        return Answer(types, [[sent(value) for value in row] for row in cursor])

    answer_queries(run, pyodbc.Error)


def bound(value: Any) -> Any:
    """Return a value as ODBC binds it."""
    match value:
        case {"date": text}:
            return date.fromisoformat(text)
        case {"timestamp": text}:
            return datetime.fromisoformat(text)
    return value


def sent(value: Any) -> Any:
    """Return a value as JSON has it; a day as its midnight, a decimal number as text."""
    if isinstance(value, date):
        moment = value if isinstance(value, datetime) else datetime.combine(value, time())
        return moment.isoformat()
    return value if isinstance(value, bool | int | float | str | None) else str(value)


if __name__ == "__main__":
    main()
