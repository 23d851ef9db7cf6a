"""Show things to people and to programs: tables that fit 80 columns, JSON, progress.

Names come from the API: whatever could steer a terminal is made visible instead.
"""

import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any

import typer

WIDTH = 80


def safe(value: Any) -> str:
    """Return `value` as a text without control or direction characters."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M")
    if isinstance(value, float):
        return f"{value:.4g}"
    return "".join(_visible(character) for character in str(value))


def _visible(character: str) -> str:
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
        return character.encode("unicode_escape").decode()
    return character


def say(text: str = "") -> None:
    """Print one line of an answer."""
    typer.echo(text)


def note(text: str) -> None:
    """Print one line that is not part of the answer: to stderr."""
    typer.echo(safe(text), err=True)


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; numbers stand to the right, long texts are folded to fit the terminal."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415  only tables need it
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    rows = list(rows)
    grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, heading in enumerate(headings):
        values = [row[index] for row in rows if row[index] is not None]
        is_number = all(map(_is_number, values)) and bool(values)
        grid.add_column(
            heading,
            justify="right" if is_number else "left",
            overflow="fold",
            min_width=max(map(len, heading.split()), default=0),
            no_wrap=heading.replace(" ", "_").endswith(("_id", "_at")),
        )
    for row in rows:
        grid.add_row(*[Text(safe(value)) for value in row])
    console = Console(file=sys.stdout, highlight=False, width=None if _on_terminal() else WIDTH)
    console.print(grid)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def as_json(value: Any) -> None:
    """Print `value` as JSON; times are ISO 8601 in UTC."""
    typer.echo(json.dumps(value, default=_json_default, indent=2, ensure_ascii=False))


def _json_default(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(type(value).__name__)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function to call with (done, total): a bar on a terminal, silence elsewhere."""
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
