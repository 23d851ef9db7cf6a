"""A bundle for `superset import-dashboards`: the database, its datasets, charts and a dashboard.

UUIDs and slugs follow from names, so that a second import replaces the first.
"""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID, uuid5

from etl.bi.chart_catalog import BoardChart, Measure
from etl.bi.chart_sql import measure_sql
from etl.bi.view_columns import MADE_BY, BiSource, DescribedView, ViewColumn

NAMESPACE = UUID("5d4f9d0e-7a0b-5c0c-9f0a-0d6f5b6f6a11")
VERSION = "1.0.0"
ROOT = "result-archiver"
CHARTS_IN_A_ROW = 2
COLUMNS_OF_GRID = 12
HEIGHT = 50
ROW_LIMIT = 10_000
TIMES = (
    "started_at", "day", "week_starts_on", "last_started_at", "changed_by", "measured_at",
    "failing_since", "last_fetched_at",
)  # fmt: skip
"""The columns that a dataset's charts can be limited by, the best first."""
ON_SQLITE = {
    "double precision": "DOUBLE",
    "date": "DATETIME",
    "timestamp with time zone": "DATETIME",
}
ON_POSTGRESQL = {"timestamp with time zone": "TIMESTAMP"}
DRAWINGS = {
    "lines": "echarts_timeseries_line",
    "stacked": "echarts_timeseries_bar",
    "bars": "echarts_timeseries_bar",
    "table": "table",
}
FORMATS = {"share": ".1%", "hours": ",.1f", "minutes": ",.0f", "milliseconds": "DURATION"}

COLORS = {
    "passed": "#3c9a5f",
    "failed": "#c8443c",
    "aborted": "#8a8f98",
    "unresolved": "#e0a030",
    "open_tests": "#e0a030",
    "run_count": "#1fa8c9",
    "pass_rate": "#1fa8c9",
    "pass_rate_low": "#b0b7c3",
    "pass_rate_high": "#8a8f98",
}
"""The colors of measures: without them, two in one chart can have the same."""

Content = dict[str, Any]


