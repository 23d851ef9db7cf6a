"""Dump an archive, so that a test can compare all of it at once."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Table, select

from etl.db.schema import metadata

Row = dict[str, Any]

PASSES = ("ingests", "health", "source_limits", "workers", "pass_workers")
"""The tables that tell of passes, not of runs."""
LEDGER = ("tracked_runs", *PASSES)
"""The tables that may change when nothing new was seen (DESIGN, promise 1)."""
COUNTED = (
    "plan_variants",
    "environment_combinations",
    "rosters",
    "outcomes",
    "status_changes",
    "series",
    "series_metrics",
    "variant_rosters",
    "dirty_marks",
    "durations",
    "plan_summaries",
    "daily_results",
    "weekly_results",
    "identities",
    "identity_decisions",
    "aliases",
)
"""The tables that reports count from; tests/test_golden.py has their rows."""
DECISIONS = ("identity_decisions",)
"""When test ids are first known to repeat depends on the answers that came before."""
FIXED = ("dates", "age_buckets", "data_dictionary", "archive_settings")
"""The tables that migrations fill: no run changes them."""


def dump(connection: Connection, leave_out: Collection[str] = ()) -> dict[str, list[Row]]:
    """Return the rows of all tables that are filled, but those to `leave_out`, by name."""
    return {
        table.name: rows_of(connection, table)
        for table in metadata.sorted_tables
        if table.name not in {*leave_out, *FIXED}
    }


def rows_of(connection: Connection, table: Table) -> list[Row]:
    """Return a table's rows in the order of their keys, whatever the database sorts texts by."""
    rows = [dict(row) for row in connection.execute(select(table)).mappings()]
    return sorted(rows, key=lambda row: tuple(row[column.name] for column in table.primary_key))
