"""The forms that a report is given in: text for people, CSV, JSON and Markdown for programs.

Names come from the API: control characters are made visible, and texts that a spreadsheet would
evaluate or Markdown would render are escaped.
"""

import csv
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime
from itertools import chain, islice, pairwise
from types import NoneType, SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

from etl import display
from etl.reports.model import Column, ReportResult, Type

NUMBERS = frozenset({Type.INTEGER, Type.RATE, Type.CHANGE, Type.MILLISECONDS})
CSV_ROWS = 1000
CSV_VALUES = 4096
"""How many rows are written together, and how many values of a column are remembered."""
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
_MARKUP = re.compile(r"([\\`*_{}\[\]()#!|~:])|(?<=www)(\.)", re.IGNORECASE)
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000))


def for_people(value: Any, kind: Type, zone: ZoneInfo) -> str:
    """Return a value with its unit; moments are shown in `zone`."""
    if value is None:
        return "-"
    if kind is Type.MOMENT:
        return display.safe(_in_zone(value, zone))
    shown = _SHOWN.get(kind)
    return shown(value) if shown else display.safe(value) or "-"


def _in_zone(moment: datetime, zone: ZoneInfo) -> datetime:
    """Return a moment in `zone`; in UTC where the calendar of the zone has no such year."""
    with suppress(OverflowError):
        return moment.astimezone(zone)
    return moment


def _duration(milliseconds: int) -> str:
    """Return a duration in its two largest units, such as "3h 05m"."""
    for (unit, size), (smaller, part) in pairwise(_UNITS):
        if milliseconds >= size:
            return f"{milliseconds // size}{unit} {milliseconds % size // part:02}{smaller}"
    return f"{milliseconds / 1000:.1f}s" if milliseconds >= 1000 else f"{milliseconds}ms"


_SHOWN: dict[Type, Callable[[Any], str]] = {
    Type.RATE: "{:.1%}".format,
    Type.CHANGE: "{:+.1%}".format,
    Type.MILLISECONDS: _duration,
    Type.FLAG: {True: "yes", False: "no"}.__getitem__,
}


def context(report: ReportResult) -> Iterator[str]:
    """Yield the lines that explain the rows: window, time zone, notes, and rows left out."""
    request = report.request
    moment = f"as of {_moment(request.as_of)}: " if request.as_of else ""
    yield f"{moment}{report.window}; times are {request.zone.key}"
    yield from report.notes
    if len(report.rows) < report.total:
        yield f"the first {len(report.rows)} of {report.total} rows (--rows 0: all)"


def brief(report: ReportResult) -> tuple[list[Column], list[list[str]]]:
    """Return the brief columns, and their values for people."""
    places = {column.name: place for place, column in enumerate(report.columns)}
    chosen = [places[name] for name in report.brief]
    columns = [report.columns[place] for place in chosen]
    zone = report.request.zone
    rows = [
        [for_people(row[place], report.columns[place].kind, zone) for place in chosen]
        for row in report.rows
    ]
    return columns, rows


def show_table(report: ReportResult) -> None:
    """Print a report as a table, with its context."""
    columns, rows = brief(report)
    display.say(report.definition.title)
    display.text_table([_heading(column) for column in columns], rows)
    for line in context(report):
        display.say(textwrap.fill(line, display.WIDTH))


def _heading(column: Column) -> display.Heading:
    is_whole = column.kind not in {Type.TEXT, Type.STRIP} or column.name.endswith("_id")
    return display.Heading(column.heading, column.kind in NUMBERS, is_whole)


def as_markdown(report: ReportResult) -> Iterator[str]:
    """Yield the lines of a report in Markdown: the brief columns and the context."""
    columns, rows = brief(report)
    yield f"## {report.definition.title}"
    yield ""
    yield _markdown_row([column.heading for column in columns])
    yield _markdown_row(["---:" if column.kind in NUMBERS else "---" for column in columns])
    for row in rows:
        yield _markdown_row([_disarmed(cell) for cell in row])
    yield ""
    for line in context(report):
        yield f"- {_disarmed(line)}"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _disarmed(text: str) -> str:
    """Return a text that Markdown renders as it is."""
    without_tags = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(lambda found: f"\\{found[0]}", without_tags)


def as_csv(report: ReportResult, *, raw: bool) -> Iterator[str]:
    """Yield the lines of a report as CSV; `raw` leaves texts as the API sent them."""
    return csv_lines(chain([[each.name for each in report.columns]], report.rows), raw=raw)


def csv_lines(rows: Iterable[Sequence[Any]], *, raw: bool) -> Iterator[str]:
    """Yield rows of the same columns as lines of CSV; formulas are escaped, unless `raw`."""
    waiting = iter(rows)
    cells: list[_Cells] = []
    while part := list(islice(waiting, CSV_ROWS)):
        columns = list(zip(*part, strict=True))
        cells = cells or [_Cells(_RAW_CELLS if raw else _CELLS) for _ in columns]
        texts = [map(each.__getitem__, column) for each, column in zip(cells, columns, strict=True)]
        yield from map(",".join, zip(*texts, strict=True))


class _Cells(dict[Any, str]):
    """The texts of a CSV column by value: most values of a column recur."""

    def __init__(self, by_type: Mapping[type, Callable[[Any], str]]) -> None:
        super().__init__()
        self._by_type = by_type

    def __missing__(self, value: Any) -> str:
        if len(self) > CSV_VALUES:
            self.clear()
        text = self[value] = self._by_type.get(type(value), str)(value)
        return text


def _quoted(text: str) -> str:
    """Return the cell of a text, quoted where CSV needs that."""
    line: str = _CSV.writerow((text, None))
    return line.removesuffix(",\r\n")


def _csv_text(text: str) -> str:
    safe = text if text.isprintable() else display.safe(text)
    return _quoted(f"'{safe}" if safe.startswith(FORMULA_STARTS) else safe)


def as_json(report: ReportResult) -> Iterator[str]:
    """Yield the lines of a report as JSON, a row a line, in ASCII; times are ISO 8601 in UTC."""
    request = report.request
    head = {
        "report": report.definition.name,
        "title": report.definition.title,
        "row": report.definition.row,
        "window": report.window,
        "notes": report.notes,
        "time_zone": request.zone.key,
        "as_of": request.as_of,
        "now": request.now,
        "rules": request.rules._asdict(),
        "filters": request.filters._asdict() | {"labels": dict(request.filters.labels)},
        "columns": [column._asdict() for column in report.columns],
        "total": report.total,
    }
    names = [column.name for column in report.columns]
    opened = json.dumps(head, default=plain, indent=2).removesuffix("\n}")
    yield f'{opened},\n  "rows": ['
    last = len(report.rows) - 1
    for place, row in enumerate(report.rows):
        item = json.dumps(dict(zip(names, row, strict=True)), default=plain)
        yield f"    {item}{'' if place == last else ','}"
    yield "  ]\n}"


def plain(value: Any) -> Any:
    """Return times as text, and all else as it is."""
    if isinstance(value, datetime):
        return _moment(value)
    return value.isoformat() if isinstance(value, date) else value


def _moment(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


_CSV = csv.writer(SimpleNamespace(write=str))
_RAW_CELLS: dict[type, Callable[[Any], str]] = {
    NoneType: lambda _: "",
    bool: {True: "true", False: "false"}.__getitem__,
    datetime: _moment,
    date: date.isoformat,
    str: _quoted,
}
_CELLS = {**_RAW_CELLS, str: _csv_text}
