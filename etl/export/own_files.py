"""Recognize files that we wrote before, so that nothing else is ever replaced.

Databases carry an application ID in their header; the other forms are known by their first line.
"""

import csv
import json
import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

PUBLISHED_COPY = 0x52415043
"""The application ID ("RAPC") of a copy made by `export --sqlite`."""
DEMO_ARCHIVE = 0x52414445
"""The application ID ("RADE") of an archive made by `demo`."""
LONGEST_LINE = 1_048_576

_SQLITE_MAGIC = b"SQLite format 3\0"
_APPLICATION_ID = slice(68, 72)


def read_application_id(file: Path) -> int | None:
    """Return the application ID of an SQLite database, None for any other file. Opens nothing."""
    with file.open("rb") as opened:
        header = opened.read(_APPLICATION_ID.stop)
    if not header.startswith(_SQLITE_MAGIC):
        return None
    return int.from_bytes(header[_APPLICATION_ID])


def mark_database(file: Path, application_id: int) -> None:
    """Write the application ID into a database; create a missing file."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA application_id = {application_id}")


def is_published_copy(file: Path) -> bool:
    """Tell whether `export --sqlite` made this file."""
    return read_application_id(file) == PUBLISHED_COPY


def is_export_of(columns: Collection[str], file: Path) -> bool:
    """Tell whether `file` is an earlier export, as CSV or JSON Lines, of a table with `columns`.

    It has no other column, and most of these: a later version of ours may have added some.
    """
    with file.open("rb") as opened:
        line = opened.readline(LONGEST_LINE)
    names = _field_names(line.decode("utf-8", "replace"))
    return not names - set(columns) and 4 * len(names) >= 3 * len(columns)


def _field_names(line: str) -> set[str]:
    try:
        return set(json.loads(line) if line.startswith("{") else next(csv.reader([line]), []))
    except (ValueError, RecursionError, csv.Error):
        return {line}


def is_replaceable_answer(file: Path) -> bool:
    """Tell whether `report --output` may replace `file`.

    The user named this file, so its content need not be ours; but databases and lists with read
    tokens can hardly be had again.
    """
    with file.open("rb") as opened:
        start = opened.read(LONGEST_LINE)
    return not start.startswith(_SQLITE_MAGIC) and b"read_token" not in start
