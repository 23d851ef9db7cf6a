"""Differences between stored rows and the rows that should be there.

Cells are compared as raw driver values, so damage is reported even where a value cannot be
parsed.
"""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

from sqlalchemy import Table
from sqlalchemy.exc import DataError, DBAPIError

from etl.answers.rows import Row


class Difference(NamedTuple):
    """A place where the archive differs from its payloads; `row` is the rest of its key.

    Rows that runs share, such as series, have the `run_id` "" and the whole key in `row`.
    """

    table: str
    run_id: str
    row: str
    problem: str

    def __str__(self) -> str:
        run = f"run {self.run_id}" if self.run_id else ""
        where = ", ".join(filter(None, [run, self.row]))
        return f"{self.table} ({where}): {self.problem}"


class BatchFindings(NamedTuple):
    """The differences of a batch of runs.

    `damage` cannot be repaired by `replay`: damaged payloads, and rows without a payload.
    `differing` are derived rows that differ from their payloads. `mismatches` are the API's own:
    counters of a run that are not the sum of its tests' counters.
    """

    runs: int
    damage: list[Difference]
    differing: list[Difference]
    mismatches: list[Difference]


def compare_rows(
    table: Table, wanted: Mapping[Row, Row], stored: Mapping[Row, Row]
) -> Iterator[Difference]:
    """Compare rows that runs share, by primary key."""
    for key in sorted(wanted.keys() | stored.keys(), key=repr):
        problem = describe_problem(table, wanted.get(key), stored.get(key))
        if problem:
            names = [column.name for column in table.primary_key]
            yield Difference(table.name, "", describe_place(names, key), problem)


def describe_place(names: Sequence[str], key: Row) -> str:
    """Return the place of a row in its table: the columns of its key, with their values."""
    return ", ".join(f"{name} {value}" for name, value in zip(names, key, strict=True))


def key_rows(table: Table, rows: Sequence[Row]) -> dict[Row, Row]:
    """Return `rows` by primary key."""
    keys = [list(table.columns).index(column) for column in table.primary_key]
    return {tuple(row[index] for index in keys): row for row in rows}


def describe_problem(table: Table, wanted: Row | None, stored: Row | None) -> str | None:
    """Return the problem of a stored row, None if it is as wanted."""
    if stored is None:
        return "is missing"
    if wanted is None:
        return "is in no payload"
    for column, should_be, is_now in zip(table.columns, wanted, stored, strict=True):
        if should_be != is_now:
            return f"{column.name} is {show_cell(is_now)}, should be {show_cell(should_be)}"
    return None


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100


def show_cell(value: Any) -> str:
    """Return a cell's value for people, without the middle of a long one."""
    return str(value) if isinstance(value, date) else _SHORT.repr(value)


def describe_unreadable(error: DBAPIError) -> str:
    """Return the problem of a cell that the driver cannot read; raise any other error again."""
    # Bytes that are no text, and times beyond Python's range.
    if not isinstance(error, DataError) and "Could not decode" not in str(error.orig):
        raise error
    [reason, *_more] = str(error.orig).splitlines()
    return f"cannot be read: {reason}"
