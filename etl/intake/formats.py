"""Turn the bytes of a run list into run entries.

Reads no file and no clock: the caller opens the list, and prints a bad line as `file:line: reason`.

The content itself says which format it has. The first line that is neither blank nor a comment
decides: `[` or `{` begins JSON, a header with a `run_id` column begins CSV, a quote begins JSON
Lines of strings, and anything else is one run ID a line. In every format a line that begins
with `#` is a comment; among plain IDs so is the rest of a line from a `#` that follows a blank.

A reason quotes nothing of the list: a read token or an API key may stand anywhere in it.
"""

import codecs
import csv
import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any, TypeVar, overload

T = TypeVar("T")

_FIELDS = frozenset({"run_id", "read_token", "source"})

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # Unicode category Cc, surrogates
LONGEST_LABEL_NAME_BYTES = 500  # it is part of a key, which databases limit
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")  # no database takes these in a text
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_KEY_IN_URL = re.compile(r"[?&](?:apikey|read_token)=", re.IGNORECASE)
_SECRET_NAME = re.compile(
    r"(?:(?:read|access|auth)?[ _-]?token|api[ _-]?key|secret|password)", re.IGNORECASE
)
_COMMENT = re.compile(r"\s*#")
_INLINE_COMMENT = re.compile(r"(?:^|\s)#.*")
_NOT_AN_ID_ALONE = re.compile(r'^[\[{"]|[,;\t<>]')
_VALUE_START = re.compile(r"[^\s,\[\]]")  # brackets and commas only part the values of a JSON list
_VALUE_END = re.compile(r'[^\S\n]*(?:[],\[{"\n]|\Z)')
_WRECKAGE = re.compile(r'\s*(?:[#}\]]|"(?:[^"\\]|\\.)*"\s*:)')  # or a comment

_UNREADABLE = "\udfff"  # stands for a line that is no text: every reader refuses it


@dataclass(frozen=True, slots=True)
class ListedRun:
    """What a list says of one run. `source` names an account; None is the default one."""

    run_id: str
    source: str | None = None
    read_token: str | None = field(default=None, repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line (counted from 1) that was left out. `reason` quotes nothing of it."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class RunList:
    """The runs in the order in which they are first named; the bad lines in the list's order."""

    runs: list[ListedRun]
    bad_lines: list[BadLine]


class _Number(str):
    """A JSON number as it was written: a label keeps 1.10, and a run ID tells it from a string."""

    __slots__ = ()


_JSON = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_Number)


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
    lines, unreadable = _lines(content)  # all that is kept of it, while the entries are read
    reported = {bad.line for bad in unreadable}
    others = (
        entry
        for entry in _entries(lines)
        if isinstance(entry, ListedRun) or entry.line not in reported
    )
    return chain(unreadable, others)


def check_run_id(text: str) -> str:
    """Return `text` if it can be a run ID, else raise a ValueError whose text is one line.

    A run ID has 1 to 512 characters, none of them a control character or a lone surrogate, no
    blanks at its ends, and is not `.` or `..`, which would change the path of the API call. What
    carries a key, as the URL of an API call does, is refused as well: it would be stored.
    """
    if not text:
        raise ValueError("the run ID is empty")
    if _KEY_IN_URL.search(text):
        raise ValueError("this is a URL with a key in it; give the run ID alone")
    if len(text) > 512:
        raise ValueError("the run ID is longer than 512 characters")
    if _CONTROL.search(text):
        raise ValueError("the run ID has a control character or half a character in it")
    if text != text.strip():
        raise ValueError("the run ID has blanks at its ends")
    if text in {".", ".."}:
        raise ValueError("a run ID cannot be . or ..")
    return text


class _Lines(Sequence[str]):
    """The lines of a text without their ends, each made when it is wanted.

    A list of them all would take three times the memory of the text.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._starts = array("Q", [0])
        self._starts.extend(found.end() for found in re.finditer("\n", text))
        self._starts.append(len(text) + 1)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return self._text[self._starts[index] : self._starts[index + 1] - 1]


def _lines(content: bytes) -> tuple[_Lines, list[BadLine]]:
    """Split the content into lines, and report those that are no text."""
    text = _decoded(content).replace("\r\n", "\n").replace("\r", "\n")
    # Lists that were put together have byte order marks inside.
    text = text.removeprefix("\ufeff").replace("\n\ufeff", "\n")
    if not _SURROGATE.search(text):
        return _Lines(text), []
    lines = text.split("\n")
    bad_lines = [
        BadLine(number, "not readable as text; save the list as UTF-8")
        for number, line in enumerate(lines, 1)
        if _SURROGATE.search(line)
    ]
    for bad in bad_lines:
        lines[bad.line - 1] = _UNREADABLE
    return _Lines("\n".join(lines)), bad_lines


def _decoded(content: bytes) -> str:
    """Decode the content, with surrogates where it is no text."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        half_a_unit = len(content) % 2
        whole_units = content[: len(content) - half_a_unit]
        return whole_units.decode("utf-16", "surrogatepass") + _UNREADABLE * half_a_unit
    return content.decode("utf-8", "surrogateescape")


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
    return bool(line.strip()) and line != _UNREADABLE and not _COMMENT.match(line)


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
        if _COMMENT.match(lines[index]) or cells == header:  # again where lists were put together
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
            yield _entry(index + 1, _run, values)


