"""Put the page together: its template, its style sheet, and the charts as drawings.

Vega-Lite draws when the page is made; the page itself has drawings and no script. Its policy
forbids everything but its own style sheet.
"""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jinja2
import vl_convert
from markupsafe import Markup

from etl import __version__
from etl.reports.forms import NUMBERS
from etl.reports.model import Column, Definition, ReportResult
from etl.reports.page import cells, sections
from etl.reports.page.cells import Cell
from etl.reports.page.charts import Row, Spec
from etl.reports.page.sections import Figure, Mark, Tile

FOLDER = Path(__file__).parent
TITLE = "Test results"
LEAD = (
    "The archived results of visual tests. A result is one test of one run; it is decided"
    " when it passed or failed, and open while it waits for a person."
)
DECIDED_COLUMNS = {"passed", "failed"}
MOST_ROWS = 10
MOST_ROWS_ALONE = 1000
"""The default numbers of rows in a table: on a page of several reports, and of one."""


class Head(NamedTuple):
    """A column's heading."""

    words: str
    meaning: str
    is_numeric: bool


class Table(NamedTuple):
    """A table, ready to be written."""

    caption: str
    heads: list[Head]
    rows: list[list[Cell]]


class Drawing(NamedTuple):
    """A figure as the template takes it; `narrow` is None where one width fits all."""

    title: str
    detail: str
    alt: str
    wide: Markup
    narrow: Markup | None


class Block(NamedTuple):
    """A section, ready to be written."""

    name: str
    title: str
    sentence: str
    basis: str
    nothing: str
    tiles: list[Tile]
    key: tuple[Mark, ...]
    figures: list[Drawing]
    table: Table | None
    notes: list[str]


def choose_rows(reports: int, most_rows: int | None) -> int | None:
    """Return the limit of rows in each table of a page of `reports`: None is all.

    The caller's own limit (0: all), or by default fewer with several reports.
    """
    if most_rows is None:
        return MOST_ROWS_ALONE if reports == 1 else MOST_ROWS
    return most_rows or None


def needs_all_rows(definition: Definition) -> bool:
    """Tell whether the page shows more of a report's rows than its table has: charts, or sums."""
    return (
        sections.of(definition).is_drawn
        or {each.name for each in definition.columns} >= DECIDED_COLUMNS
    )


def render(reports: Sequence[ReportResult], most_rows: int | None) -> str:
    """Return the page that shows `reports`, which answer the same request.

    They have all their rows, or those of the table where that is all that is shown. Tables have
    `most_rows` rows at most.
    """
    is_alone = len(reports) == 1
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    return _template().render(
        title=sections.of(reports[0].definition).title if is_alone else TITLE,
        facts=_facts(reports[0]),
        lead=LEAD,
        sections=[_block(report, most_rows) for report in reports],
        style=Markup(style),  # noqa: S704  our own file
        policy=_policy(style),
        version=__version__,
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _policy(style: str) -> str:
    """Return a Content-Security-Policy that allows the style sheet and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _facts(report: ReportResult) -> list[tuple[str, str]]:
    """Return the moment, time zone and filters of the page."""
    request = report.request
    zone = request.zone
    known = request.as_of or request.now
    filters = request.filters
    since, until = (each and cells.moment(each, zone) for each in (filters.since, filters.until))
    facts = [
        ("As of", cells.moment(known, zone)),
        ("Time zone", zone.key),
        ("Source", filters.source),
        ("Application", filters.application),
        ("Plan", filters.plan),
        ("Test", filters.test),
        ("Labels", ", ".join(f"{name}={value}" for name, value in filters.labels)),
        ("From", since),
        ("To", until),
    ]
    return [(name, cells.text(value)) for name, value in facts if value]


def _block(report: ReportResult, most_rows: int | None) -> Block:
    definition = report.definition
    section = sections.of(definition)
    rows = sections.records(report)
    figures = [_drawing(figure) for figure in section.figures(rows)]
    return Block(
        definition.name,
        section.title,
        section.sentence,
        _basis(report, rows),
        section.nothing,
        section.tiles(rows),
        section.key,
        figures,
        _table(report, most_rows) if rows else None,
        [*(_capitalized(note) for note in report.notes), *_more(report, most_rows)],
    )


def _basis(report: ReportResult, rows: Sequence[Row]) -> str:
    """Return the window, the number of decided results, and the meaning of a row."""
    parts = [_capitalized(report.window)]
    if rows and rows[0].keys() >= DECIDED_COLUMNS:
        decided = sum(row["passed"] + row["failed"] for row in rows)
        parts.append(f"{decided:,} decided result{'' if decided == 1 else 's'}.")
    return " ".join([*parts, f"One row: {report.definition.row}."])


def _capitalized(sentence: str) -> str:
    return f"{sentence[:1].upper()}{sentence[1:].removesuffix('.')}."


def _drawing(figure: Figure) -> Drawing:
    chart = figure.chart
    wide = _drawn(chart.wide)
    narrow = None if chart.narrow is None else _drawn(chart.narrow)
    return Drawing(figure.title, figure.detail, chart.alt, wide, narrow)


def _drawn(spec: Spec) -> Markup:
    """Return the drawing. Texts are escaped in it, and nothing is loaded to draw it."""
    svg = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    return Markup(svg)  # noqa: S704


def _table(report: ReportResult, most_rows: int | None) -> Table:
    """Return the columns that a person needs; the other forms of a report have the rest."""
    places = {column.name: place for place, column in enumerate(report.columns)}
    chosen = [(places[name], report.columns[places[name]]) for name in report.brief]
    zone = report.request.zone
    shown = report.rows[:most_rows]
    how_many = _how_many(len(shown), report.total)
    return Table(
        f"{sections.of(report.definition).title}: {how_many}, times in {zone.key}",
        [_head(column) for _, column in chosen],
        [[cells.cell(column, row[place], zone) for place, column in chosen] for row in shown],
    )


def _head(column: Column) -> Head:
    return Head(column.heading, column.meaning, column.kind in NUMBERS)


def _how_many(shown: int, total: int) -> str:
    if shown < total:
        return f"the first {shown:,} of {total:,} rows"
    return "1 row" if total == 1 else f"{total:,} rows"


def _more(report: ReportResult, most_rows: int | None) -> list[str]:
    """Return the command that shows the remaining rows."""
    if most_rows is None or report.total <= most_rows:
        return []
    command = f"result-archiver report {report.definition.name} --format csv"
    return [f"All {report.total:,} rows, with all columns: {command}"]
