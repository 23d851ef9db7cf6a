"""Print for people and for programs: tables that fit 80 columns, JSON, progress.

Names come from the API: characters that could steer a terminal are printed as escapes.
"""

import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date, datetime
from itertools import islice
from typing import Any, Literal, NamedTuple

import click

WIDTH = 80
LONGEST_CELL = 1000
GAP = 1
"""Blanks between two columns."""
UUID_LENGTH = 36
LINES_AT_ONCE = 500


def safe(value: Any) -> str:
    """Return `value` as a text without control or direction characters."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M")
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
        return character.encode("unicode_escape").decode()
    return character


def say(text: str = "") -> None:
    """Print one line of an answer."""
    click.echo(text, sys.stdout)  # by itself Click sends UTF-8 to an ASCII terminal


def say_lines(lines: Iterable[str]) -> None:
    """Print lines unescaped, for programs: many at once, since each write is flushed."""
    waiting = iter(lines)
    while part := list(islice(waiting, LINES_AT_ONCE)):
        click.echo("\n".join(part), sys.stdout, color=True)  # else Click removes colour sequences


_take_note: ContextVar[Callable[[str], None] | None] = ContextVar("take_note", default=None)


def note(text: str) -> None:
    """Print one line to stderr: it is not part of the answer."""
    if take := _take_note.get():
        take(safe(text))
    else:
        click.echo(safe(text), sys.stderr)


@contextmanager
def notes_to(take: Callable[[str], None]) -> Iterator[None]:
    """Give `take` the lines of `note` within the context, instead of printing them."""
    token = _take_note.set(take)
    try:
        yield
    finally:
        _take_note.reset(token)


class Heading(NamedTuple):
    """A column of a table: numbers stand to the right, whole ones are never folded."""

    text: str
    is_number: bool
    is_whole: bool


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; long texts are folded to fit the terminal."""
    values = [tuple(row) for row in rows]
    columns = list(zip(*values, strict=True)) or [()] * len(headings)
    typed = [
        Heading(heading, _are_numbers(column), heading.replace(" ", "_").endswith(("_id", "_at")))
        for heading, column in zip(headings, columns, strict=True)
    ]
    text_table(typed, [[safe(value) for value in row] for row in values])


def text_table(headings: Sequence[Heading], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of texts that need no escapes; long ones are folded to fit the terminal."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415  only tables need it
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in headings]
    texts = [[_cut(text) for text in column] for column in columns]
    console = Console(file=sys.stdout, highlight=False, width=None if _on_terminal() else WIDTH)
    widths = _widths(headings, texts, console.width - GAP * (len(headings) - 1))
    grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for heading, width in zip(headings, widths, strict=True):
        justify: Literal["right", "left"] = "right" if heading.is_number else "left"
        grid.add_column(heading.text, justify=justify, overflow="fold", width=width)
    for row in zip(*texts, strict=True):
        grid.add_row(*map(Text, row))
    console.print(grid)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]}..."


def _widths(headings: Sequence[Heading], texts: Sequence[Sequence[str]], room: int) -> list[int]:
    """Return the width of each column: the widest shrink until all have room.

    Words of headings, times and UUIDs stay whole where there is room.
    """
    from rich.cells import cell_len  # noqa: PLC0415  only tables need it

    widths, least = [], []
    for heading, column in zip(headings, texts, strict=True):
        word = max(map(cell_len, heading.text.split()), default=1)
        content = max(map(cell_len, column), default=0)
        longest = max(word if heading.is_whole else cell_len(heading.text), content)
        widths.append(min(longest, room))
        least.append(max(word, min(content, UUID_LENGTH)) if heading.is_whole else word)
    while sum(widths) > room:
        roomy = [i for i, width in enumerate(widths) if width > least[i]] or range(len(widths))
        widths[max(roomy, key=widths.__getitem__)] -= 1
    return widths


def _are_numbers(column: Sequence[Any]) -> bool:
    values = [value for value in column if value is not None]
    return bool(values) and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def as_json(value: Any) -> None:
    """Print `value` as JSON, in ASCII, so that no name steers a terminal; times are ISO 8601."""
    click.echo(json.dumps(value, default=_json_default, indent=2), sys.stdout)


def _json_default(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(type(value).__name__)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function that takes (done, total): a bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console  # noqa: PLC0415  only a terminal needs it
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
