"""The limit of the database alone: write prepared rows into the archive's own tables.

It writes by executemany on SQLite and by COPY on PostgreSQL, and reads and checks nothing first.
It prints the seconds that the writes took.
"""

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import requests
from sqlalchemy import Connection

from bench.contenders.script import read_run_ids
from etl.answers.compression import compress
from etl.answers.normalize import normalize
from etl.answers.payload import decode
from etl.archive.history import (
    DERIVED_TABLES,
    LedgerFields,
    Revision,
    derive_outcome,
    derive_rows,
)
from etl.db import bulk, database, schema
from etl.derived.plans import Application
from etl.ledger.lifecycle import State

RUNS_A_TRANSACTION = 200
Tables = dict[str, list[Any]]


def make_tables(
    run_id: str, body: bytes, seen_at: datetime, ids_until: Mapping[Application, datetime]
) -> Tables:
    """Return the rows of one run by table, as an ingest leaves them; see `history.derived`."""
    payload = decode(body)
    rows = normalize(run_id, payload, UTC)
    stretch = Revision(1, seen_at, None, payload.content_hash, rows)
    kept = compress(body, hashlib.sha256(body).hexdigest())
    outcome = derive_outcome("default", stretch, ids_until)
    tracked = {
        "run_id": run_id,
        "source": "default",
        "state": State.SETTLED,
        "attempts": 0,
        "first_tracked_at": seen_at,
        "last_fetched_at": seen_at,
        "fetches": 1,
    }
    payload_row = (
        run_id, 1, kept.compressed, kept.encoding, kept.size, kept.sha256, seen_at, None
    )  # fmt: skip
    return {
        "tracked_runs": [tuple(tracked.get(each.name) for each in schema.tracked_runs.columns)],
        "plan_variants": [outcome.variant],
        "environment_combinations": [outcome.combination],
        "rosters": [outcome.roster],
        **derive_rows(LedgerFields(run_id, "default", None, None), [stretch], ids_until),
        "payloads": [payload_row],
    }


def merge_tables(batch: Sequence[Tables]) -> Tables:
    """Return the rows of several runs by table."""
    together: Tables = defaultdict(list)
    for tables in batch:
        for name, rows in tables.items():
            together[name] += rows
    return together


def write(connection: Connection, tables: Tables) -> None:
    """Write the rows of `prepare_values`."""
    for name in ("plan_variants", "environment_combinations", "rosters"):
        table = schema.metadata.tables[name]
        names = [column.name for column in table.columns]
        named = {row[0]: dict(zip(names, row, strict=True)) for row in tables.get(name, [])}
        if named:
            insert = bulk.upsert_into(connection, table).on_conflict_do_nothing()
            connection.execute(insert, list(named.values()))
    for name in ("tracked_runs", *DERIVED_TABLES, "payloads"):
        table, rows = schema.metadata.tables[name], tables.get(name)
        if not rows:
            continue
        columns = ", ".join(f'"{column.name}"' for column in table.columns)
        if connection.dialect.name == "sqlite":
            marks = ", ".join("?" * len(table.columns))
            statement = f"INSERT INTO {name} ({columns}) VALUES ({marks})"
            connection.exec_driver_sql(statement, rows)
            continue
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(f"COPY {name} ({columns}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)


def prepare_values(connection: Connection, tables: Tables) -> Tables:
    """Return rows with values that the driver accepts."""
    return {
        name: bulk.to_driver_values(connection, schema.metadata.tables[name].columns, rows)
        for name, rows in tables.items()
    }


def main() -> None:
    """Make all rows, then write them."""
    session = requests.Session()
    session.params = {"apiKey": os.environ["APPLITOOLS_API_KEY"]}
    seen_at = datetime(2026, 11, 1, tzinfo=UTC)
    made = []
    for run_id in read_run_ids():
        body = session.get(f"{os.environ['API_URL']}/api/result/{run_id}", timeout=30).content
        made.append(make_tables(run_id, body, seen_at, {}))
    engine = database.connect(os.environ["DATABASE_URL"])
    database.prepare(engine)
    with database.reading(engine) as connection:
        batches = [
            prepare_values(connection, merge_tables(made[start : start + RUNS_A_TRANSACTION]))
            for start in range(0, len(made), RUNS_A_TRANSACTION)
        ]
    began = time.perf_counter()
    for batch in batches:
        with database.writing(engine) as connection:
            write(connection, batch)
    print(time.perf_counter() - began)
    engine.dispose()


if __name__ == "__main__":
    main()
