"""For Power BI Desktop: a connection file for PostgreSQL, and the measures in DAX."""

import json
from collections.abc import Iterator, Mapping, Sequence

from etl.bi.chart_catalog import Measure
from etl.bi.view_columns import MADE_BY, BiSource

DEFAULT_PORT = 5432
CONNECTION = b'{"version": "0.1", "connections": [{"details": {"protocol": "postgresql", '
"""The beginning of a connection file, which has no room for a comment."""
FORMATS = {"share": "0.0%", "hours": "#,0.0", "minutes": "#,0"}


def make(source: BiSource) -> Mapping[str, bytes]:
    """Return the measures, and on PostgreSQL the connection file."""
    text = "\n".join(_list_lines(source))
    files = {"measures.dax": f"{text}\n".encode()}
    if source.dialect == "postgresql":
        files["result-archiver.pbids"] = _connection(source)
    return files


def _connection(source: BiSource) -> bytes:
    url = source.url
    address = {
        "server": f"{url.host or 'localhost'}:{url.port or DEFAULT_PORT}",
        "database": url.database,
    }
    connection = {
        "details": {"protocol": "postgresql", "address": address},
        "options": {},
        "mode": "Import",
    }
    return json.dumps({"version": "0.1", "connections": [connection]}).encode()


def _list_lines(source: BiSource) -> Iterator[str]:
    yield f"// {MADE_BY} powerbi`: change a copy."
    yield "// Each line is one measure: New measure, and paste it."
    for measure in source.catalog.measures.values():
        for view in measure.views:
            title = f"{measure.title} of {view}" if len(measure.views) > 1 else measure.title
            yield ""
            yield f"// {view}; format {FORMATS.get(measure.unit, '#,0')}"
            yield f"{title} = {_dax(measure, view)}"


def _dax(measure: Measure, view: str) -> str:
    if measure.rows:
        return f"COUNTROWS({view})"
    if measure.newest:
        return f"MAX({view}[{measure.newest}])"
    if measure.mean:
        return f"AVERAGE({view}[{measure.mean}]) / {measure.per}"
    total = _add(view, measure.sum)
    if measure.over:
        return f"DIVIDE({total}, {_add(view, measure.over)})"
    return f"{total} / {measure.per}" if measure.per > 1 else total


def _add(view: str, columns: Sequence[str]) -> str:
    return " + ".join(f"SUM({view}[{name}])" for name in columns)
