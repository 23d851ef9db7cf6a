"""result-archiver: keeps the results of Applitools Autonomous runs for good, in SQL.

The wings, from the outside in: `cli`; `ingest` (one pass) and the service; `archive` (answers into
tables); `fetch`, `intake`, `export`, `telemetry`; `ledger` and `reports`; `derived`; `db`; below
them `config`, `secrets`, and the pure `answers`. docs/ARCHITECTURE.md follows one run through them.
"""

__version__ = "0.1.0"
