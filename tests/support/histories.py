"""Histories of runs: answers in short, stored as a pass does, and the counted tables read back."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Engine, Table, delete, select

from etl import clock
from etl.answers.compression import compress
from etl.answers.normalize import normalize
from etl.answers.outcome import Answer
from etl.answers.payload import decode
from etl.answers.test_names import name_tests
from etl.archive import identity, store
from etl.config.loading import load
from etl.config.settings import DEFAULT_RULES, Reporting, Rules
from etl.db import archive_settings
from etl.db.database import reading, writing
from etl.db.schema import (
    PLAN_NAMES,
    metadata,
    plan_variants,
    series,
    series_metrics,
)
from etl.derived import refresh
from etl.derived.plans import Application
from etl.derived.stored_series import STORED_SERIES, SeriesColumns
from etl.ingest import begin
from etl.ingest.context import IngestContext
from etl.intake.entries import ListedRun
from etl.intake.lists import Given
from etl.ledger import leases, tracking
from etl.ledger.lifecycle import Standing, State
from etl.ledger.tracking import Entry
from etl.ledger.verdicts import Recorded
from tests.support.dump import FIXED, Row

BERLIN = ZoneInfo("Europe/Berlin")
WORDS = {"P": "passed", "F": "failed", "A": "aborted", "U": "unresolved", "N": "pending"}
CHROME = {"name": "env-1", "os": "Linux", "browser": "Chrome", "device": "Desktop"}
SAFARI = {"name": "env-2", "os": "macOS", "browser": "Safari", "device": "Desktop"}
ON_CHROME = '[["Linux","Chrome","Desktop",null]]'
ON_SAFARI = '[["macOS","Safari","Desktop",null]]'
ON_BOTH = '[["Linux","Chrome","Desktop",null],["macOS","Safari","Desktop",null]]'


def a_run(started_at: str | None, letters: Mapping[str, str], **fields: Any) -> dict[str, Any]:
    """Return what stands under `result`; `letters` has the results of tests by name.

    "PF" gives two results of that name; any other letter than those of WORDS an unknown word.
    """
    each = [(name, letter) for name, several in letters.items() for letter in several]
    return {
        "name": "nightly",
        "application": "shop",
        "status": "passed",
        "environments": [CHROME],
        "started_at": started_at,
        "duration": 60_000,
        "tests": [
            {"name": name, "type": "e2e", "status": WORDS.get(letter, "sleeping")}
            for name, letter in each
        ],
    } | fields


def derive_with(engine: Engine, reporting: Reporting) -> None:
    """Have an archive without runs keep these settings."""
    archive_settings.begin_rebuild(engine, reporting)
    archive_settings.end_rebuild(engine, reporting)


def see(
    engine: Engine,
    at: datetime,
    seen: Mapping[str, Mapping[str, Any]],
    *,
    rules: Rules = DEFAULT_RULES,
    zone: tzinfo = BERLIN,
    source: str = "default",
) -> None:
    """Store what the API answers for runs of an account at a time, and count it, as a pass does."""
    with writing(engine) as connection:
        keep(connection, at, seen, zone, source, rules=rules)
        count_all(connection, rules)


def count_all(connection: Connection, rules: Rules = DEFAULT_RULES) -> None:
    """Bring all series and durations up to date that are marked."""
    while refresh.refresh_some(connection, rules):
        pass


def keep(
    connection: Connection,
    at: datetime,
    seen: Mapping[str, Mapping[str, Any]],
    zone: tzinfo = BERLIN,
    source: str = "default",
    *,
    rules: Rules = DEFAULT_RULES,
) -> None:
    """Store what the API answers for runs at a time; their series are still to be counted."""
    answers = [_received(source, run_id, answer, at, zone) for run_id, answer in seen.items()]
    standing = Standing(State.SETTLED, None)
    tracking.track(connection, [Entry(run_id, source, None, {}) for run_id in seen], at)
    store.store_answers(connection, answers, rules)
    leases.record(connection, [Recorded(run_id, standing, at) for run_id in seen])


def measure_all(engine: Engine, now: datetime, zone: tzinfo = BERLIN) -> None:
    """Measure the test identity of all applications, and refresh, as a pass does."""
    with reading(engine) as connection:
        names = select(plan_variants.c.source, plan_variants.c.application).distinct()
        applications = {Application(*row) for row in connection.execute(names)}
    identity.measure_again(engine, applications, now, zone)
    refresh.refresh_marked(engine)


def _received(
    source: str, run_id: str, answer: Mapping[str, Any], at: datetime, zone: tzinfo
) -> Answer:
    body = json.dumps({"result": answer}).encode()
    payload = decode(body)
    packed = compress(body, hashlib.sha256(body).hexdigest())
    rows = normalize(run_id, payload, zone)
    named = name_tests(rows.tests)
    return Answer(run_id, source, at, packed, payload.content_hash, rows, named)


def label(engine: Engine, commits: Mapping[str, str]) -> None:
    """Track runs, again or for the first time, with the commit that they are of."""
    listed = [ListedRun(run_id, labels={"commit": commit}) for run_id, commit in commits.items()]
    begin.track(IngestContext(engine, load(None, {}), clock.now), Given(listed))


def forget_all(engine: Engine) -> None:
    """Empty all tables but those that migrations fill."""
    with writing(engine) as connection:
        for table in reversed(metadata.sorted_tables):
            if table.name not in FIXED:
                connection.execute(delete(table))


_METRICS = [column for column in series_metrics.c if not column.primary_key]


def named_rows(engine: Engine, table: Table) -> list[Row]:
    """Return a table's rows without keys that we make up: with the names of what they are of."""
    with reading(engine) as connection:
        rows = _rows(connection, table)
    made_up = (
        "series_id",
        "variant_id",
        "plan_id",
        "test_id",
        "roster_id",
        "metrics_id",
    )
    return [{name: row[name] for name in row if name not in made_up} for row in rows]


def _rows(connection: Connection, table: Table) -> list[Row]:
    if "variant_id" not in table.c or table is plan_variants:
        return [dict(row) for row in connection.execute(select(table)).mappings()]
    of = plan_variants.c
    query = select(*PLAN_NAMES, of.environment_signature, *table.c).join(
        table, table.c.variant_id == of.variant_id
    )
    if table is series:
        return [row for columns in STORED_SERIES for row in _series_rows(connection, columns)]
    return [dict(row) for row in connection.execute(query).mappings()]


def _series_rows(connection: Connection, columns: SeriesColumns) -> Iterator[Row]:
    """Yield the names and metrics of stored series."""
    tables, _, *test = columns
    named = [each.label(name) for name, each in zip(("test", "type", "test_id"), test, strict=True)]
    of = (*PLAN_NAMES, plan_variants.c.environment_signature, plan_variants.c.variant_id)
    query = select(*of, *named, *_METRICS).select_from(tables)
    yield from (dict(row) for row in connection.execute(query).mappings())


def list_recent(connection: Connection) -> list[tuple[str | None, str]]:
    """Return the test's name and the last results of each series, sorted."""
    rows = [row for columns in STORED_SERIES for row in _series_rows(connection, columns)]
    return sorted((row["test"], row["recent"]) for row in rows)


def rounded(value: Any) -> Any:
    """Return `value` without the last digits of its numbers, where two ways to compute part."""
    match value:
        case float():
            return round(value, 12)
        case dict():
            return {name: rounded(member) for name, member in value.items()}
        case list() | tuple():
            return [rounded(member) for member in value]
    return value