def _columns(header: Iterable[str]) -> list[str]:
    """Name the columns; ours are recognised in any case, the others keep theirs."""
    names = [name.strip() for name in header]
    return [name.casefold() if name.casefold() in _FIELDS else name for name in names]


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
    for number, value in _json_values(lines):
        match value:
            case ValueError():
                yield BadLine(number, str(value))
            case {"runs": [*items]} if "run_id" not in value:
                yield from (_entry(number, _json_run, item) for item in items)
            case _:
                yield _entry(number, _json_run, value)


def _json_values(lines: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yield each value with the number of the line where it begins, a ValueError for a broken one.

    After a broken value the next line is tried. Members and closing brackets found there are
    what is left of it: a member's name must not pass for a run ID.
    """
    index, column, skipped = 0, 0, _COMMENT
    while index < len(lines):
        line = lines[index]
        found = _VALUE_START.search(line, column)
        if not found or (column == 0 and skipped.match(line)):
            index, column = index + 1, 0
            continue
        number = index + 1
        try:
            value, index, column = _decode(lines, index, found.start())
            yield number, value
        except ValueError as error:
            yield number, error
            index, column, skipped = number, 0, _WRECKAGE


def _decode(lines: Sequence[str], index: int, column: int) -> tuple[Any, int, int]:
    """Decode the value that begins there; return it with the line index and column of its end."""
    text, value, end = _raw_decode(lines, index, column)
    newlines = text.count("\n", column, end)
    end_index, end_column = index + newlines, end
    if newlines:
        end_column -= text.rfind("\n", column, end) + 1
    if not _VALUE_END.match(text, end):
        raise _not_json(end_index + 1, end_column + 1)
    return value, end_index, end_column


def _raw_decode(lines: Sequence[str], index: int, column: int) -> tuple[str, Any, int]:
    """Decode the value that begins there; return the lines it took, itself, and its end in them.

    Takes more lines only while the value reaches beyond those at hand, because an error of
    `json` costs time in proportion to the whole text that it was given.
    """
    text, count = lines[index], 1
    while True:
        try:
            return text, *_JSON.raw_decode(text, column)
        except RecursionError:
            raise ValueError("JSON nested too deep") from None
        except json.JSONDecodeError as error:
            if error.pos < len(text) or index + count >= len(lines):
                raise _not_json(index + error.lineno, error.colno) from None
        count *= 8
        text = "\n".join(lines[index : index + count])


def _not_json(line: int, column: int) -> ValueError:
    return ValueError(f"not valid JSON (line {line}, column {column})")


def _entry(line: int, read: Callable[[T], ListedRun], value: T) -> ListedRun | BadLine:
    try:
        return read(value)
    except ValueError as error:
        return BadLine(line, str(error))


def _json_run(value: Any) -> ListedRun:
    """Take an entry out of its frame. In the answer to an execute call only two members count."""
    match value:
        case {"result": {"id": run_id} as result} if "run_id" not in value:
            return _run({"read_token": result.get("read_token"), **value, "run_id": run_id})
        case dict():
            return _run(value)
        case _:
            return _run({"run_id": value})


def _run(members: Mapping[str, object]) -> ListedRun:
    return ListedRun(
        run_id=_run_id(members),
        source=_text(members, "source"),
        read_token=_text(members, "read_token"),
        labels=_labels(members),
    )


def _run_id(members: Mapping[str, object]) -> str:
    if "run_id" not in members:
        raise ValueError("no run_id")
    run_id = members["run_id"]
    if type(run_id) is not str:
        raise ValueError("the run ID is not a string; put it in quotes")
    return check_run_id(run_id.strip())


def _text(members: Mapping[str, object], name: str) -> str | None:
    value = members.get(name)
    if value is None:
        return None
    if type(value) is not str:
        raise ValueError(f"{name} is not a string; put it in quotes")
    text = value.strip()
    if _CONTROL.search(text) or _KEY_IN_URL.search(text):
        raise ValueError(f"{name} has a control character or a URL with a key in it")
    return text or None


def _labels(members: Mapping[str, object]) -> dict[str, str]:
    """Collect the labels: members that are no field of ours, and those of `labels`.

    What is nested deeper, null, or has no name is no label. A label is stored as it is, so one
    that is named like a secret or has a key in it is a ValueError.
    """
    named = {name: value for name, value in members.items() if name not in _FIELDS}
    nested = named.get("labels")
    if isinstance(nested, dict):
        named |= nested
    return {
        label: _label_value(value)
        for name, value in named.items()
        if isinstance(value, str | bool) and (label := _label_name(name))
    }


def check_label(name: str, value: str) -> tuple[str, str]:
    """Return a label as it can be stored, else raise a ValueError whose text is one line."""
    return _label_name(name), _label_value(value.strip())


@lru_cache(maxsize=1024)  # a list has few names, each on every line
def _label_name(name: str) -> str:
    if _SECRET_NAME.fullmatch(name.strip()):
        raise ValueError("a label is named like a secret; a read token belongs in read_token")
    if len(name.encode(errors="replace")) > LONGEST_LABEL_NAME_BYTES:
        raise ValueError(f"a label's name is longer than {LONGEST_LABEL_NAME_BYTES} bytes")
    return _UNSTORABLE.sub("\ufffd", name.strip())


def _label_value(value: object) -> str:
    text = str(value) if isinstance(value, str) else json.dumps(value)
    if _KEY_IN_URL.search(text):
        raise ValueError("a label has a URL with a key in it, and would store the key")
    return _UNSTORABLE.sub("\ufffd", text)


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
