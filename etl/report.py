"""Run the report queries in `reports/`: one .sql file each, the same on every database."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from etl.schema import Timestamp

FOLDER = Path(__file__).parent / "reports"
# A computed column has no type on SQLite, so those that hold times are named here.
TIMES = {"ended_at": Timestamp}


class Report(NamedTuple):
    """A finished report: what its query is called, its columns, and its rows."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def run(connection: Connection, name: str, parameters: Mapping[str, Any]) -> Report:
    """Return the report called `name`; `parameters` are those that its file names."""
    query = text((FOLDER / f"{name}.sql").read_text(encoding="utf-8")).columns(**TIMES)
    result = connection.execute(query, dict(parameters))
    return Report(name, list(result.keys()), [tuple(row) for row in result])
