"""Read JSON values out of the lines of a run list, one after another or in lists."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

COMMENT = re.compile(r"\s*#")
_VALUE_START = re.compile(r"[^\s,\[\]]")  # brackets and commas only part the values of a JSON list
_VALUE_END = re.compile(r'[^\S\n]*(?:[],\[{"\n]|\Z)')
_WRECKAGE = re.compile(r'\s*(?:[#}\]]|"(?:[^"\\]|\\.)*"\s*:)')  # or a comment


class _Number(str):
    """A JSON number as it was written: a label keeps 1.10, and a run ID tells it from a string."""

    __slots__ = ()


_JSON = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_Number)


def read_values(lines: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yield each value with the number of the line where it begins, a ValueError for a broken one.

    After a broken value the next line is tried. Members and closing brackets found there are
    what is left of it: a member's name must not pass for a run ID.
    """
    index, column, skipped = 0, 0, COMMENT
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
