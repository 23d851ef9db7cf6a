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

from etl.intake.entries import (
    FIELDS,
    BadLine,
    ListedRun,
    build_run,
    check_run_id,
    clean_text,
    merge_runs,
)
from etl.intake.json_values import COMMENT, read_values
from etl.intake.text_lines import UNREADABLE, split_lines

T = TypeVar("T")

_BINARY = (b"PK\x03\x04", b"\x1f\x8b", b"%PDF", b"\xd0\xcf\x11\xe0")  # zip and xlsx, gzip, PDF, xls
_SEPARATORS = ",;\t|"
_SEPARATOR_LINE = re.compile(r'\s*"?sep=([^\w\s"]|\t)"?[\s,;|]*', re.IGNORECASE)
_OUR_COLUMNS = re.compile(r"(?<![\w-])(?:run_id|read[ _-]?token)(?![\w=-])", re.IGNORECASE)
_RULER = re.compile(r"[-+=:| ]{3,}")
_FOOTER = re.compile(r"\(\d+ rows?\)")  # of psql
_INLINE_COMMENT = re.compile(r"(?:^|\s)#.*")
_NOT_AN_ID_ALONE = re.compile(
    r'^[\[{"\]}]|[,;\t|<>]|^[\w.-]+:\s|^sep=.$|\b(?:run_id|read_token)\b', re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class RunList:
    """The runs in the order in which they are first named; the bad lines in the list's order."""

    runs: list[ListedRun]
    bad_lines: list[BadLine]


def read_list(content: bytes) -> RunList:
    """Read a whole run list at once; see `read_entries`."""
    runs: list[ListedRun] = []
    bad_lines: list[BadLine] = []
    for entry in read_entries(content, "list"):
        if isinstance(entry, ListedRun):
            runs.append(entry)
        else:
            bad_lines.append(entry)
    return RunList(merge_runs(runs), sorted(bad_lines, key=lambda bad: bad.line))


def read_entries(content: bytes, name: str) -> Iterator[ListedRun | BadLine]:
    """Read a run list: plain IDs, CSV, JSON, JSON Lines or the API's answers to execute calls.

    The text is UTF-8, or UTF-16 with a byte order mark. Never raises: a line that cannot be read
    is a bad line, and the rest goes on. A run comes as often as it is listed. `name` is the
    list's, for the places of its runs.
    """
    if content.startswith(_BINARY):
        return iter([BadLine(1, "not a text file; save the list as CSV, in UTF-8")])
    lines, unreadable = split_lines(content)  # all that is kept of it, while the entries are read
    reported = {bad.line for bad in unreadable}
    others = (
        entry
        for entry in _Reader(lines, name).entries()
        if isinstance(entry, ListedRun) or entry.line not in reported
    )
    return chain(unreadable, others)


class _Reader:
    """Reads the lines of one list in the format that the first significant line shows."""

    def __init__(self, lines: Sequence[str], name: str) -> None:
        self._lines = lines
        self._name = name

    def entries(self) -> Iterator[ListedRun | BadLine]:
        """Recognise the format and read the lines in it."""
        start = self._next_significant(0)
        separators = _SEPARATORS
        if start is not None and (line := _SEPARATOR_LINE.fullmatch(self._lines[start])):
            separators = line[1] + separators
            start = self._next_significant(start + 1)
        if start is None:
            return iter(())
        mark = self._lines[start].lstrip()[0]
        if mark in "[{":
            return self._read_json()
        for separator in separators:
            records = self._records(start, separator)
            _, header = next(records)
            if header and "run_id" in _columns(header):
                return self._read_csv(header, records)
        if mark == "<":
            return iter([BadLine(start + 1, "this is HTML or XML, not a run list")])
        if _OUR_COLUMNS.search(self._lines[start]):
            reason = "a header without a run_id column, or not separated by , ; tab or |"
            return iter([BadLine(start + 1, f"{reason}; the whole list is left out")])
        return self._read_json() if mark == '"' else self._read_plain()

    def _next_significant(self, start: int) -> int | None:
        """Return the index of the next line that is neither a comment nor blank nor ruled."""
        for index in range(start, len(self._lines)):
            line = self._lines[index]
            is_ruler = _RULER.fullmatch(line.strip())
            if line.strip() and line != UNREADABLE and not COMMENT.match(line) and not is_ruler:
                return index
        return None

    def _entry(
        self, line: int, read: Callable[[T, str], ListedRun], value: T
    ) -> ListedRun | BadLine:
        try:
            return read(value, f"{self._name}:{line}")
        except ValueError as error:
            return BadLine(line, str(error))

    def _read_plain(self) -> Iterator[ListedRun | BadLine]:
        """Read one run ID a line."""
        for number, line in enumerate(self._lines, 1):
            text = _INLINE_COMMENT.sub("", line) if "#" in line else line
            if text.strip():
                yield self._entry(number, _plain_run, text)

    def _read_csv(
        self, header: list[str], records: Iterator[tuple[int, list[str] | None]]
    ) -> Iterator[ListedRun | BadLine]:
        """Read the records below the header. A cell left out or blank is a cell without a value."""
        columns = _columns(header)
        for index, cells in records:
            line = self._lines[index]
            if COMMENT.match(line) or cells == header or _SEPARATOR_LINE.fullmatch(line):
                continue  # again where lists were put together
            if cells is None:
                reason = "not valid CSV: a quote is not closed, or a cell is too long"
                yield BadLine(index + 1, reason)
            elif any(cell.strip() for cell in cells[len(columns) :]):
                yield BadLine(index + 1, "more cells than the header has columns")
            elif len(cells) == 1 and columns[0] == "run_id" and not _is_decoration(cells):
                yield self._entry(index + 1, _plain_run, cells[0])
            elif not _is_decoration(cells):
                values = {
                    column: text
                    for column, cell in zip(columns, cells, strict=False)
                    if (text := cell.strip())
                }
                yield self._entry(index + 1, build_run, values)

    def _records(self, start: int, separator: str) -> Iterator[tuple[int, list[str] | None]]:
        """Yield each CSV record from line index `start` on, with the index of its first line.

        None stands for a record that cannot be read. The next line then begins a new one, so
        that a quote that is never closed costs its own line and not the rest of the list.
        """
        while start < len(self._lines):
            rest = (self._lines[index] + "\n" for index in range(start, len(self._lines)))
            reader = csv.reader(rest, delimiter=separator, skipinitialspace=True, strict=True)
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

    def _read_json(self) -> Iterator[ListedRun | BadLine]:
        """Read JSON values: a list, JSON Lines, or values one after another."""
        for number, value in read_values(self._lines):
            match value:
                case ValueError():
                    yield BadLine(number, str(value))
                case {"runs": [*items]} if "run_id" not in value:
                    yield from (self._entry(number, _json_run, item) for item in items)
                case _:
                    yield self._entry(number, _json_run, value)


def _plain_run(text: str, place: str) -> ListedRun:
    """Take the line for an ID.

    A line with a separator of columns is refused, although an ID may have one: the line is far
    more likely CSV without its header, or with another separator than its header, and the token
    in it must not pass for a part of the ID. A `name: value` is a line of something else.
    """
    run_id = check_run_id(clean_text(text))
    if _NOT_AN_ID_ALONE.search(run_id) or _RULER.fullmatch(run_id):
        raise ValueError("more than a run ID; a list with columns needs a header with run_id")
    return ListedRun(run_id, place=place, is_cleaned=run_id != text.strip())


def _columns(header: Iterable[str]) -> list[str]:
    """Name the columns; ours are recognised in any case, `Run ID` too; others keep their names."""
    names = [clean_text(name) for name in header]
    return [_column(name) for name in names]


def _column(name: str) -> str:
    if re.sub("[ _-]", "", name).casefold() == "runid":
        return "run_id"
    return name.casefold() if name.casefold() in FIELDS else name


def _is_decoration(cells: Sequence[str]) -> bool:
    """Tell a row that only looks: blank, ruled, or psql's count of rows."""
    text = "".join(cells).strip()
    return not text or bool(_RULER.fullmatch(text) or _FOOTER.fullmatch(text))


def _json_run(value: Any, place: str) -> ListedRun:
    """Take an entry out of its frame. In the answer to an execute call only two members count."""
    match value:
        case {"result": {"id": run_id} as result} if "run_id" not in value:
            members = {"read_token": result.get("read_token"), **value, "run_id": run_id}
            return build_run(members, place)
        case dict():
            return build_run(value, place)
        case _:
            return build_run({"run_id": value}, place)
