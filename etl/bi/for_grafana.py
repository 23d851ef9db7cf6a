"""A dashboard for Grafana, on a data source of type PostgreSQL that its reader chooses."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from etl.bi.chart_catalog import BoardChart
from etl.bi.chart_sql import chart_sql
from etl.bi.view_columns import MADE_BY, BiSource

PLUGIN = "grafana-postgresql-datasource"
SOURCE = {"type": PLUGIN, "uid": "${datasource}"}
SCHEMA_VERSION = 39
PANELS_IN_A_ROW = 2
WIDTH = 24 // PANELS_IN_A_ROW
HEIGHT = 9
ALL = "'__all__'"
"""The value of a filter that is not set. Grafana puts it into the query as it is."""
DRAWINGS = {"lines": "timeseries", "stacked": "timeseries", "bars": "barchart", "table": "table"}
UNITS = {"share": "percentunit", "milliseconds": "ms", "minutes": "m", "hours": "h"}

Content = dict[str, Any]


def make(source: BiSource) -> Mapping[str, bytes]:
    """Return the JSON file."""
    charts = enumerate(source.catalog.charts.values())
    dashboard = {
        "description": f"{MADE_BY} grafana`",
        "uid": source.name("test-results"),
        "title": source.title("Test results"),
        "tags": ["result-archiver"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "time": {"from": "now-30d", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(_list_variables(source))},
        "panels": [_panel(source, number, chart) for number, chart in charts],
    }
    return {"": f"{json.dumps(dashboard, indent=2)}\n".encode()}


def _list_variables(source: BiSource) -> Iterator[Content]:
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": PLUGIN}
    runs = f"{source.quoted_schema}.run_results"
    for name in source.views["run_results"].filters:
        yield {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": SOURCE,
            "query": f"SELECT DISTINCT {name} FROM {runs} ORDER BY {name}",  # noqa: S608  our names
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ALL,
            "current": {"text": "All", "value": "$__all"},
        }


def panel_sql(source: BiSource, chart: BoardChart) -> str:
    """Return the query of a panel, with Grafana's macros and variables."""
    filters = [f"$__timeFilter({chart.when})"] if chart.when else []
    filters += [
        f"({ALL} IN (${{{name}:sqlstring}}) OR {name} IN (${{{name}:sqlstring}}))"
        for name in source.views[chart.view].filters
    ]
    query = chart_sql(source.catalog, chart, source.quoted_schema, filters)
    if chart.time and chart.drawing != "table":
        query = query.replace(f"SELECT {chart.time},", f"SELECT {chart.time} AS time,", 1)
    return query


def _panel(source: BiSource, number: int, chart: BoardChart) -> Content:
    row, column = divmod(number, PANELS_IN_A_ROW)
    is_stacked = chart.drawing == "stacked"
    units = {name: source.catalog.measures[name].unit for name in chart.measures}
    custom = {
        "drawStyle": "bars" if is_stacked else "line",
        "stacking": {"mode": "normal" if is_stacked else "none"},
    }
    return {
        "id": number + 1,
        "type": DRAWINGS[chart.drawing],
        "title": chart.title,
        "description": chart.description,
        "datasource": SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "targets": [
            {
                "refId": "A",
                "datasource": SOURCE,
                "editorMode": "code",
                "rawQuery": True,
                "rawSql": panel_sql(source, chart),
                "format": "time_series" if chart.time else "table",
            }
        ],
        "fieldConfig": {
            "defaults": {"custom": custom if chart.time else {}},
            "overrides": [
                {
                    "matcher": {"id": "byName", "options": name},
                    "properties": [{"id": "unit", "value": UNITS[unit]}],
                }
                for name, unit in units.items()
                if unit in UNITS
            ],
        },
        "options": {},
    }
