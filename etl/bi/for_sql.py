"""The query of each chart for each database, for Metabase, Tableau, Evidence and people."""

import textwrap
from collections.abc import Mapping

from etl.bi.chart_catalog import BoardChart
from etl.bi.chart_sql import chart_sql
from etl.bi.view_columns import MADE_BY, BiSource

WIDTH = 97
NOTE = f"{MADE_BY} sql`: change a copy."


def make(source: BiSource) -> Mapping[str, bytes]:
    """Return a file for each chart and database."""
    schemas = {"postgresql": source.quoted_schema, "sqlite": None}
    return {
        f"{name}.{dialect}.sql": (
            f"{_head(chart)}\n{chart_sql(source.catalog, chart, schema)};\n".encode()
        )
        for name, chart in source.catalog.charts.items()
        for dialect, schema in schemas.items()
    }


def _head(chart: BoardChart) -> str:
    lines = [*textwrap.wrap(f"{chart.title}. {chart.description}", WIDTH), NOTE]
    return "\n".join(f"-- {line}" for line in lines)
