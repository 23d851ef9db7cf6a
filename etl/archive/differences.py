"""Where stored rows are not what they should be: the comparison of rows, cell by cell.

What is in a cell is taken for nothing but itself: a damaged one is named, whatever it holds.
"""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

from sqlalchemy import (
    Table,
)
from sqlalchemy.exc import DataError, DBAPIError

from etl.archive.history import Row


class Difference(NamedTuple):
    """A place where the archive is not what its payloads say; `row` is the rest of its key.

    Of what several runs share, such as a series, `run_id` is "" and `row` the whole key.
    """

    table: str
    run_id: str
    row: str
    problem: str

    def __str__(self) -> str:
        run = f"run {self.run_id}" if self.run_id else ""
        where = ", ".join(filter(None, [run, self.row]))
        return f"{self.table} ({where}): {self.problem}"


class Checked(NamedTuple):
    """What was found in a batch of runs.

    `damage` is what no replay mends: payloads that are not what was received, and what belongs to
    no payload; `differing` are derived rows that are not what their payloads say; `mismatches`
    are the vendor's own: a run's counters that are not the sum of its tests'.
    """

    runs: int
    damage: list[Difference]
    differing: list[Difference]
    mismatches: list[Difference]


def compare_shared(
    table: Table, wanted: Mapping[Row, Row], found: Mapping[Row, Row]
) -> Iterator[Difference]:
    """Compare rows that are of no single run."""
    names = [column.name for column in table.primary_key]
    for key in sorted(wanted.keys() | found.keys(), key=repr):
        problem = row_problem(table, wanted.get(key), found.get(key))
        if problem:
            place = ", ".join(f"{name} {value}" for name, value in zip(names, key, strict=True))
            yield Difference(table.name, "", place, problem)


def describe_unreadable(error: DBAPIError) -> str:
    """Say that a cell cannot be read; raise `error` again if it is no cell's fault."""
    # It is that of bytes that are no text, and of a time beyond Python's.
    if not isinstance(error, DataError) and "Could not decode" not in str(error.orig):
        raise error
    [reason, *_more] = str(error.orig).splitlines()
    return f"cannot be read: {reason}"


def place_in_run(table: Table, key: Row) -> str:
    """Return where a row stands among those of its run."""
    names = [column.name for column in table.primary_key]
    return ", ".join(f"{name} {value}" for name, value in zip(names[1:], key[1:], strict=True))


def rows_by_key(table: Table, rows: Sequence[Row]) -> dict[Row, Row]:
    """Return `rows` by primary key."""
    keys = [list(table.columns).index(column) for column in table.primary_key]
    return {tuple(row[index] for index in keys): row for row in rows}


def row_problem(table: Table, wanted: Row | None, found: Row | None) -> str | None:
    """Say what is wrong with a stored row, None if it is as wanted."""
    if found is None:
        return "is missing"
    if wanted is None:
        return "is in no payload"
    for column, should_be, is_now in zip(table.columns, wanted, found, strict=True):
        if should_be != is_now:
            return f"{column.name} is {show_cell(is_now)}, should be {show_cell(should_be)}"
    return None


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100


def show_cell(value: Any) -> str:
    """Return a cell for people, the middle of a long one left out."""
    return str(value) if isinstance(value, date) else _SHORT.repr(value)
