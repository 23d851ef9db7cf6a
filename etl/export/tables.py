"""Write an archive into a folder for other programs: a file for each view and each table.

Views have the figures of reports; tables have the content of API answers. Payloads, tokens and the
ledger are not exported.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    JSON,
    ColumnClause,
    Connection,
    Date,
    DateTime,
    Engine,
    FromClause,
    Row,
    column,
    inspect,
    select,
    table,
)
from sqlalchemy.types import TypeEngine

from etl.db import schema
from etl.db.archive_settings import read_reporting_schema
from etl.db.database import require_archive, snapshot
from etl.errors import UsageError
from etl.export.own_files import is_export_of
from etl.files import ForeignFileError, write_whole
from etl.reports import forms

VIEWS = {
    "archive_health": ("pass_id", "source"),
    "archive_settings": ("name",),
    "calendar": ("day",),
    "daily_trend": ("plan_id", "day"),
    "data_dictionary": ("object_name", "column_name"),
    "environment_results": ("run_id", "position"),
    "environment_sets": ("environment_signature",),
    "failed_runs": ("run_id",),
    "plans": ("plan_id",),
    "resolutions": ("run_id", "revision", "position"),
    "run_durations": ("variant_id",),
    "run_labels": ("run_id", "name"),
    "run_results": ("run_id",),
    "run_revisions": ("run_id", "revision"),
    "schema_drift": ("path", "json_type"),
    "series_health": ("variant_id", "series_id"),
    "status_history": ("run_id", "revision", "position"),
    "test_results": ("run_id", "position"),
    "unresolved_backlog": ("run_id",),
    "value_warnings": ("run_id", "revision", "path"),
    "weekly_trend": ("plan_id", "week_starts_on"),
}
"""The views that are exported, with the columns that tell a row from all others."""
TABLES = (
    schema.runs,
    schema.environments,
    schema.tests,
    schema.counts,
    schema.labels,
    schema.revisions,
    schema.test_revisions,
)
ROWS_AT_ONCE = 5000
"""The number of rows in memory."""


class ExportTable(NamedTuple):
    """A view or table, and the names of the columns that its rows are ordered by."""

    name: str
    rows: FromClause
    keys: Sequence[str]


Parts = Iterator[Sequence[Row[Any]]]
Write = Callable[[Path, FromClause, Parts], int]
"""Writes a file of rows that have these columns, part by part; returns how many there are."""


class FileForm(NamedTuple):
    """A form of files: the end of their names, how they are written, and known as ours.

    At most `rows_at_once` rows are in memory.
    """

    suffix: str
    write: Write
    is_export_of: Callable[[Collection[str], Path], bool] = is_export_of
    rows_at_once: int = ROWS_AT_ONCE


def write(engine: Engine, folder: Path, form: FileForm) -> Mapping[Path, int]:
    """Write one state of the archive into `folder`: all files, or none.

    Earlier exports are replaced.

    Returns:
        The files, each named after its view or table, with the number of their rows.

    Raises:
        UsageError: the folder has a file of one of these names that is not an earlier export.
        DatabaseError: the archive is missing, or cannot be read.
        OSError: the folder or a file cannot be written.
    """
    require_archive(engine)
    folder.mkdir(parents=True, exist_ok=True)
    with snapshot(engine) as connection:
        exported = _list_exported(connection)
        targets = {folder / f"{each.name}.{form.suffix}": each for each in exported}
        checks = {
            target: partial(form.is_export_of, each.rows.c.keys())
            for target, each in targets.items()
        }
        try:
            with write_whole(checks) as drafts:
                counts = [
                    form.write(draft, each.rows, _read(connection, each, form.rows_at_once))
                    for draft, each in zip(drafts, exported, strict=True)
                ]
        except ForeignFileError as error:
            raise UsageError(str(error)) from None
    return dict(zip(targets, counts, strict=True))


def _list_exported(connection: Connection) -> list[ExportTable]:
    views = [ExportTable(name, _view(connection, name), keys) for name, keys in VIEWS.items()]
    return views + [
        ExportTable(each.name, each, each.primary_key.columns.keys()) for each in TABLES
    ]


def _view(connection: Connection, name: str) -> FromClause:
    where = read_reporting_schema(connection)
    found = inspect(connection).get_columns(name, where)
    return table(name, *[_typed(each["name"], each["type"]) for each in found], schema=where)


def _typed(name: str, kind: TypeEngine[Any]) -> ColumnClause[Any]:
    """Return a column of a view; SQLite declares days and moments alike."""
    if isinstance(kind, Date | DateTime):
        return column(name, schema.Day() if name in schema.DAYS else schema.Timestamp())
    return column(name, kind)


def _read(connection: Connection, exported: ExportTable, rows_at_once: int) -> Parts:
    rows = exported.rows
    ordered = select(rows).order_by(*[rows.c[key] for key in exported.keys])
    with connection.execute(ordered.execution_options(yield_per=rows_at_once)) as result:
        yield from result.partitions()


def write_csv(file: Path, rows: FromClause, parts: Parts, *, raw: bool) -> int:
    """Write CSV as reports have it; `raw` leaves texts as the API sent them."""
    cells = (row for part in parts for row in with_json_as_text(rows, part))
    lines = forms.csv_lines(chain([rows.c.keys()], cells), raw=raw)
    with file.open("w", encoding="utf-8", newline="") as text:
        written = sum(bool(text.write(f"{line}\n")) for line in lines)
    return written - 1  # the names of the columns


def write_json_lines(file: Path, rows: FromClause, parts: Parts) -> int:
    """Write an object a line, in ASCII; times are ISO 8601 in UTC."""
    names = rows.c.keys()
    count = 0
    with file.open("w", encoding="ascii") as text:
        for part in parts:
            for row in part:
                item = json.dumps(dict(zip(names, row, strict=True)), default=forms.plain)
                text.write(f"{item}\n")
            count += len(part)
    return count


def with_json_as_text(rows: FromClause, part: Sequence[Row[Any]]) -> Sequence[Sequence[Any]]:
    """Return rows whose nested values are JSON, in ASCII."""
    nested = [place for place, each in enumerate(rows.c) if isinstance(each.type, JSON)]
    if not nested:
        return cast("Sequence[Sequence[Any]]", part)
    found = [list(row) for row in part]
    for row in found:
        for place in nested:
            row[place] = None if row[place] is None else json.dumps(row[place])
    return found
