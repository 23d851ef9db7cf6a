"""The forms that a report is given in: text for people, CSV, JSON and Markdown for programs.

Names come from the API: control characters are made visible, and texts that a spreadsheet would
evaluate or Markdown would render are escaped.
"""

import csv
import io
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import date, datetime
from functools import lru_cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from etl import display
from etl.reports.model import Column, ReportResult, Type

NUMBERS = frozenset({Type.INTEGER, Type.RATE, Type.CHANGE, Type.MILLISECONDS})
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
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="")
    for row in ([column.name for column in report.columns], *report.rows):
        writer.writerow(csv_cells(row, raw=raw))
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def csv_cells(row: Iterable[Any], *, raw: bool) -> list[Any]:
    """Return the contents of the cells of a CSV row; formulas are escaped, unless `raw`."""
    by_type = _RAW_CELLS if raw else _CELLS
    return [convert(value) if (convert := by_type.get(type(value))) else value for value in row]


def _csv_text(text: str) -> str:
    safe = text if text.isprintable() else display.safe(text)
    return f"'{safe}" if safe.startswith(FORMULA_STARTS) else safe


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


_RAW_CELLS: dict[type, Callable[[Any], str]] = {
    bool: {True: "true", False: "false"}.__getitem__,
    datetime: lru_cache(4096)(_moment),  # all tests of a run have its times
    date: date.isoformat,
}
_CELLS = {**_RAW_CELLS, str: _csv_text}