def make(source: BiSource) -> Mapping[str, bytes]:
    """Return the ZIP file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bundle:
        for path, content in _list_files(source):
            # A fixed time: the same archive and version give the same bytes.
            entry = zipfile.ZipInfo(f"{ROOT}/{path}.yaml", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            bundle.writestr(entry, json.dumps(content, indent=2))  # JSON is YAML
        bundle.comment = f"{MADE_BY} superset`".encode()
    return {"": packed.getvalue()}


def _list_files(source: BiSource) -> Iterator[tuple[str, Content]]:
    # Without a type, so that datasets and dashboards can be imported from the same file.
    yield "metadata", {"version": VERSION}
    yield f"databases/{ROOT}", _database(source)
    for name, view in source.views.items():
        yield f"datasets/{ROOT}/{name}", _dataset(source, name, view)
    for number, (name, chart) in enumerate(source.catalog.charts.items(), 1):
        content = _chart(source, chart)
        uuid = {"uuid": _chart_uuid(source, name, chart)}
        yield f"charts/{name}_{number}", content | uuid
    yield f"dashboards/{ROOT}", _dashboard(source)


def make_uuid(source: BiSource, kind: str, name: str) -> str:
    """Return the UUID of a part of the bundle."""
    return str(uuid5(NAMESPACE, f"{source.prefix}/{kind}/{name}"))


def _database(source: BiSource) -> Content:
    return {
        "database_name": source.title("Test results"),
        "sqlalchemy_uri": source.url.render_as_string(hide_password=False),
        "expose_in_sqllab": True,
        "allow_run_async": False,
        "allow_ctas": False,
        "allow_cvas": False,
        "allow_dml": False,
        "extra": {"allows_virtual_table_explore": True},
        "uuid": make_uuid(source, "database", ""),
        "version": VERSION,
    }


def _dataset(source: BiSource, name: str, view: DescribedView) -> Content:
    measures = {key: each for key, each in source.catalog.measures.items() if name in each.views}
    # Names of datasets are unique in a Superset whose own database is SQLite.
    query = f"SELECT * FROM {source.quoted_view(name)}"  # noqa: S608  our names
    return {
        "table_name": source.name(name),
        "sql": query if source.prefix else None,
        "main_dttm_col": next((each for each in TIMES if each in view.columns), None),
        "description": view.description,
        "schema": source.schema,
        "filter_select_enabled": True,
        "uuid": make_uuid(source, "dataset", name),
        "metrics": [_metric(key, each) for key, each in measures.items()] or [COUNT],
        "columns": [_column(key, each, source) for key, each in view.columns.items()],
        "version": VERSION,
        "database_uuid": make_uuid(source, "database", ""),
    }


COUNT = {"metric_name": "count", "verbose_name": "Rows", "expression": "count(*)"}


def _column(name: str, column: ViewColumn, source: BiSource) -> Content:
    names = ON_SQLITE if source.dialect == "sqlite" else ON_POSTGRESQL
    return {
        "column_name": name,
        "is_dttm": column.kind == "time",
        "is_active": True,
        "type": names.get(column.type, column.type.upper()),
        "groupby": column.kind not in {"count", "rate"},
        "filterable": True,
        "description": column.description,
    }


def _metric(name: str, measure: Measure) -> Content:
    return {
        "metric_name": name,
        "verbose_name": measure.title,
        "expression": measure_sql(measure),
        "d3format": FORMATS.get(measure.unit),
    }


def _chart_uuid(source: BiSource, name: str, chart: BoardChart) -> str:
    """Return the UUID of a chart. It changes with the chart: Superset never replaces one."""
    return make_uuid(source, "chart", f"{name}/{json.dumps(_chart(source, chart))}")


def _chart(source: BiSource, chart: BoardChart) -> Content:
    query = _query(chart)
    params = _params(chart) | {"column_config": _column_formats(source, chart)}
    context = {
        "datasource": {"id": 0, "type": "table"},  # the import sets the ID
        "force": False,
        "queries": [query],
        "form_data": params,
        "result_format": "json",
        "result_type": "full",
    }
    return {
        "slice_name": source.title(chart.title),
        "description": chart.description,
        "viz_type": DRAWINGS[chart.drawing],
        "params": params,
        "query_context": json.dumps(context),
        "version": VERSION,
        "dataset_uuid": make_uuid(source, "dataset", chart.view),
    }


def _column_formats(source: BiSource, chart: BoardChart) -> Content:
    """Return how a table shows the numbers of its columns."""
    columns = source.views[chart.view].columns
    units = {name: columns[name].unit or "" for name in chart.columns}
    return {
        name: {"d3NumberFormat": FORMATS[unit]} for name, unit in units.items() if unit in FORMATS
    }


def _query(chart: BoardChart) -> Content:
    """Return the query of a chart."""
    by_time = [{"col": chart.when, "op": "TEMPORAL_RANGE", "val": "No filter"}]
    order = [[name.removeprefix("-"), not name.startswith("-")] for name in chart.order]
    return {
        "columns": list(chart.columns) or chart.dimensions,
        "metrics": list(chart.measures) or None,
        "filters": by_time if chart.when else [],
        "extras": {"where": f"({chart.where})" if chart.where else "", "having": ""},
        "orderby": order,
        "row_limit": ROW_LIMIT,
        "series_columns": list(chart.groups) if chart.time else [],
        "is_timeseries": False,
    }


def _params(chart: BoardChart) -> Content:
    """Return the chart's settings, as its form has them."""
    common = {
        "viz_type": DRAWINGS[chart.drawing],
        "adhoc_filters": list(_list_filters(chart)),
        "metrics": list(chart.measures),
        "row_limit": ROW_LIMIT,
    }
    if chart.columns:
        return common | {
            "query_mode": "raw",
            "all_columns": list(chart.columns),
            "order_by_cols": [
                json.dumps([name.removeprefix("-"), not name.startswith("-")])
                for name in chart.order
            ],
        }
    if chart.drawing == "table":
        return common | {"query_mode": "aggregate", "groupby": chart.dimensions}
    shares = all(name.startswith("pass_rate") for name in chart.measures)
    x_axis, *groups = chart.dimensions
    return common | {
        "x_axis": x_axis,
        "groupby": groups,
        "time_grain_sqla": None,  # days and weeks are columns: a grain would shift them
        "stack": "Stack" if chart.drawing == "stacked" else None,
        "show_legend": len(chart.measures) > 1 or bool(groups),
        "rich_tooltip": True,
        "x_axis_sort_asc": True,
        "x_axis_time_format": "%Y-%m-%d",
        "xAxisLabelInterval": "auto" if chart.time else "0",  # 0: all labels
        "xAxisLabelRotation": 0 if chart.time else 30,
        "y_axis_format": ".0%" if shares else "SMART_NUMBER",
        "truncateYAxis": shares,
        "y_axis_bounds": [0, 1] if shares else [None, None],
    }


