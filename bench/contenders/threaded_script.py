"""The same script after a day of work: threads fetch, a transaction writes 100 runs."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from bench.contenders.script import Database, Rows, fetcher, make_rows, read_run_ids

BATCH_RUNS = 100
_local = threading.local()


def fetch_rows(run_id: str) -> Rows:
    """Fetch a run and make its rows, with one session per thread."""
    if not hasattr(_local, "fetch"):
        _local.fetch = fetcher()
    return make_rows(run_id, _local.fetch(run_id))


def main() -> None:
    """Fetch with CONNECTIONS threads, and write batch by batch."""
    database = Database(os.environ["DATABASE_URL"])
    database.create_tables()
    with ThreadPoolExecutor(int(os.environ["CONNECTIONS"])) as pool:
        fetched = pool.map(fetch_rows, read_run_ids())
        while batch := list(islice(fetched, BATCH_RUNS)):
            merged: Rows = {table: [] for table in database.statements}
            for rows in batch:
                for table, of_run in rows.items():
                    merged[table] += of_run
            database.write(merged)
            database.connection.commit()


if __name__ == "__main__":
    main()
