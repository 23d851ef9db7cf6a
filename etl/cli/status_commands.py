"""`status` and `show`: what the archive and its ledger say."""

from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, Table, select

from etl import clock, display
from etl.cli.session import open_session
from etl.db import database
from etl.db.schema import (
    counts,
    environments,
    ingests,
    labels,
    revisions,
    runs,
    tests,
    tracked_runs,
    warnings,
)
from etl.errors import UsageError
from etl.ledger import standings

RECENT = 5
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
LEDGER_FACTS = ("state", "due_at", "last_fetched_at", "fetches", "last_error")


def status(path: Path | None, *, as_json: bool) -> int:
    """Show the ledger at a glance."""
    session = open_session(path)
    database.require_archive(session.engine)
    now = clock.now()
    with database.reading(session.engine) as connection:
        found = _status(connection, now)
    if as_json:
        display.as_json(found)
    else:
        _print_status(found, now)
    return 0


def _status(connection: Connection, now: datetime) -> dict[str, Any]:
    passes = select(ingests).order_by(ingests.c.id.desc()).limit(RECENT)
    failures = (
        select(tracked_runs.c.run_id, tracked_runs.c.state, tracked_runs.c.last_error)
        .where(tracked_runs.c.state.in_(["failed", "retrying"]))
        .order_by(tracked_runs.c.state, tracked_runs.c.run_id)
        .limit(RECENT)
    )
    return {
        **standings.standings(connection, now)._asdict(),
        "passes": _rows(connection, passes),
        "failures": _rows(connection, failures),
    }


def _rows(connection: Connection, query: Select[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(query).mappings()]


def _print_status(found: dict[str, Any], now: datetime) -> None:
    display.table(["state", "runs"], found["by_state"].items())
    display.say(f"{found['due']} due now, {found['leased']} being fetched")
    if found["oldest_due_at"]:
        display.say(f"waiting since {display.safe(found['oldest_due_at'])} UTC at the longest")
    if found["next_due_at"]:
        display.say(f"next due at {display.safe(found['next_due_at'])} UTC")
    if found["passes"]:
        names = ["started_at", "new", "changed", "unchanged", "failed", "rejected", "exit_code"]
        display.say(f"\nlast passes (now {display.safe(now)} UTC)")
        display.table(names, [[row[name] for name in names] for row in found["passes"]])
    if found["failures"]:
        display.say("\nfailed or to be tried again (first few; `retry` makes them due)")
        display.table(
            ["run_id", "reason"], [(r["run_id"], r["last_error"]) for r in found["failures"]]
        )


def show(path: Path | None, run_id: str, *, as_json: bool) -> int:
    """Show one run with its history. Raises UsageError for a run that is not tracked."""
    session = open_session(path)
    database.require_archive(session.engine)
    with database.reading(session.engine) as connection:
        found = _run(connection, run_id)
    if as_json:
        display.as_json(found)
    else:
        _print_run(found)
    return 0


def _run(connection: Connection, run_id: str) -> dict[str, Any]:
    tracked = _of(connection, tracked_runs, run_id)
    if not tracked:
        raise UsageError(
            f"run {display.safe(run_id)}: is not tracked; `result-archiver track` adds it"
        )
    ledger_row = {
        name: value for name, value in tracked[0].items() if name not in {"read_token", "gone_at"}
    }
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
    return _rows(
        connection, select(table).where(table.c.run_id == run_id).order_by(*table.primary_key)
    )


def _print_run(found: dict[str, Any]) -> None:
    run, standing = found["run"], found["ledger"]
    if run is None:
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