def _list_filters(chart: BoardChart) -> Iterator[Content]:
    if chart.when:
        yield {
            "clause": "WHERE",
            "expressionType": "SIMPLE",
            "subject": chart.when,
            "operator": "TEMPORAL_RANGE",
            "comparator": "No filter",
        }
    if chart.where:
        yield {"clause": "WHERE", "expressionType": "SQL", "sqlExpression": chart.where}


def _dashboard(source: BiSource) -> Content:
    return {
        "dashboard_title": source.title("Test results"),
        "description": f"{MADE_BY} superset`",
        "slug": source.name("test-results"),
        "uuid": make_uuid(source, "dashboard", ""),
        "position": _positions(source),
        "metadata": {
            "native_filter_configuration": list(_list_native_filters(source)),
            "color_scheme": "supersetColors",
            "label_colors": COLORS,
            "cross_filters_enabled": True,
            "filter_bar_orientation": "HORIZONTAL",  # beside the charts it fills a phone
        },
        "published": True,
        "version": VERSION,
    }


def _positions(source: BiSource) -> Content:
    """Place the charts in rows of the dashboard's grid."""
    charts = list(enumerate(source.catalog.charts.items(), 1))
    rows = [charts[at : at + CHARTS_IN_A_ROW] for at in range(0, len(charts), CHARTS_IN_A_ROW)]
    row_ids = [f"ROW-{number}" for number in range(1, len(rows) + 1)]
    found: Content = {
        "DASHBOARD_VERSION_KEY": "v2",
        "ROOT_ID": {"id": "ROOT_ID", "type": "ROOT", "children": ["GRID_ID"]},
        "GRID_ID": {
            "id": "GRID_ID",
            "type": "GRID",
            "children": row_ids,
            "parents": ["ROOT_ID"],
        },
        "HEADER_ID": {
            "id": "HEADER_ID",
            "type": "HEADER",
            "meta": {"text": source.title("Test results")},
        },
    }
    for row_id, row in zip(row_ids, rows, strict=True):
        found[row_id] = {
            "id": row_id,
            "type": "ROW",
            "children": [f"CHART-{number}" for number, _ in row],
            "parents": ["ROOT_ID", "GRID_ID"],
            "meta": {"background": "BACKGROUND_TRANSPARENT"},
        }
        for number, (name, chart) in row:
            found[f"CHART-{number}"] = {
                "id": f"CHART-{number}",
                "type": "CHART",
                "children": [],
                "parents": ["ROOT_ID", "GRID_ID", row_id],
                "meta": {
                    "chartId": number,
                    "height": HEIGHT,
                    "width": COLUMNS_OF_GRID // CHARTS_IN_A_ROW,
                    "sliceName": source.title(chart.title),
                    "uuid": _chart_uuid(source, name, chart),
                },
            }
    return found


def _list_native_filters(source: BiSource) -> Iterator[Content]:
    """Yield the dashboard's filters; charts whose view lacks the column are out of their scope."""
    charts = source.catalog.charts.values()
    without_time = [number for number, chart in enumerate(charts, 1) if not chart.when]
    yield _native_filter("time", "filter_time", [], without_time)
    for name in source.views["run_results"].filters:
        target = {
            "column": {"name": name},
            "datasetUuid": make_uuid(source, "dataset", "run_results"),
        }
        without = [
            number
            for number, chart in enumerate(charts, 1)
            if name not in source.views[chart.view].columns
        ]
        yield _native_filter(name, "filter_select", [target], without)


def _native_filter(
    name: str, kind: str, targets: Sequence[Content], excluded: Sequence[int]
) -> Content:
    controls = {"multiSelect": True, "enableEmptyFilter": False} if targets else {}
    return {
        "id": f"NATIVE_FILTER-{name}",
        "name": name.capitalize(),
        "type": "NATIVE_FILTER",
        "filterType": kind,
        "targets": list(targets) or [{}],
        "controlValues": controls,
        "defaultDataMask": {"extraFormData": {}, "filterState": {}, "ownState": {}},
        "cascadeParentIds": [],
        "scope": {"rootPath": ["ROOT_ID"], "excluded": list(excluded)},
        "description": "",
    }
