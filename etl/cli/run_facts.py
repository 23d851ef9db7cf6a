"""Everything about one run: its rows in the archive and in the ledger."""

from typing import Any

from sqlalchemy import Connection, Table, select

from etl import display
from etl.db.schema import (
    counts,
    environments,
    labels,
    revisions,
    runs,
    tests,
    tracked_runs,
    warnings,
)
from etl.errors import UsageError

RUN_FACTS = (
    "run_id",
    "application",
    "name",
    "status",
    "started_at",
    "duration_ms",
    "source",
    "revision",
    "archived_at",
    "changed_at",
    "gone_at",
)
TAKE_BACK = "`result-archiver track --again RUN_ID` takes it back"
HIDDEN_IN_LEDGER = ("read_token", "gone_at", "context_changed_at")
"""A secret, and columns that the row of `runs` shows."""
LEDGER_FACTS = ("state", "due_at", "last_fetched_at", "fetches", "last_error", "failing_since")


def read_run(connection: Connection, run_id: str) -> dict[str, Any]:
    """Return the rows of a run by kind. Raises UsageError for a run that is not tracked."""
    tracked = _of(connection, tracked_runs, run_id)
    if not tracked:
        raise UsageError(
            f"run {display.safe(run_id)}: is not tracked", "`result-archiver track` adds it"
        )
    ledger_row = {name: value for name, value in tracked[0].items() if name not in HIDDEN_IN_LEDGER}
    ledger_row["has_read_token"] = tracked[0]["read_token"] is not None
    archived = _of(connection, runs, run_id)
    return {
        "run": archived[0] if archived else None,
        "ledger": ledger_row,
        "labels": {row["name"]: row["value"] for row in _of(connection, labels, run_id)},
        "environments": _of(connection, environments, run_id),
        "tests": _of(connection, tests, run_id),
        "counts": _of(connection, counts, run_id),
        "revisions": _of(connection, revisions, run_id),
        "warnings": _of(connection, warnings, run_id),
    }


def _of(connection: Connection, table: Table, run_id: str) -> list[dict[str, Any]]:
    """Return a run's rows of `table` in the order of its key."""
    query = select(table).where(table.c.run_id == run_id).order_by(*table.primary_key)
    return [dict(row) for row in connection.execute(query).mappings()]


def print_run(found: dict[str, Any]) -> None:
    """Print the rows of a run as tables."""
    run, standing = found["run"], found["ledger"]
    if standing["state"] == "dropped":
        run_id = display.safe(standing["run_id"])
        display.say(f"run {run_id}: was dropped; {TAKE_BACK}")
    elif run is None:
        display.say(f"run {display.safe(standing['run_id'])}: nothing archived yet")
    else:
        facts = [(name, run[name]) for name in RUN_FACTS if run[name] is not None]
        display.table(["run", ""], facts)
    facts = [(name, standing[name]) for name in LEDGER_FACTS if standing[name] is not None]
    display.table(["ledger", ""], facts)
    if found["labels"]:
        display.table(["label", "value"], sorted(found["labels"].items()))
    if run is not None:
        _print_content(found)


def _print_content(found: dict[str, Any]) -> None:
    columns = ["os", "browser", "device", "viewport", "name"]
    display.table(
        ["environment", *columns[1:]],
        [[row[name] for name in columns] for row in found["environments"]],
    )
    counters = {row["test_position"]: row for row in found["counts"]}
    shown = ["failed", "passed", "aborted", "pending", "unresolved"]
    display.table(
        ["#", "test", "status", *shown],
        [
            (
                row["position"],
                row["name"],
                row["status"],
                *[counters[row["position"]][name] for name in shown],
            )
            for row in found["tests"]
        ],
    )
    history = ["revision", "observed_at", "status", *shown]  # each ends where the next begins
    display.table(history, [[row[name] for name in history] for row in found["revisions"]])
    if found["warnings"]:
        columns = ["revision", "path", "value", "reason"]
        display.table(columns, [[row[name] for name in columns] for row in found["warnings"]])
