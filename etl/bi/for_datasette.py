"""Metadata for Datasette: descriptions, a query of each chart, and a board.

The queries and descriptions need Datasette alone; the board needs datasette-dashboards.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etl.bi.chart_catalog import BoardChart
from etl.bi.chart_sql import chart_sql
from etl.bi.view_columns import MADE_BY, BiSource
from etl.errors import UsageError

BOARD = "test-results"
MARKS = {"lines": "line", "stacked": "bar", "bars": "bar"}

Content = dict[str, Any]


def make(source: BiSource) -> Mapping[str, bytes]:
    """Return the JSON file. Raises UsageError unless the archive is in SQLite."""
    if source.dialect != "sqlite":
        raise UsageError("bi datasette: Datasette reads SQLite, and this archive is in PostgreSQL")
    charts = source.catalog.charts
    database = Path(source.url.database or "results.db").stem
    metadata = {
        "title": source.title("Test results"),
        "description": f"{MADE_BY} datasette`",
        "databases": {
            database: {
                "tables": {
                    name: {
                        "description": view.description,
                        "columns": {key: each.description for key, each in view.columns.items()},
                    }
                    for name, view in source.views.items()
                },
                "queries": {name: _query(source, chart) for name, chart in charts.items()},
            }
        },
        "plugins": {"datasette-dashboards": {BOARD: _board(source, database)}},
    }
    return {"": f"{json.dumps(metadata, indent=2)}\n".encode()}


def _query(source: BiSource, chart: BoardChart) -> Content:
    """Return a query with a form field for each filter; an empty one leaves all rows."""
    filters = [f"(:{name} = '' OR {name} = :{name})" for name in source.views[chart.view].filters]
    if chart.when:
        filters += [
            f"(:first_day = '' OR {chart.when} >= :first_day)",
            f"(:last_day = '' OR {chart.when} < date(:last_day, '+1 day'))",
        ]
    return {
        "title": chart.title,
        "description": chart.description,
        "sql": chart_sql(source.catalog, chart, None, filters),
    }


def _board(source: BiSource, database: str) -> Content:
    names = source.views["run_results"].filters
    filters = {name: {"name": name.capitalize(), "type": "text"} for name in names}
    filters |= {
        "first_day": {"name": "First day", "type": "date"},
        "last_day": {"name": "Last day", "type": "date"},
    }
    return {
        "title": source.title("Test results"),
        "settings": {"allow_fullscreen": True},
        "filters": filters,
        "charts": {
            name: _drawing(source, chart, database) for name, chart in source.catalog.charts.items()
        },
    }


def _drawing(source: BiSource, chart: BoardChart, database: str) -> Content:
    """Return a chart of the board, whose filters are left out where they are not set."""
    filters = [f"[[ {name} = :{name} AND ]]" for name in source.views[chart.view].filters]
    if chart.when:
        filters += [
            f"[[ {chart.when} >= :first_day AND ]]",
            f"[[ {chart.when} < date(:last_day, '+1 day') AND ]]",
        ]
    condition = " ".join([*filters, "1 = 1"])
    drawing = {
        "title": chart.title,
        "db": database,
        "query": chart_sql(source.catalog, chart, None, [condition]),
    }
    if chart.drawing == "table":
        return drawing | {"library": "table"}
    return drawing | {"library": "vega-lite", "display": _vega_lite(source, chart)}


def _vega_lite(source: BiSource, chart: BoardChart) -> Content:
    [x, *groups] = chart.dimensions
    titles = {name: source.catalog.measures[name].title for name in chart.measures}
    encoding: Content = {
        "x": {"field": x, "type": "temporal" if chart.time else "nominal", "title": None},
        "y": {"field": "value", "type": "quantitative", "title": None},
        "color": {"field": groups[0] if groups else "measure", "type": "nominal", "title": None},
    }
    return {
        "mark": {"type": MARKS[chart.drawing], "tooltip": True},
        "description": ", ".join(titles.values()),
        "transform": [{"fold": list(titles), "as": ["measure", "value"]}],
        "encoding": encoding,
    }
