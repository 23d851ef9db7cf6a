"""The SQL of charts and measures, on SQLite and on PostgreSQL."""

from collections.abc import Iterable, Sequence

from etl.bi.chart_catalog import BoardChart, Catalog, Measure


def measure_sql(measure: Measure) -> str:
    """Return the aggregate of a measure; it is the same on both databases."""
    if measure.rows:
        return "count(*)"
    if measure.newest:
        return f"max({measure.newest})"
    if measure.mean:
        return f"sum({measure.mean}) / {measure.per}.0 / nullif(count({measure.mean}), 0)"
    total = _add(measure.sum)
    if measure.over:
        numerator = f"({total})" if len(measure.sum) > 1 else total
        return f"{numerator} * 1.0 / nullif({_add(measure.over)}, 0)"
    return f"{total} / {measure.per}.0" if measure.per > 1 else total


def _add(columns: Sequence[str]) -> str:
    return " + ".join(f"sum({name})" for name in columns)


def chart_sql(
    catalog: Catalog,
    chart: BoardChart,
    schema: str | None,
    filters: Iterable[str] = (),
) -> str:
    """Return the query of a chart; `filters` are further conditions."""
    selected = [*chart.columns, *chart.dimensions]
    selected += [f"{measure_sql(catalog.measures[name])} AS {name}" for name in chart.measures]
    conditions = [*filter(None, [chart.where]), *filters]
    view = f"{schema}.{chart.view}" if schema else chart.view
    lines = ["SELECT " + ",\n       ".join(selected), f"  FROM {view}"]
    if conditions:
        lines.append(" WHERE " + "\n   AND ".join(conditions))
    if chart.measures:
        lines.append(f" GROUP BY {', '.join(chart.dimensions)}")
    lines.append(f" ORDER BY {', '.join(map(_direction, chart.order))}")
    return "\n".join(lines)


def _direction(name: str) -> str:
    return f"{name[1:]} DESC" if name.startswith("-") else name
