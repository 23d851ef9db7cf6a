"""Format values for the page as for the other forms, with long names cut."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from etl.derived.metrics import WORDS
from etl.display import safe
from etl.reports.forms import NUMBERS, for_people
from etl.reports.model import Column, Type

LONGEST_TEXT = 160
LONGEST_STRIP = 60


class Letter(NamedTuple):
    """A result in a strip."""

    letter: str
    word: str


class Cell(NamedTuple):
    """A cell of a table; `strip` has the results where the text has letters for them."""

    text: str
    kind: str
    strip: Sequence[Letter] = ()


def cell(column: Column, value: Any, zone: ZoneInfo) -> Cell:
    """Return a value of a report as the page shows it."""
    if column.kind is Type.STRIP and value:
        return Cell(value, Type.STRIP, strip(value))
    if column.kind is Type.TEXT and value:
        return Cell(text(value), Type.TEXT)
    kind = "number" if column.kind in NUMBERS else str(column.kind)
    return Cell(for_people(value, column.kind, zone), kind)


def text(value: str, longest: int = LONGEST_TEXT) -> str:
    """Return a name of at most `longest` characters that hides nothing, an ellipsis where cut."""
    return cut(safe(value[: longest + 1]), longest)


def cut(shown: str, longest: int) -> str:
    """Return at most `longest` characters, the last one an ellipsis where more were there."""
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def strip(recent: str) -> list[Letter]:
    """Return the newest results of a strip, the oldest of them first."""
    return [Letter(letter, WORDS.get(letter, "unknown")) for letter in recent[-LONGEST_STRIP:]]


def moment(value: datetime, zone: ZoneInfo) -> str:
    """Return a moment in the page's time zone, to the minute."""
    return for_people(value, Type.MOMENT, zone)


def rate(value: float | None) -> str:
    """Return a share in percent."""
    return for_people(value, Type.RATE, ZoneInfo("UTC"))
