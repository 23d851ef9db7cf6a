"""A script written in an hour: a session, json(), upserts, a commit per run."""

import os
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import requests

KEYS = {
    "runs": ["run_id"],
    "environments": ["run_id", "position"],
    "tests": ["run_id", "position"],
    "counts": ["run_id", "test_position"],
}
COLUMNS = {
    "runs": {
        "run_id": "TEXT",
        "result_id": "TEXT",
        "name": "TEXT",
        "application": "TEXT",
        "status": "TEXT",
        "started_at": "TIMESTAMP",
        "duration_ms": "BIGINT",
    },
    "environments": {
        "run_id": "TEXT",
        "position": "BIGINT",
        "name": "TEXT",
        "os": "TEXT",
        "viewport": "TEXT",
        "device": "TEXT",
        "browser": "TEXT",
    },
    "tests": {
        "run_id": "TEXT",
        "position": "BIGINT",
        "test_id": "TEXT",
        "name": "TEXT",
        "status": "TEXT",
        "type": "TEXT",
        "sitemap": "TEXT",
    },
    "counts": {
        "run_id": "TEXT",
        "test_position": "BIGINT",
        "failed": "BIGINT",
        "passed": "BIGINT",
        "aborted": "BIGINT",
        "pending": "BIGINT",
        "unresolved": "BIGINT",
    },
}
Rows = dict[str, list[tuple[Any, ...]]]


class Database:
    """A connection to SQLite or PostgreSQL, with the upsert of each table."""

    def __init__(self, url: str) -> None:
        self.connection: Any
        if url.startswith("sqlite:///"):
            self.connection = sqlite3.connect(url.removeprefix("sqlite:///"))
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = NORMAL")
            mark = "?"
        else:
            self.connection = psycopg.connect(url.replace("+psycopg", ""))
            mark = "%s"
        self.statements = {table: upsert(table, mark) for table in COLUMNS}

    def create_tables(self) -> None:
        for table, columns in COLUMNS.items():
            declared = ", ".join(f"{name} {kind}" for name, kind in columns.items())
            key = ", ".join(KEYS[table])
            self.connection.execute(
                f"CREATE TABLE IF NOT EXISTS {table} ({declared}, PRIMARY KEY ({key}))"
            )
        self.connection.commit()

    def write(self, rows: Rows) -> None:
        cursor = self.connection.cursor()
        for table, statement in self.statements.items():
            cursor.executemany(statement, rows[table])


def upsert(table: str, mark: str) -> str:
    names = list(COLUMNS[table])
    marks = ", ".join([mark] * len(names))
    changes = ", ".join(f"{name} = excluded.{name}" for name in names if name not in KEYS[table])
    return (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})"
        f" ON CONFLICT ({', '.join(KEYS[table])}) DO UPDATE SET {changes}"
    )


def fetcher() -> Callable[[str], Any]:
    """Return a function that fetches and decodes a run."""
    session = requests.Session()
    session.params = {"apiKey": os.environ["APPLITOOLS_API_KEY"]}

    def fetch(run_id: str) -> Any:
        response = session.get(f"{os.environ['API_URL']}/api/result/{run_id}", timeout=30)
        response.raise_for_status()
        return response.json()["result"]

    return fetch


def make_rows(run_id: str, run: dict[str, Any]) -> Rows:
    """Return the rows of one run by table."""
    own = ("id", "name", "application", "status", "started_at", "duration")
    of_environment = ("name", "os", "viewport", "device", "browser")
    of_test = ("id", "name", "status", "type", "sitemap")
    counters = ("failed", "passed", "aborted", "pending", "unresolved")
    results = [run["results"], *(test["results"] for test in run["tests"])]
    return {
        "runs": [(run_id, *(run.get(name) for name in own))],
        "environments": [
            (run_id, position, *(item.get(name) for name in of_environment))
            for position, item in enumerate(run["environments"], 1)
        ],
        "tests": [
            (run_id, position, *(item.get(name) for name in of_test))
            for position, item in enumerate(run["tests"], 1)
        ],
        "counts": [
            (run_id, position, *(result.get(name) for name in counters))
            for position, result in enumerate(results)
        ],
    }


def read_run_ids() -> Sequence[str]:
    return Path(sys.argv[1]).read_text().split()


def main() -> None:
    """Fetch and write run by run."""
    database = Database(os.environ["DATABASE_URL"])
    database.create_tables()
    fetch = fetcher()
    for run_id in read_run_ids():
        database.write(make_rows(run_id, fetch(run_id)))
        database.connection.commit()


if __name__ == "__main__":
    main()
