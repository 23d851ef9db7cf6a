"""Turn the bytes of a run list into lines of text."""

import codecs
import re
from array import array
from collections.abc import Sequence
from itertools import dropwhile
from typing import overload

from etl.intake.entries import BadLine, is_invisible

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_HTTP_HEAD = re.compile(r"(?m)^HTTP/\d(?:\.\d)? \d{3}\b.*\n(?:[\w-]+:.*\n)*")
_MIN_MISREAD = 4

UNREADABLE = "\udfff"
"""Stands for a line that cannot be decoded; every reader leaves it out."""


class TextLines(Sequence[str]):
    """The lines of a text without their ends, each made on demand.

    A list of all lines would take three times the memory of the text.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._starts = array("Q", [0])
        self._starts.extend(newline.end() for newline in re.finditer("\n", text))
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


def split_lines(content: bytes) -> tuple[TextLines, list[BadLine]]:
    """Split the content into lines, and report those that are no text.

    Marks at the start of a line (byte order marks of lists that were put together) vanish, and
    so do the heads of HTTP answers, as `curl -i` prints them.
    """
    text = _decoded(content).replace("\r\n", "\n").replace("\r", "\n")
    text = "".join(dropwhile(is_invisible, text[:8])) + text[8:]
    text = text.replace("\n\ufeff", "\n")
    if "HTTP/" in text:
        text = _HTTP_HEAD.sub(lambda head: "\n" * head[0].count("\n"), text)
    if not _SURROGATE.search(text):
        return TextLines(text), []
    lines = text.split("\n")
    bad_lines = [
        BadLine(number, "not readable as text; save the list as UTF-8")
        for number, line in enumerate(lines, 1)
        if _SURROGATE.search(line)
    ]
    for bad in bad_lines:
        lines[bad.line - 1] = UNREADABLE
    return TextLines("\n".join(lines)), bad_lines


def _decoded(content: bytes) -> str:
    """Decode the content, with surrogates for bytes that are not text."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        half_a_unit = len(content) % 2
        whole_units = content[: len(content) - half_a_unit]
        text = whole_units.decode("utf-16", "surrogatepass") + UNREADABLE * half_a_unit
        return "\n".join(UNREADABLE if _is_misread(line) else line for line in text.split("\n"))
    return content.decode("utf-8", "surrogateescape")


def _is_misread(line: str) -> bool:
    """Tell bytes of another encoding, which a program appended and UTF-16 reads as foreign letters.

    Both bytes of each of them are ASCII; there are several, or one has a line feed. In a script
    such as Gurmukhi (U+0A00 and on) all of them seem to have one.
    """
    foreign = [ord(character) for character in line if character > "\xff"]
    if not foreign or not line.encode("utf-16-be", "surrogatepass").isascii():
        return False
    with_newline = sum(0x0A in divmod(unit, 256) for unit in foreign)
    others = len(foreign) - with_newline
    return others >= _MIN_MISREAD or (with_newline > 0 and others > 0)
