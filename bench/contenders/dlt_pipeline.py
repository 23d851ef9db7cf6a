"""The same task as a tuned dlt pipeline: threads that fetch, typed columns, merge by keys.

The pipeline makes flat rows itself, since dlt unnests tests into child tables more slowly. It loads
by COPY of CSV on PostgreSQL, and with primary keys on SQLite.
"""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dlt

from bench.contenders.script import COLUMNS, KEYS, Rows, fetcher, make_rows, read_run_ids

BATCH_RUNS = 100
TYPES = {"TEXT": "text", "BIGINT": "bigint", "TIMESTAMP": "timestamp"}
SETTINGS = {
    "RUNTIME__DLTHUB_TELEMETRY": "false",
    "RUNTIME__LOG_LEVEL": "ERROR",
    "EXTRACT__WORKERS": os.environ["CONNECTIONS"],
    "EXTRACT__MAX_PARALLEL_ITEMS": "64",
    "DATA_WRITER__BUFFER_MAX_ITEMS": "20000",
    "NORMALIZE__DATA_WRITER__DISABLE_COMPRESSION": "true",
    "RESTORE_FROM_DESTINATION": "false",
}
_local = threading.local()


def fetch_rows(run_ids: list[str]) -> Rows:
    """Fetch some runs, with one session per thread, and return their rows by table."""
    if not hasattr(_local, "fetch"):
        _local.fetch = fetcher()
    merged: Rows = {table: [] for table in COLUMNS}
    for run_id in run_ids:
        for table, rows in make_rows(run_id, _local.fetch(run_id)).items():
            merged[table] += rows
    return merged


@dlt.resource(selected=False)
def batches() -> Iterator[list[str]]:
    """Yield the run IDs in batches."""
    run_ids = list(read_run_ids())
    for start in range(0, len(run_ids), BATCH_RUNS):
        yield run_ids[start : start + BATCH_RUNS]


@dlt.transformer(selected=False)
def fetched(run_ids: list[str]) -> Any:
    """Fetch a batch in one of the extracting threads."""

    @dlt.defer
    def fetch() -> Rows:
        return fetch_rows(run_ids)

    return fetch()


def table(name: str) -> Any:
    """Return the resource that selects the rows of one table from fetched batches."""
    columns = {
        column: {"name": column, "data_type": TYPES[kind], "nullable": column not in KEYS[name]}
        for column, kind in COLUMNS[name].items()
    }
    names = list(columns)

    def rows(fetched_rows: Rows) -> Iterator[list[dict[str, Any]]]:
        yield [dict(zip(names, row, strict=True)) for row in fetched_rows[name]]

    decorate: Callable[..., Any] = dlt.transformer(
        name=name, write_disposition="merge", primary_key=KEYS[name], columns=columns
    )
    return decorate(rows)


def main() -> None:
    """Extract, normalize and load all runs of the list."""
    os.environ |= SETTINGS
    url = os.environ["DATABASE_URL"]
    if url.startswith("sqlite"):
        destination = dlt.destinations.sqlalchemy(url, create_primary_keys=True)
        dataset, file_format = "main", None
    else:
        credentials = url.replace("+psycopg", "")
        destination = dlt.destinations.postgres(credentials)
        dataset, file_format = "archive", "csv"
    pipeline = dlt.pipeline(
        "results",
        pipelines_dir=str(Path.cwd() / "pipelines"),
        destination=destination,
        dataset_name=dataset,
    )
    pipes = [batches() | fetched | table(name) for name in COLUMNS]
    info = pipeline.run(pipes, loader_file_format=file_format)
    info.raise_on_failed_jobs()


if __name__ == "__main__":
    main()
