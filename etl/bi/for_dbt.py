"""A dbt package: sources with tests, thin models, a time spine and metrics.

For dbt-postgres, on the views themselves; for dbt-duckdb, on the files of `export --parquet`.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from etl.bi.view_columns import MADE_BY, BiSource, DescribedView

PACKAGE = "result_archiver"
PREFIX = "ra_"
"""Begins the names of models, which must not be those of the views that they read."""
FILES = "{{ var('result_archiver_files', 'results') }}"
"""The folder of an export, for dbt-duckdb."""
UNIQUE = {
    "calendar": "day",
    "plans": "plan_id",
    "run_results": "run_id",
    "series_health": "series_id",
    "environment_sets": "environment_signature",
}
"""The views whose rows one column tells apart."""
TIMES = {"daily_trend": "day", "run_results": "started_on", "unresolved_backlog": "started_on"}
"""The views that metrics are made from, with the day of a row."""
TIME = "started_on"
"""The name of that day in metrics: dbt reserves `day`."""
GROUPS = ("source", "application", "plan", "branch")
SUMS = {
    "daily_trend": {
        "runs": "runs",
        "passed": "passed",
        "failed": "failed",
        "decided": "passed + failed",
        "judged": "passed + failed + aborted + unresolved + pending",
    },
    "run_results": {"run_minutes": "duration_ms / 60000.0"},
    "unresolved_backlog": {"open_tests": "tests_unresolved"},
}
"""The sums that metrics are made from, by view."""
RATIOS = {"pass_rate": ("passed", "decided"), "decided_share": ("decided", "judged")}

Content = dict[str, Any]


def make(source: BiSource) -> Mapping[str, bytes]:
    """Return the files of the package; JSON is YAML."""
    models = {f"models/{PREFIX}{name}.sql": _model(name) for name in source.views}
    files = {
        "dbt_project.yml": _as_yaml(_project()),
        "models/sources.yml": _as_yaml({"version": 2, "sources": [_sources(source)]}),
        "models/models.yml": _as_yaml({"version": 2, "models": list(_list_models(source))}),
        "models/metrics.yml": _as_yaml(_metrics(source)),
    }
    return {path: text.encode() for path, text in (models | files).items()}


def _as_yaml(content: Content) -> str:
    return f"# {MADE_BY} dbt`: change a copy.\n{json.dumps(content, indent=2)}\n"


def _project() -> Content:
    return {
        "name": PACKAGE,
        "version": "1.0.0",
        "config-version": 2,
        "profile": PACKAGE,
        "model-paths": ["models"],
        "models": {PACKAGE: {"+materialized": "view"}},
    }


def _sources(source: BiSource) -> Content:
    is_sqlite = source.dialect == "sqlite"
    location = {"config": {"meta": {"external_location": f"{FILES}/{{name}}.parquet"}}}
    return {
        "name": PACKAGE,
        "schema": "main" if is_sqlite else source.schema,
        **(location if is_sqlite else {}),
        "tables": [_table(name, view) for name, view in source.views.items()],
    }


def _table(name: str, view: DescribedView) -> Content:
    return {
        "name": name,
        "description": view.description,
        "columns": [
            {
                "name": column,
                "description": each.description,
                **({"data_tests": ["unique", "not_null"]} if UNIQUE.get(name) == column else {}),
            }
            for column, each in view.columns.items()
        ],
    }


def _model(name: str) -> str:
    relation = f"{{{{ source('{PACKAGE}', '{name}') }}}}"
    return f"-- {MADE_BY} dbt`: change a copy.\nSELECT * FROM {relation}\n"


def _list_models(source: BiSource) -> Iterator[Content]:
    for name, view in source.views.items():
        model: Content = {"name": f"{PREFIX}{name}", "description": view.description}
        if name == "calendar":
            model["time_spine"] = {"standard_granularity_column": "day"}
            model["columns"] = [{"name": "day", "granularity": "day"}]
        yield model


def _metrics(source: BiSource) -> Content:
    measures = [name for sums in SUMS.values() for name in sums]
    simple = [
        {
            "name": name,
            "label": name.replace("_", " ").capitalize(),
            "type": "simple",
            "type_params": {"measure": name},
        }
        for name in measures
    ]
    ratios = [
        {
            "name": name,
            "label": name.replace("_", " ").capitalize(),
            "type": "ratio",
            "type_params": {"numerator": numerator, "denominator": denominator},
        }
        for name, (numerator, denominator) in RATIOS.items()
    ]
    return {
        "version": 2,
        "semantic_models": [_semantic_model(source, name) for name in SUMS],
        "metrics": simple + ratios,
    }


def _semantic_model(source: BiSource, name: str) -> Content:
    columns = source.views[name].columns
    time = {
        "name": TIME,
        "expr": TIMES[name],
        "type": "time",
        "type_params": {"time_granularity": "day"},
    }
    groups = [{"name": each, "type": "categorical"} for each in GROUPS if each in columns]
    return {
        "name": name,
        "model": f"ref('{PREFIX}{name}')",
        "primary_entity": f"{name}_row",
        "defaults": {"agg_time_dimension": TIME},
        "dimensions": [time, *groups],
        "measures": [
            {"name": measure, "agg": "sum", "expr": expression}
            for measure, expression in SUMS[name].items()
        ],
    }
