"""Turn the bytes of a run list into run entries.

Reads no file and no clock: the caller opens the list, and prints a bad line as `file:line: reason`.

The content itself says which format it has. The first line that is neither blank nor a comment
decides: `[` or `{` begins JSON, a header with a `run_id` column begins CSV, a quote begins JSON
Lines of strings, and anything else is one run ID a line. In every format a line that begins
with `#` is a comment; among plain IDs so is the rest of a line from a `#` that follows a blank.

A reason quotes nothing of the list: a read token or an API key may stand anywhere in it.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from etl.intake.entries import FIELDS, BadLine, ListedRun, build_run, check_run_id
from etl.intake.json_values import COMMENT, read_values
from etl.intake.text_lines import UNREADABLE, split_lines

T = TypeVar("T")

_INLINE_COMMENT = re.compile(r"(?:^|\s)#.*")
_NOT_AN_ID_ALONE = re.compile(r'^[\[{"]|[,;\t<>]')


@dataclass(frozen=True, slots=True)
class RunList:
    """The runs in the order in which they are first named; the bad lines in the list's order."""

    runs: list[ListedRun]
    bad_lines: list[BadLine]


def read_list(content: bytes) -> RunList:
    """Read a whole run list at once; see `read_entries`."""
    runs: list[ListedRun] = []
    bad_lines: list[BadLine] = []
    for entry in read_entries(content):
        if isinstance(entry, ListedRun):
            runs.append(entry)
        else:
            bad_lines.append(entry)
    return RunList(_merged(runs), sorted(bad_lines, key=lambda bad: bad.line))


def read_entries(content: bytes) -> Iterator[ListedRun | BadLine]:
    """Read a run list: plain IDs, CSV, JSON, JSON Lines or the API's answers to execute calls.

    The text is UTF-8, or UTF-16 with a byte order mark. Never raises: what cannot be read is
    among the bad lines, and the rest goes on. A run comes as often as it is listed.
    """
    lines, unreadable = split_lines(content)  # all that is kept of it, while the entries are read
    reported = {bad.line for bad in unreadable}
    others = (
        entry
        for entry in _entries(lines)
        if isinstance(entry, ListedRun) or entry.line not in reported
    )
    return chain(unreadable, others)


def _entries(lines: Sequence[str]) -> Iterator[ListedRun | BadLine]:
    """Recognise the format and read the lines with its reader."""
    start = next((index for index, line in enumerate(lines) if _says_something(line)), None)
    if start is None:
        return iter(())
    mark = lines[start].lstrip()[0]
    if mark in "[{":
        return _read_json(lines)
    for delimiter in ",;\t":
        records = _records(lines, start, delimiter)
        _, header = next(records)
        if header and "run_id" in _columns(header):
            return _read_csv(lines, header, records)
    return _read_json(lines) if mark == '"' else _read_plain(lines)


def _says_something(line: str) -> bool:
    return bool(line.strip()) and line != UNREADABLE and not COMMENT.match(line)


def _read_plain(lines: Sequence[str]) -> Iterator[ListedRun | BadLine]:
    """Read one run ID a line."""
    for number, line in enumerate(lines, 1):
        text = _INLINE_COMMENT.sub("", line) if "#" in line else line
        if text := text.strip():
            yield _entry(number, _plain_run, text)


def _plain_run(text: str) -> ListedRun:
    """Take the line for an ID.

    One with a comma or semicolon is refused, although an ID may have one: it is far more likely
    CSV without its header, and the token in it must not pass for a part of the ID.
    """
    run_id = check_run_id(text)
    if _NOT_AN_ID_ALONE.search(text):
        raise ValueError("more than a run ID; a list with columns needs a header with run_id")
    return ListedRun(run_id)


def _read_csv(
    lines: Sequence[str], header: list[str], records: Iterator[tuple[int, list[str] | None]]
) -> Iterator[ListedRun | BadLine]:
    """Read the records below the header. A cell left out or blank is a cell without a value."""
    columns = _columns(header)
    for index, cells in records:
        if COMMENT.match(lines[index]) or cells == header:  # again where lists were put together
            continue
        if cells is None:
            yield BadLine(index + 1, "not valid CSV: a quote is not closed, or a cell is too long")
        elif len(cells) > len(columns):
            yield BadLine(index + 1, "more cells than the header has columns")
        elif values := {
            column: text
            for column, cell in zip(columns, cells, strict=False)
            if (text := cell.strip())
        }:
            yield _entry(index + 1, build_run, values)


def _columns(header: Iterable[str]) -> list[str]:
    """Name the columns; ours are recognised in any case, the others keep theirs."""
    names = [name.strip() for name in header]
    return [name.casefold() if name.casefold() in FIELDS else name for name in names]


def _records(
    lines: Sequence[str], start: int, delimiter: str
) -> Iterator[tuple[int, list[str] | None]]:
    """Yield each CSV record from line index `start` on, with the index of its first line.

    None stands for a record that cannot be read. The next line then begins a new one, so that
    a quote that is never closed costs its own line and not the rest of the list.
    """
    while start < len(lines):
        rest = (lines[index] + "\n" for index in range(start, len(lines)))
        reader = csv.reader(rest, delimiter=delimiter, skipinitialspace=True, strict=True)
        first = start
        try:
            for cells in reader:
                yield first, cells
                first = start + reader.line_num
        except csv.Error:
            yield first, None
            start = first + 1
        else:
            return


def _read_json(lines: Sequence[str]) -> Iterator[ListedRun | BadLine]:
    """Read JSON values: a list, JSON Lines, or values one after another."""
    for number, value in read_values(lines):
        match value:
            case ValueError():
                yield BadLine(number, str(value))
            case {"runs": [*items]} if "run_id" not in value:
                yield from (_entry(number, _json_run, item) for item in items)
            case _:
                yield _entry(number, _json_run, value)


def _entry(line: int, read: Callable[[T], ListedRun], value: T) -> ListedRun | BadLine:
    try:
        return read(value)
    except ValueError as error:
        return BadLine(line, str(error))


def _json_run(value: Any) -> ListedRun:
    """Take an entry out of its frame. In the answer to an execute call only two members count."""
    match value:
        case {"result": {"id": run_id} as result} if "run_id" not in value:
            return build_run({"read_token": result.get("read_token"), **value, "run_id": run_id})
        case dict():
            return build_run(value)
        case _:
            return build_run({"run_id": value})


def _merged(runs: Iterable[ListedRun]) -> list[ListedRun]:
    """Make one of the entries for the same run: the first, and what only later ones say.

    A label's later value replaces the earlier one.
    """
    merged: dict[str, ListedRun] = {}
    for run in runs:
        first = merged.setdefault(run.run_id, run)
        if first is not run:
            merged[run.run_id] = ListedRun(
                run_id=run.run_id,
                source=first.source or run.source,
                read_token=first.read_token or run.read_token,
                labels={**first.labels, **run.labels},
            )
    return list(merged.values())
