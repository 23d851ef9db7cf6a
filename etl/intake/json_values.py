"""Read JSON values out of the lines of a run list: one after another, or in lists."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

COMMENT = re.compile(r"\s*#")
_TOKEN = re.compile(r"\S")
_VALUE_END = re.compile(r'[^\S\n]*(?:[],\[{"\n]|\Z)')
_WRECKAGE = re.compile(r'\s*(?:[#}\]]|"(?:[^"\\]|\\.)*"\s*:)')  # or a comment


class _Number(str):
    """A JSON number as it was written: a label keeps 1.10, and a run ID tells it from a string."""

    __slots__ = ()


_JSON = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_Number)


class _Brackets:
    """The brackets and commas between values. A comma before a closing bracket does no harm."""

    def __init__(self) -> None:
        self.opened: list[int] = []
        """The line of each bracket that is not closed yet."""
        self._needs_comma = False

    def problem(self, sign: str, line: int) -> str | None:
        """Take a bracket, a comma or the first character of a value; say why it cannot stand there.

        Outside of lists, values need no commas.
        """
        is_in_list, needed_comma = bool(self.opened), self._needs_comma
        if sign == "[":
            self.opened.append(line)
        elif sign == "]" and self.opened:
            self.opened.pop()
        self._needs_comma = bool(self.opened) and sign not in {"[", ","}
        if sign == "]":
            return None if is_in_list else "a closing bracket too many"
        if not is_in_list:
            return None
        if sign == ",":
            return None if needed_comma else "a value is missing before the comma"
        return "a comma is missing before this value" if needed_comma else None


def read_values(lines: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yield each value with the number of the line where it begins.

    A ValueError stands for a broken value, and for a bracket or comma that is missing or too
    many, once a line. After a broken value the next line is tried. Members and closing brackets
    found there are its remains: a member's name must not pass for a run ID.
    """
    brackets, faulty_line, skipped = _Brackets(), 0, COMMENT
    index, column = 0, 0
    while index < len(lines):
        line, number = lines[index], index + 1
        token = _TOKEN.search(line, column)
        if not token or (column == 0 and skipped.match(line)):
            index, column = number, 0
            continue
        if skipped is COMMENT and (problem := brackets.problem(token[0], number)):
            if number != faulty_line:
                yield number, ValueError(f"not valid JSON: {problem}")
            faulty_line = number
        if token[0] in "[],":
            column = token.end()
            continue
        try:
            value, index, column = _decode(lines, index, token.start())
            yield number, value
        except ValueError as error:
            yield number, error
            index, column, skipped = number, 0, _WRECKAGE
    if skipped is COMMENT and brackets.opened:
        reason = "not valid JSON: the list that begins here is not closed; was it cut off?"
        yield brackets.opened[0], ValueError(reason)


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
    """Decode the value that begins there; return its lines, the value, and its end in them.

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
