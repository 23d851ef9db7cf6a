"""Turn the bytes of a run list into lines of text."""

import codecs
import re
from array import array
from collections.abc import Sequence
from typing import overload

from etl.intake.entries import BadLine

_SURROGATE = re.compile(r"[\ud800-\udfff]")
UNREADABLE = "\udfff"  # stands for a line that is no text: every reader refuses it


class TextLines(Sequence[str]):
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


def split_lines(content: bytes) -> tuple[TextLines, list[BadLine]]:
    """Split the content into lines, and report those that are no text."""
    text = _decoded(content).replace("\r\n", "\n").replace("\r", "\n")
    # Lists that were put together have byte order marks inside.
    text = text.removeprefix("\ufeff").replace("\n\ufeff", "\n")
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
    """Decode the content, with surrogates where it is no text."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        half_a_unit = len(content) % 2
        whole_units = content[: len(content) - half_a_unit]
        return whole_units.decode("utf-16", "surrogatepass") + UNREADABLE * half_a_unit
    return content.decode("utf-8", "surrogateescape")
