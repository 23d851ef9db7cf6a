"""Promise 3: what the payloads say is what the tables say, and `verify` and `replay` prove it."""

import hashlib
import json
import os
import pty
import subprocess
import threading
import tracemalloc
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from copy import deepcopy
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import click
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import Connection, Engine, Table, delete, event, insert, select, update

from etl.answers.compression import ENCODING, compress, decompress
from etl.answers.normalize import normalize
from etl.answers.outcome import Answer
from etl.answers.payload import (
    COUNTER_FIELDS,
    ENVIRONMENT_FIELDS,
    RUN_FIELDS,
    TEST_FIELDS,
    Payload,
    decode,
)
from etl.answers.rows import COUNTERS, ECHO_WARNING
from etl.answers.test_names import name_tests
from etl.archive import archived_runs, history, payload_batches, store
from etl.archive.differences import BatchFindings, Difference
from etl.archive.payload_batches import DEFAULT_LIMITS, BatchLimits
from etl.archive.replay import replay_archive
from etl.archive.verify import verify_archive
from etl.cli import rebuild_commands
from etl.config.settings import DEFAULT_RULES, Reporting
from etl.db import bulk, database
from etl.db.database import connect, prepare, reading, writing
from etl.db.schema import (
    counts,
    drift,
    environments,
    labels,
    metadata,
    outcomes,
    payloads,
    plan_summaries,
    rejects,
    revisions,
    runs,
    tests,
    to_text,
    tracked_runs,
    warnings,
)
from etl.derived import aggregates
from etl.fetch.breaker import NO_RESULTS
from etl.ledger import leases, tracking
from etl.ledger.lifecycle import Standing, State
from etl.ledger.tracking import Entry
from etl.ledger.verdicts import Recorded
from tests.support.dump import FIXED, Row, rows_of
from tests.support.fake_api import SAMPLE, FakeApi, result
from tests.support.fake_api import Answer as Given
from tests.support.histories import count_all
from tests.support.program import COMMAND, Program, bare_program, program

START = datetime(2024, 3, 1, 18, 0, 0, 123000, UTC)
RUN_IDS = ("run-1", "run-2", "run-3", "run-4")
DERIVED = [metadata.tables[name] for name in history.DERIVED_TABLES]
SHARED = [*aggregates.AGGREGATES, *payload_batches.NAME_TABLES]
"""The tables whose rows follow from payloads of more than one run."""


def after(minutes: int) -> datetime:
    return START + timedelta(minutes=minutes)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A new archive that tracks RUN_IDS."""
    engine = connect(database_url)
    prepare(engine)
    track_anew(engine)
    yield engine
    engine.dispose()


def track_anew(engine: Engine) -> None:
    """Forget all runs, and track RUN_IDS."""
    with writing(engine) as connection:
        for table in (tracked_runs, drift, *SHARED):
            connection.execute(delete(table))
        tracking.track(connection, [Entry(run_id, None, None, {}) for run_id in RUN_IDS], START)


def examples(engine: Engine, on_sqlite: int, on_postgresql: int) -> settings:
    is_sqlite = engine.dialect.name == "sqlite"
    return settings(max_examples=on_sqlite if is_sqlite else on_postgresql, deadline=None)


def everything(engine: Engine) -> dict[str, list[Any]]:
    """Return the rows of all tables, JSON as the text that it is."""
    with reading(engine) as connection:
        return {
            table.name: bulk.read(connection, table, RUN_IDS)
            if "run_id" in table.c
            else rows_of(connection, table)
            for table in metadata.sorted_tables
            if table.name not in FIXED
        }


def verified(engine: Engine, limits: BatchLimits = DEFAULT_LIMITS) -> BatchFindings:
    """Return all that `verify` finds."""
    return summed(verify_archive(engine, Reporting(), limits))


def replayed(engine: Engine, limits: BatchLimits = DEFAULT_LIMITS) -> BatchFindings:
    """Return all that `replay` finds."""
    return summed(replay_archive(engine, Reporting(), limits))


def summed(batches: Iterator[BatchFindings]) -> BatchFindings:
    found = list(batches)
    return BatchFindings(
        sum(batch.runs for batch in found),
        [each for batch in found for each in batch.damage],
        [each for batch in found for each in batch.differing],
        [each for batch in found for each in batch.mismatches],
    )


def wrong(engine: Engine, limits: BatchLimits = DEFAULT_LIMITS) -> list[Difference]:
    found = verified(engine, limits)
    return [*found.damage, *found.differing]


def received(run_id: str, body: bytes, at: datetime) -> Answer:
    """Return `body` as a pass has it when it comes to be stored."""
    payload = decode(body)
    rows = normalize(run_id, payload, UTC)
    packed = compress(body, hashlib.sha256(body).hexdigest())
    named = name_tests(rows.tests)
    return Answer(run_id, "default", at, packed, payload.content_hash, rows, named)


def look(connection: Connection, at: datetime, seen: Mapping[str, bytes | None]) -> None:
    """Store what a pass sees of runs, None for a run that is gone, as `keeper` does."""
    answers = [received(run_id, body, at) for run_id, body in seen.items() if body is not None]
    store.store_answers(connection, answers, DEFAULT_RULES)
    count_all(connection)
    answered = [answer.run_id for answer in answers]
    standing = Standing(State.SETTLED, None)
    leases.record(connection, [Recorded(run_id, standing, at) for run_id in answered])
    gone = archived_runs.read_archived(connection, [each for each in seen if each not in answered])
    leases.mark_gone(connection, list(gone), at)
    leases.clear_gone(connection, dict.fromkeys(answered, at))


# --- answers, odd ones too ------------------------------------------------------------------

NUMBERS = (
    "1e400",
    "-1e-400",
    "0.1000000000000000055511151231257827",
    "123456789012345678901234567890.5",
    "1e99999999999999999999",
    "7" * 5000,
    "9223372036854775808",
    "-0.0",
)


def marked(number: str) -> str:
    """Return a text that `body_of` replaces by a number that Python could not write."""
    return f"<number {number}>"


def body_of(document: Any) -> bytes:
    body = json.dumps(document)
    for number in NUMBERS:
        body = body.replace(json.dumps(marked(number)), number)
    return body.encode()


texts = st.text(st.characters(), max_size=8)  # NULs and lone surrogates as well
# In a path, dots and brackets could be a name's own; a name that is no text has tests of its own.
names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=".[$\0"), max_size=5
).filter(lambda name: name not in {"result", "tests", "environments"})
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
numbers = st.sampled_from(NUMBERS).map(marked)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=5,
    )


anything = nested(plain | texts | numbers)
# Within the value of a warning, numbers beyond floats are texts (test_normalize).
misplaced = nested(plain | texts) | numbers
unknown = st.dictionaries(names, anything, max_size=2)
counters = st.builds(
    lambda other, known: other | known,
    unknown,
    st.dictionaries(st.sampled_from(COUNTERS), st.integers(0, 9) | misplaced),
)


def objects(**known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects with any of these fields, and with any others."""
    fields = st.fixed_dictionaries({}, optional=known)
    return st.builds(lambda other, fields: other | fields, unknown, fields)


moments = st.sampled_from(
    ["2023-10-24T13:00:12.463Z", "2023-10-24T15:00:12.4639+02:00", "2023-10-24", "soon\0", ""]
)
environment_objects = objects(
    **dict.fromkeys(ENVIRONMENT_FIELDS, texts | misplaced)
    | {"viewport": st.sampled_from(["1440x900", "wide", "1x\0"]) | misplaced}
)
test_objects = objects(
    **dict.fromkeys(TEST_FIELDS, texts | misplaced)
    | {"id": st.sampled_from(["a", "b"]), "results": counters | misplaced}
)
result_objects = objects(
    **dict.fromkeys(("id", "name", "application"), texts | misplaced),
    status=st.sampled_from(["passed", "unresolved", "pending", "", "odd"]) | misplaced,
    started_at=moments | misplaced,
    duration=st.integers(0, 10**6) | misplaced,
    results=counters | misplaced,
    environments=st.lists(environment_objects | misplaced, max_size=3),
    tests=st.lists(test_objects | misplaced, max_size=3),
)
documents = st.builds(lambda beside, result: beside | {"result": result}, unknown, result_objects)


# --- from the tables back to the answer -----------------------------------------------------


def parsed(json_text: str) -> Any:
    """Return a JSON value as `decode` has it, its numbers exact."""
    return decode(b'{"result": {"value": %s}}' % json_text.encode()).result["value"]


class Tables:
    """The rows of one run, and how to read an answer in them."""

    def __init__(self, connection: Connection, run_id: str) -> None:
        self._connection, self._run_id = connection, run_id
        self._warned = {row["path"]: parsed(row["value"]) for row in self._rows(warnings)}
        self._counts = {row["test_position"]: row for row in self._rows(counts)}

    def document(self) -> dict[str, Any]:
        [run] = self._rows(runs)
        fields = self._extra(run["extra"], "result")
        beside = self._extra(run["extra"], "").get("$", {})
        started_at = run["started_at"]
        known = {
            "id": run["result_id"],
            **{name: run[name] for name in ("name", "application", "status")},
            "started_at": to_text(started_at) if isinstance(started_at, datetime) else started_at,
            "duration": run["duration_ms"],
        }
        return {
            **beside,
            "result": {
                **{name: value for name, value in fields.items() if name != "$"},
                **self._leaves(known, "result"),
                **self._results(0, "result"),
                "environments": [self._environment(row) for row in self._rows(environments)],
                "tests": [self._test(row) for row in self._rows(tests)],
            },
        }

    def _rows(self, table: Table) -> list[Row]:
        names = [column.name for column in table.columns]
        rows = bulk.read(self._connection, table, [self._run_id])
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _environment(self, row: Row) -> Any:
        path = f"result.environments[{row['position'] - 1}]"
        known = {name: row[name] for name in ENVIRONMENT_FIELDS}
        return self._warned.get(path, self._extra(row["extra"], path) | self._leaves(known, path))

    def _test(self, row: Row) -> Any:
        path = f"result.tests[{row['position'] - 1}]"
        known = {"id": row["test_id"], "testResultsUrl": row["results_url"]} | {
            name: row[name] for name in ("name", "status", "type", "sitemap")
        }
        fields = self._extra(row["extra"], path) | self._leaves(known, path)
        return self._warned.get(path, fields | self._results(row["position"], path))

    def _results(self, test_position: int, of: str) -> dict[str, Any]:
        path, row = f"{of}.results", self._counts[test_position]
        known = {name: row[name] for name in COUNTERS}
        fields = self._extra(row["other"], path) | self._leaves(known, path)
        results = self._warned.get(path, fields)
        return {} if results == {} else {"results": results}

    def _leaves(self, known: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Return fields that have a column; one that could not be read is in `warnings`."""
        found = {name: self._warned.get(f"{path}.{name}", value) for name, value in known.items()}
        return {name: value for name, value in found.items() if value is not None}

    def _extra(self, extra: str | None, path: str) -> dict[str, Any]:
        """Return fields that have no column, and their texts as they were before cleaning."""
        fields: dict[str, Any] = self._uncleaned(parsed(extra or "{}"), path)
        return fields

    def _uncleaned(self, value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {
                name: self._uncleaned(member, f"{path}.{name}".removeprefix("."))
                for name, member in value.items()
            }
        if isinstance(value, list):
            return [self._uncleaned(item, f"{path}[{i}]") for i, item in enumerate(value)]
        return self._warned.get(path, value) if isinstance(value, str) else value


def as_known(payload: Payload) -> dict[str, Any]:
    """Return an answer without what has no meaning in it: null fields, and times' spelling."""
    result = without_nulls(payload.result, RUN_FIELDS)
    if isinstance(started_at := result.get("started_at"), str) and "\0" not in started_at:
        with suppress(ValueError):
            moment = datetime.fromisoformat(started_at)
            result["started_at"] = to_text(moment)
    environments = result.get("environments", [])
    tests = [without_nulls(test, TEST_FIELDS) for test in result.get("tests", [])]
    result["environments"] = [without_nulls(each, ENVIRONMENT_FIELDS) for each in environments]
    result["tests"] = tests
    for item in [result, *tests]:
        if isinstance(item, dict) and "results" in item:
            item["results"] = without_nulls(item["results"], COUNTER_FIELDS)
            if item["results"] == {}:
                del item["results"]
    return payload.document | {"result": result}


def without_nulls(item: Any, known: Mapping[str, type]) -> Any:
    if not isinstance(item, dict):
        return item
    return {name: value for name, value in item.items() if value is not None or name not in known}


def strict(value: Any) -> Any:
    """Return `value` so that true is not 1."""
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, dict):
        return {name: strict(member) for name, member in value.items()}
    return [strict(item) for item in value] if isinstance(value, list) else value


@contextmanager
def rolled_back(connection: Connection) -> Iterator[None]:
    savepoint = connection.begin_nested()
    try:
        yield
    finally:
        savepoint.rollback()


def test_an_answer_can_be_had_back_from_the_tables(engine: Engine) -> None:
    @examples(engine, on_sqlite=150, on_postgresql=30)
    @given(documents)
    def holds(document: dict[str, Any]) -> None:
        body = body_of(document)
        with rolled_back(connection):
            look(connection, START, {"run-1": body})
            had_back = Tables(connection, "run-1").document()
        assert strict(had_back) == strict(as_known(decode(body)))

    with writing(engine) as connection:
        holds()


# --- replay ---------------------------------------------------------------------------------

Pass = dict[str, bytes | None]


def passes(pool: Sequence[bytes]) -> st.SearchStrategy[list[Pass]]:
    """Return what passes see of runs: contents that come, go, and come back."""
    seen = st.dictionaries(st.sampled_from(RUN_IDS), st.none() | st.sampled_from(pool))
    return st.lists(seen, min_size=1, max_size=5)


histories = st.lists(documents.map(body_of), min_size=1, max_size=3).flatmap(passes)


def live_through(engine: Engine, history: Sequence[Pass]) -> None:
    track_anew(engine)
    for minutes, seen in enumerate(history):
        with writing(engine) as connection:
            look(connection, after(minutes), seen)


def empty_derived_tables(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(delete(runs))  # and what hangs on them
        assert not [row for table in DERIVED for row in rows_of(connection, table)]


def test_replay_makes_lost_tables_anew_as_they_were(engine: Engine) -> None:
    limits = BatchLimits(runs=2)

    @examples(engine, on_sqlite=25, on_postgresql=6)
    @given(histories)
    def holds(history: list[Pass]) -> None:
        live_through(engine, history)
        before = everything(engine)
        assert wrong(engine, limits) == []
        empty_derived_tables(engine)
        assert replayed(engine, limits).damage == []
        assert everything(engine) == before

    holds()


def ended(**changes: Any) -> bytes:
    """Return an answer about a run that is over."""
    return result(**changes).body


def a_test(**changes: Any) -> dict[str, Any]:
    return {"id": "t", "name": "login", "status": "passed", "results": {"passed": 1}} | changes


ODD = {
    "name": "a\0b",
    "duration": "long",
    "new": {"field": 1},
    "environments": [{"os": "Linux", "viewport": "1x2", "new": 1}, {"browser": "Chrome"}],
}
LIVES: list[Pass] = [
    {"run-1": ended(**ODD, tests=[a_test(), a_test(new=1)]), "run-2": SAMPLE},
    {"run-1": ended(**ODD, tests=[a_test(status="failed")]), "run-3": b'{"result": {}}'},
    {"run-1": ended(), "run-2": None},
]
"""After which each derived table has rows of run-1; run-4 was never fetched."""


@pytest.fixture
def archive(engine: Engine) -> Engine:
    """An archive with a history."""
    live_through(engine, LIVES)
    return engine


def test_replay_of_an_intact_archive_changes_nothing(archive: Engine) -> None:
    before = everything(archive)
    assert replayed(archive) == BatchFindings(3, [], [], [])
    assert everything(archive) == before


def spoil(engine: Engine, run_ids: Sequence[str]) -> None:
    """Give runs a name that is in no payload."""
    with writing(engine) as connection:
        connection.execute(update(runs).where(runs.c.run_id.in_(run_ids)).values(name="spoilt"))


def spoilt(engine: Engine) -> set[str]:
    with reading(engine) as connection:
        return set(connection.scalars(select(runs.c.run_id).where(runs.c.name == "spoilt")))


def test_an_interrupted_replay_goes_on_at_the_next_call(archive: Engine) -> None:
    before = everything(archive)
    limits = BatchLimits(runs=1)
    spoil(archive, RUN_IDS)
    interrupted = replay_archive(archive, Reporting(), limits)
    assert [each.run_id for each in next(interrupted).differing] == ["run-1"]
    del interrupted
    assert spoilt(archive) == {"run-2", "run-3"}
    assert [each.run_id for each in replayed(archive, limits).differing] == ["run-2", "run-3"]
    assert everything(archive) == before


def test_replay_leaves_a_run_alone_whose_payload_is_damaged(archive: Engine) -> None:
    spoil(archive, ["run-1", "run-2"])
    with writing(archive) as connection:
        connection.execute(update(payloads).where(payloads.c.run_id == "run-2").values(size=1))
    assert [(each.table, each.run_id, each.row) for each in replayed(archive).damage] == [
        ("payloads", "run-2", "revision 1")
    ]
    assert spoilt(archive) == {"run-2"}


@contextmanager
def when_reading(engine: Engine, table: Table, do: Any) -> Iterator[None]:
    """Call `do` in the moment before the rows of a table are read for the first time."""

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if f"FROM {table.name} WHERE" in statement and todo:
            todo.pop()()

    todo = [do]
    event.listen(engine, "before_cursor_execute", note)
    yield
    event.remove(engine, "before_cursor_execute", note)
    assert not todo


def store_a_new_answer(engine: Engine, run_id: str) -> None:
    with writing(engine) as connection:
        leases.lock_held(connection, "a pass", [run_id], lambda: after(60))
        look(connection, after(60), {run_id: ended(name="newest")})


def test_an_answer_that_is_stored_during_a_replay_is_not_lost(archive: Engine) -> None:
    with writing(archive) as connection:
        lease = {"lease_owner": "a pass", "lease_until": after(90)}
        connection.execute(update(tracked_runs).values(lease))
    spoil(archive, ["run-1"])
    other = connect(archive.url.render_as_string(hide_password=False))
    ingest = threading.Thread(target=store_a_new_answer, args=[other, "run-1"])

    def begin() -> None:
        ingest.start()
        ingest.join(0.3)  # it has to wait; if it had not, it would be over by then

    with when_reading(archive, runs, begin):
        replayed(archive)
    ingest.join()
    other.dispose()
    with reading(archive) as connection:
        assert connection.scalar(select(runs.c.name).where(runs.c.run_id == "run-1")) == "newest"
    assert wrong(archive) == []


def test_verify_sees_the_archive_at_one_moment_while_answers_are_stored(archive: Engine) -> None:
    other = connect(archive.url.render_as_string(hide_password=False))
    with when_reading(archive, runs, lambda: store_a_new_answer(other, "run-1")):
        found = wrong(archive)
    other.dispose()
    assert found == []


def test_no_more_than_a_batch_is_in_memory(sqlite_url: str) -> None:
    limits = BatchLimits(bytes=600_000)
    engine = connect(sqlite_url)
    prepare(engine)
    run_ids = [f"run-{number}" for number in range(60)]
    with writing(engine) as connection:
        tracking.track(connection, [Entry(run_id, None, None, {}) for run_id in run_ids], START)
        for run_id in run_ids:
            look(connection, START, {run_id: ended(new=os.urandom(60_000).hex())})
    wrong(engine, limits)
    tracemalloc.start()
    assert wrong(engine, limits) == []
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    engine.dispose()
    # All bodies have 7.2 MB; of those of a batch, some copies are there at a time.
    assert peak < 3_500_000


# --- verify finds what was changed ----------------------------------------------------------


class Cell(NamedTuple):
    """A place in a table; `key` is its row's."""

    table: Table
    key: tuple[Any, ...]
    column: str


class Vandal:
    """Changes cells behind the program's back, whatever rules there are."""

    def __init__(self, engine: Engine) -> None:
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._dialect = engine.dialect
        raw = engine.raw_connection()
        self._driver = cast("Any", raw.driver_connection)
        raw.detach()
        if self._is_sqlite:
            self._driver.execute("PRAGMA foreign_keys = OFF")
            self._driver.execute("PRAGMA ignore_check_constraints = ON")
        else:
            self._driver.autocommit = True

    def close(self) -> None:
        self._driver.close()

    def cells(self) -> list[Cell]:
        """Return all cells of the derived tables and the payloads."""
        return [
            Cell(table, tuple(row), column.name)
            for table in [*DERIVED, payloads, *SHARED]
            for row in self._driver.execute(
                f"SELECT {', '.join(keys_of(table))} FROM {table.name}"  # our names
            ).fetchall()
            for column in table.columns
        ]

    def read(self, cell: Cell) -> tuple[str, Any]:
        """Return a cell's type and value."""
        shown = f'"{cell.column}"' if self._is_sqlite else f'"{cell.column}"::text'
        statement = f"SELECT {shown} FROM {cell.table.name} WHERE {self._at(cell)}"
        [value] = self._driver.execute(statement, cell.key).fetchone()
        return type(value).__name__, value

    def write(self, cell: Cell, value: Any) -> Cell:
        """Put a value into a cell; return where it is then, since keys can be changed too."""
        mark = self._mark(cell.table, cell.column)
        statement = f'UPDATE {cell.table.name} SET "{cell.column}" = {mark} WHERE {self._at(cell)}'
        self._driver.execute(statement, (value, *cell.key))
        keys = keys_of(cell.table)
        if cell.column not in keys:
            return cell
        key = list(cell.key)
        key[keys.index(cell.column)] = value
        return cell._replace(key=tuple(key))

    def run(self, statement: str, *values: Any) -> None:
        """Run any statement."""
        self._driver.execute(statement, values)

    def _at(self, cell: Cell) -> str:
        return " AND ".join(
            f'"{key}" = {self._mark(cell.table, key)}' for key in keys_of(cell.table)
        )

    def _mark(self, table: Table, column: str) -> str:
        if self._is_sqlite:
            return "?"
        return f"%s::{table.c[column].type.compile(dialect=self._dialect)}"


def keys_of(table: Table) -> list[str]:
    return [column.name for column in table.primary_key]


@pytest.fixture
def vandal(archive: Engine) -> Iterator[Vandal]:
    vandal = Vandal(archive)
    yield vandal
    vandal.close()


TIMES = ["2024-03-01 18:00:00.123", "2024-03-01T18:00:00.123", "2024-03-01 18:00:00.1234"]
any_values = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.sampled_from([0, 1, 2, 3, "", "passed", "{}", "null", "zstd", *RUN_IDS, *TIMES])
)
typed_values: dict[str, st.SearchStrategy[str]] = {
    "TEXT": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
    | st.sampled_from(["", "passed", *RUN_IDS]),
    "DOUBLE": st.floats(0, 1).map(str),
    "BIGINT": st.integers(0, 4).map(str) | st.integers(-(2**63), 2**63 - 1).map(str),
    "TIMESTAMP": st.sampled_from([*TIMES, "infinity", "0044-03-15 BC", "24000-01-01"]),
    "DATE": st.sampled_from(["2024-03-01", "-infinity", "9999-12-31"]),
    "JSON": st.sampled_from(["null", "{}", '{"new":  {"field": 1}}', "[1]"]),
    "BOOLEAN": st.booleans().map(str),
    "BYTEA": st.binary(max_size=8).map(lambda value: f"\\x{value.hex()}"),
}


def changes(engine: Engine, cells: Sequence[Cell]) -> st.SearchStrategy[tuple[Cell, Any]]:
    """Return any cell with any value that its database would take for it."""

    def with_value(cell: Cell) -> st.SearchStrategy[tuple[Cell, Any]]:
        if engine.dialect.name == "sqlite":
            return st.tuples(st.just(cell), any_values)
        [name, *_rest] = cell.table.c[cell.column].type.compile(dialect=engine.dialect).split()
        return st.tuples(st.just(cell), st.none() | typed_values[name])

    return st.sampled_from(cells).flatmap(with_value)


def names_cell(found: Sequence[Difference], cell: Cell) -> bool:
    """Tell whether a difference names the cell's table, run and row.

    What was changed in a payload shows there, or where its run does not agree with it any more.
    """
    if cell.table in SHARED:
        return any(each.table == cell.table.name and not each.run_id for each in found)
    of_run = [each for each in found if each.run_id == cell.key[0]]
    if cell.table is payloads:
        return bool(of_run)
    place = ", ".join(
        f"{name} {value}" for name, value in zip(keys_of(cell.table)[1:], cell.key[1:], strict=True)
    )
    return any(each.table == cell.table.name and each.row in {place, ""} for each in of_run)


AT_LENGTH = [pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("on_sqlite", "on_postgresql"), [(300, 40), pytest.param(1000, 400, marks=AT_LENGTH)]
)
def test_verify_finds_every_cell_that_is_changed(
    archive: Engine, vandal: Vandal, on_sqlite: int, on_postgresql: int
) -> None:
    refused = archive.dialect.loaded_dbapi.IntegrityError
    cells = vandal.cells()
    changed = []

    @examples(archive, on_sqlite, on_postgresql)
    @given(changes(archive, cells))
    def holds(change: tuple[Cell, Any]) -> None:
        cell, value = change
        before = vandal.read(cell)
        is_other = False
        with suppress(refused):
            moved = vandal.write(cell, value)
            is_other = vandal.read(moved) != before
            found = wrong(archive) if is_other else []
            vandal.write(moved, before[1])
            assert names_cell(found, cell) == is_other, found
            changed.extend([cell] * is_other)
        assume(is_other)  # another one, where the database refused or rounded it

    holds()
    assert {cell.table for cell in cells} == {*DERIVED, payloads, *SHARED}
    is_sqlite = archive.dialect.name == "sqlite"
    assert len(changed) >= (on_sqlite if is_sqlite else on_postgresql)
    assert wrong(archive) == []


def rows_as_they_rest(engine: Engine, table: Table) -> list[Any]:
    with reading(engine) as connection:
        return bulk.read(connection, table, RUN_IDS)


def key_of(table: Table, row: Sequence[Any]) -> tuple[Any, ...]:
    columns = list(table.columns)
    return tuple(row[columns.index(column)] for column in table.primary_key)


def remove(engine: Engine, table: Table, row: Sequence[Any]) -> None:
    key = zip(table.primary_key, key_of(table, row), strict=True)
    with writing(engine) as connection:
        connection.execute(delete(table).where(*(column == value for column, value in key)))


def put(engine: Engine, table: Table, row: Sequence[Any]) -> None:
    with writing(engine) as connection:
        bulk.insert(connection, table, [tuple(row)])


def test_verify_finds_every_row_that_is_deleted_and_replay_mends_it(archive: Engine) -> None:
    before = everything(archive)
    for table in DERIVED:
        for row in rows_as_they_rest(archive, table):
            remove(archive, table, row)
            cell = Cell(table, key_of(table, row), "")
            assert names_cell(wrong(archive), cell)
            replayed(archive)
            assert everything(archive) == before


def test_verify_finds_every_payload_that_is_deleted(archive: Engine) -> None:
    for row in rows_as_they_rest(archive, payloads):
        remove(archive, payloads, row)
        assert names_cell(wrong(archive), Cell(payloads, key_of(payloads, row), ""))
        put(archive, payloads, row)
    assert wrong(archive) == []


def an_added_row(engine: Engine, table: Table) -> list[Any]:
    """Return a row like one that is there, with a key that none has."""
    last = list(table.columns).index(list(table.primary_key)[-1])
    row = list(next(row for row in rows_as_they_rest(engine, table) if row[last] != 0))
    row[last] += 7 if isinstance(row[last], int) else "x"
    return row


def test_verify_finds_a_row_that_was_added_and_replay_removes_it(archive: Engine) -> None:
    before = everything(archive)
    for table in [table for table in DERIVED if table not in {runs, outcomes}]:
        row = an_added_row(archive, table)
        put(archive, table, row)
        assert names_cell(wrong(archive), Cell(table, key_of(table, row), ""))
        replayed(archive)
        assert everything(archive) == before


def test_verify_finds_a_payload_that_was_added(archive: Engine) -> None:
    row = an_added_row(archive, payloads)
    put(archive, payloads, row)
    assert names_cell(wrong(archive), Cell(payloads, key_of(payloads, row), ""))


def test_verify_finds_rows_of_a_run_without_payload_and_replay_keeps_them(archive: Engine) -> None:
    put(archive, runs, ("run-4", *rows_as_they_rest(archive, runs)[0][1:]))
    stray = Difference("runs", "run-4", "", "has no payload")
    assert wrong(archive) == [stray]
    assert replayed(archive).damage == [stray]
    assert wrong(archive) == [stray]


@pytest.fixture
def sqlite_archive(sqlite_url: str) -> Iterator[Engine]:
    """An archive with a history, on SQLite, which lets more happen to it."""
    engine = connect(sqlite_url)
    prepare(engine)
    live_through(engine, LIVES)
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite_vandal(sqlite_archive: Engine) -> Iterator[Vandal]:
    vandal = Vandal(sqlite_archive)
    yield vandal
    vandal.close()


def test_bytes_of_a_payload_are_as_they_were_or_verify_says_so(
    sqlite_archive: Engine, sqlite_vandal: Vandal
) -> None:
    cell = Cell(payloads, ("run-2", 1), "body")
    _type, body = sqlite_vandal.read(cell)
    flipped = [
        body[:at] + bytes([body[at] ^ 1 << at % 8]) + body[at + 1 :]
        for at in [*range(12), *range(12, len(body), 7)]
    ]
    cut = [body[:length] for length in range(0, len(body), 40)]
    silent = 0
    for damaged in [*flipped, *cut]:
        sqlite_vandal.write(cell, damaged)
        if not names_cell(wrong(sqlite_archive), cell):
            assert decompress(damaged, ENCODING) == SAMPLE
            silent += 1
    assert silent < 5  # a frame of zstd has a few bits that mean nothing
    sqlite_vandal.write(cell, body)
    assert wrong(sqlite_archive) == []


@pytest.mark.parametrize("table", [payloads, labels], ids=str)
def test_verify_names_what_is_of_no_tracked_run(
    sqlite_archive: Engine, sqlite_vandal: Vandal, table: Table
) -> None:
    with writing(sqlite_archive) as connection:
        connection.execute(insert(labels).values(run_id="run-3", name="branch", value="main"))
    sqlite_vandal.run("DELETE FROM tracked_runs WHERE run_id = 'run-3'")
    orphan = Difference(table.name, "run-3", "", "is of a run that is not tracked")
    assert orphan in wrong(sqlite_archive)
    assert orphan in replayed(sqlite_archive).damage


@pytest.mark.parametrize("column", ["sha256", "encoding"])
def test_verify_names_a_payload_with_bytes_that_are_no_text(
    sqlite_archive: Engine, sqlite_vandal: Vandal, column: str
) -> None:
    sqlite_vandal.run(f"UPDATE payloads SET {column} = CAST(x'ff' AS TEXT) WHERE run_id = 'run-2'")
    [found] = wrong(sqlite_archive)
    assert (found.table, found.run_id) == ("payloads", "run-2")
    assert found.problem.startswith("cannot be read: Could not decode to UTF-8")


UNREADABLE = {
    "sqlite": "UPDATE runs SET name = CAST(x'ff' AS TEXT) WHERE run_id = 'run-2'",
    "postgresql": "UPDATE runs SET started_at = 'infinity' WHERE run_id = 'run-2'",
}


def test_verify_names_a_row_that_no_driver_can_read_and_replay_mends_it(
    archive: Engine, vandal: Vandal
) -> None:
    before = everything(archive)
    vandal.run(UNREADABLE[archive.dialect.name])
    [found] = wrong(archive)
    assert (found.table, found.run_id) == ("runs", "run-2")
    assert found.problem.startswith("cannot be read: ")
    assert replayed(archive).differing == [found]
    assert everything(archive) == before


@pytest.mark.parametrize("table", aggregates.KEYED_BY_PLAN, ids=str)
def test_verify_names_a_plan_whose_id_is_no_text(
    sqlite_archive: Engine, sqlite_vandal: Vandal, table: Table
) -> None:
    """SQLite takes anything for a text; replay makes good what follows from payloads."""
    before = everything(sqlite_archive)
    which = f"SELECT min(plan_id) FROM {table.name}" if table is plan_summaries else "plan_id"
    sqlite_vandal.run(f"UPDATE {table.name} SET plan_id = x'01' WHERE plan_id = ({which})")
    assert table.name in {found.table for found in wrong(sqlite_archive)}
    replayed(sqlite_archive)
    assert everything(sqlite_archive) == before


@pytest.mark.parametrize("column", ["run_id", "variant_id", "roster_id"])
def test_verify_names_a_plan_whose_outcomes_have_a_key_that_is_no_text(
    sqlite_archive: Engine, sqlite_vandal: Vandal, column: str
) -> None:
    sqlite_vandal.run(f"UPDATE outcomes SET {column} = CAST({column} AS BLOB)")
    assert {"outcomes"} <= {found.table for found in wrong(sqlite_archive)}


UNREADABLE_COUNT = {
    "sqlite": ("series", "UPDATE series SET test = CAST(x'ff' AS TEXT)"),
    "postgresql": (
        "daily_results",
        "UPDATE daily_results SET day = '-infinity' WHERE day = '2023-10-24'",
    ),
}


def test_verify_names_a_count_that_no_driver_can_read_and_replay_mends_it(
    archive: Engine, vandal: Vandal
) -> None:
    before = everything(archive)
    table, statement = UNREADABLE_COUNT[archive.dialect.name]
    vandal.run(statement)
    found = wrong(archive)
    assert {(each.table, each.problem.split(":")[0]) for each in found} == {
        (table, "cannot be read")
    }
    assert replayed(archive).differing == found
    assert everything(archive) == before


@pytest.mark.parametrize("table", [payloads, tracked_runs], ids=str)
def test_verify_names_a_time_that_is_none(
    sqlite_archive: Engine, sqlite_vandal: Vandal, table: Table
) -> None:
    column = "fetched_at" if table is payloads else "gone_at"
    sqlite_vandal.run(f"UPDATE {table.name} SET {column} = 'noon' WHERE run_id = 'run-2'")
    place = "revision 1" if table is payloads else ""
    problem = f"{column} is 'noon', which is no time as it is kept here"
    assert Difference(table.name, "run-2", place, problem) in wrong(sqlite_archive)


def test_verify_finds_a_history_whose_times_overlap(sqlite_archive: Engine) -> None:
    """Changed in all tables alike, so that only the order of the times tells."""
    with writing(sqlite_archive) as connection:
        for table in (payloads, revisions):
            connection.execute(
                update(table)
                .where(table.c.run_id == "run-1", table.c.revision == 1)
                .values(last_seen_at=after(90))
            )
    [found] = wrong(sqlite_archive)
    assert (found.table, found.run_id, found.row) == ("payloads", "run-1", "revision 1")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"last_fetched_at": None}, "is archived, yet was never fetched"),
        ({"last_fetched_at": START - timedelta(1)}, "last_fetched_at is before its newest payload"),
    ],
)
def test_verify_holds_the_ledger_against_the_archive(
    sqlite_archive: Engine, changes: dict[str, Any], problem: str
) -> None:
    with writing(sqlite_archive) as connection:
        of_run = tracked_runs.c.run_id == "run-1"
        connection.execute(update(tracked_runs).where(of_run).values(changes))
    assert wrong(sqlite_archive) == [Difference("tracked_runs", "run-1", "", problem)]


def test_an_answer_in_which_a_secret_was_masked_is_no_damage(sqlite_archive: Engine) -> None:
    whole = received("run-4", ended(name="key ***"), after(9))
    echo = replace(whole, body=whole.body._replace(sha256=hashlib.sha256(b"key").hexdigest()))
    echo.rows.warnings.append(ECHO_WARNING)
    with writing(sqlite_archive) as connection:
        store.store_answers(connection, [echo], DEFAULT_RULES)
        count_all(connection)
        standing = Standing(State.SETTLED, None)
        leases.record(connection, [Recorded("run-4", standing, after(9))])
    assert wrong(sqlite_archive) == []


# --- the commands ---------------------------------------------------------------------------


@pytest.fixture
def on_sqlite(tmp_path: Path, sqlite_url: str, api: FakeApi) -> Program:
    """An archive of r-1 to r-5, which are all alike."""
    archiver = program(tmp_path, sqlite_url, api.url)
    api.other = Given(SAMPLE)
    assert archiver.call("ingest", *[f"r-{number}" for number in range(1, 6)]).exit_code == 0
    return archiver


@contextmanager
def opened(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url)
    yield engine
    engine.dispose()


def store_alike(database_url: str, numbers: Sequence[int]) -> None:
    """Archive more runs that are like r-1 to r-5."""
    run_ids = [f"r-{number}" for number in numbers]
    with opened(database_url) as engine, writing(engine) as connection:
        tracking.track(connection, [Entry(run_id, None, None, {}) for run_id in run_ids], START)
        look(connection, START, dict.fromkeys(run_ids, SAMPLE))


def spoil_all(database_url: str) -> None:
    with opened(database_url) as engine, writing(engine) as connection:
        connection.execute(update(runs).values(name="spoilt"))


def how_many_are_spoilt(database_url: str) -> int:
    with opened(database_url) as engine:
        return len(spoilt(engine))


SPOILT = "runs (run r-{}): name is 'spoilt', should be ' plan'\n"


def test_a_new_rule_reaches_old_runs(api: FakeApi, archiver: Program, database_url: str) -> None:
    api.answers = {"r-1": [Given(SAMPLE)], "r-2": [result(started_at="2023-10-24T01:00:00Z")]}
    assert archiver.call("ingest", "r-1", "r-2").exit_code == 0
    with opened(database_url) as engine:
        before = everything(engine)
        far_east = archiver.given(RESULT_ARCHIVER__REPORTING__TIME_ZONE="Pacific/Kiritimati")
        preview = far_east.call("replay", "--dry-run")
        assert everything(engine) == before
        assert preview.exit_code == 0
        *changes, total = preview.stdout.splitlines()
        [outcome, row, hour] = sorted(changes)
        assert row.startswith("runs (run r-1): started_on is ")
        assert outcome.startswith("outcomes (run r-1, revision 1): started_on is ")
        assert row.index("2023-10-24") < row.index("should be") < row.index("2023-10-25")
        assert hour.startswith("runs (run r-2): started_hour is ")
        assert total == (
            "2 runs read: 3 rows in 2 runs would be changed; 0 damaged; 0 rejects would be archived"
        )
        done = far_east.call("replay")
        assert done.exit_code == 0
        assert sorted(done.stdout.splitlines()[:3]) == [outcome, row, hour]
        with reading(engine) as connection:
            days = dict(connection.execute(select(runs.c.run_id, runs.c.started_on)).all())
    assert days == {"r-1": date(2023, 10, 25), "r-2": date(2023, 10, 24)}
    assert far_east.call("verify").exit_code == 0


def test_an_older_archive_is_counted_when_it_is_upgraded(
    api: FakeApi, archiver: Program, database_url: str
) -> None:
    api.answers = {"r-1": [Given(SAMPLE), result(status="passed")], "r-2": [result(name="B")]}
    assert archiver.call("ingest", "r-1", "r-2").exit_code == 0
    assert archiver.call("ingest", "r-1", "--refresh").exit_code == 0
    with opened(database_url) as engine:
        before = everything(engine)
        assert archiver.call("db", "downgrade", "0002").exit_code == 0
        assert archiver.call("db", "upgrade").exit_code == 0
        after = everything(engine)
    forgotten = ("identities", "health")  # measured anew by the next pass
    assert {name: rows for name, rows in after.items() if name not in forgotten} == {
        name: rows for name, rows in before.items() if name not in forgotten
    }
    assert archiver.call("verify").exit_code == 0


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_upgrade_that_was_interrupted_goes_on(
    api: FakeApi, archiver: Program, database_url: str, steps: int
) -> None:
    """The tables are there at once; then come the runs, in one step, and each plan in another."""
    api.answers = {"r-1": [Given(SAMPLE)], "r-2": [result(name="B")]}
    assert archiver.call("ingest", "r-1", "r-2").exit_code == 0
    assert archiver.call("db", "downgrade", "0002").exit_code == 0
    with opened(database_url) as engine:
        database.upgrade(engine)
        for _ in islice(replay_archive(engine, Reporting()), steps):
            pass
    for command in (["verify"], ["ingest", "r-3"], ["report", "overview"]):
        done = archiver.call(*command)
        assert done.exit_code == 4
        assert done.stderr.endswith(
            ": its derived rows are incomplete: an upgrade or a replay is running, or was"
            " interrupted; `result-archiver db upgrade` goes on with it\n"
        )
    assert archiver.call("db", "upgrade").exit_code == 0
    assert archiver.call("verify").exit_code == 0
    assert archiver.call("ingest", "r-1", "--refresh").exit_code == 0


INTACT = "5 runs checked: 0 rows wrong, 0 mismatches in the API's own counters\n"


def test_neither_a_key_nor_the_network_is_needed(
    tmp_path: Path, sqlite_url: str, on_sqlite: Program, api: FakeApi
) -> None:
    bare = bare_program(tmp_path).given(
        RESULT_ARCHIVER__DATABASE__URL=sqlite_url, RESULT_ARCHIVER__API__BASE_URL=api.url
    )
    before = api.requests.total()
    assert bare.call("verify") == (0, INTACT, "")
    assert bare.call("replay").exit_code == 0
    assert api.requests.total() == before


def test_verify_names_each_row_and_says_what_to_do(on_sqlite: Program, sqlite_url: str) -> None:
    spoil_all(sqlite_url)
    with opened(sqlite_url) as engine, writing(engine) as connection:
        connection.execute(update(payloads).where(payloads.c.run_id == "r-5").values(sha256="x"))
    done = on_sqlite.call("verify")
    assert (done.exit_code, done.stderr) == (1, "")
    assert done.stdout == (
        "payloads (run r-5, revision 1): its body is not the one that was received:"
        " the hashes differ\n"
        + "".join(SPOILT.format(number) for number in range(1, 5))
        + "5 runs checked: 5 rows wrong, 0 mismatches in the API's own counters\n"
        "`result-archiver replay` mends 4 of them\n"
        "1 of them no replay mends; a backup may have them whole\n"
    )
    assert on_sqlite.call("replay").exit_code == 1
    assert how_many_are_spoilt(sqlite_url) == 1


def test_what_replay_says_is_done_by_then(
    on_sqlite: Program, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells of each batch as it comes: nothing piles up, however much there is to tell."""
    store_alike(sqlite_url, range(6, DEFAULT_LIMITS.runs + 4))
    spoil_all(sqlite_url)
    monkeypatch.setenv("RESULT_ARCHIVER__DATABASE__URL", sqlite_url)
    with redirect_stdout(Pipe(lines=1)) as pipe, pytest.raises(click.Abort):
        rebuild_commands.replay([], standalone_mode=False)
    assert pipe.getvalue() == SPOILT.format(1)
    assert how_many_are_spoilt(sqlite_url) == 3


class Pipe(StringIO):
    """Takes so many lines, and then its reader stops us."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self._lines = lines

    def write(self, text: str) -> int:
        if self.getvalue().count("\n") == self._lines:
            raise KeyboardInterrupt
        return super().write(text)


def test_json_has_the_first_differences_and_how_many_there_are(
    on_sqlite: Program, sqlite_url: str
) -> None:
    store_alike(sqlite_url, range(6, 1003))
    spoil_all(sqlite_url)
    problem = {"table": "runs", "row": "", "problem": "name is 'spoilt', should be ' plan'"}
    first = sorted(f"r-{number}" for number in range(1, 1003))[:1000]
    listed = {"count": 1002, "first": [{"run_id": run_id} | problem for run_id in first]}
    none = {"count": 0, "first": []}
    verify = on_sqlite.call("verify", "--json")
    assert (verify.exit_code, verify.json()) == (
        1,
        {"runs": 1002, "damage": none, "differing": listed, "mismatches_of_the_api": none},
    )
    for arguments in (["replay", "--dry-run", "--json"], ["replay", "--json"]):
        done = on_sqlite.call(*arguments)
        changes = {"runs": 1002, "changes": listed, "damage": none, "rejects": none}
        assert (done.exit_code, done.json()) == (0, changes)
    assert on_sqlite.call("verify") == (0, INTACT.replace("5 runs", "1002 runs"), "")


def test_beside_a_progress_bar_the_differences_still_go_to_stdout(
    on_sqlite: Program, sqlite_url: str
) -> None:
    spoil_all(sqlite_url)
    ours, its = pty.openpty()
    command = subprocess.Popen(
        [*COMMAND, "verify"],
        cwd=on_sqlite.folder,
        env=on_sqlite.environment | {"TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=its,
        encoding="utf-8",
    )
    stdout, _stderr = command.communicate()
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    os.close(its)
    assert stdout.startswith(SPOILT.format(1))
    assert "checking" in shown
    assert "spoilt" not in shown


def test_a_long_value_is_told_in_short(on_sqlite: Program, sqlite_url: str) -> None:
    with opened(sqlite_url) as engine, writing(engine) as connection:
        connection.execute(update(runs).values(name="\x1b[2J" + "x" * 100_000))
    done = on_sqlite.call("verify")
    assert max(map(len, done.stdout.splitlines())) < 300
    assert "\x1b" not in done.stdout


ONE_MISMATCH = "6 runs checked: 0 rows wrong, 1 mismatches in the API's own counters\n"


def test_counters_that_the_api_itself_gets_wrong_are_no_damage(
    api: FakeApi, on_sqlite: Program
) -> None:
    tests = [a_test(results={"failed": 1, "passed": 2}), a_test(results={"failed": 0})]
    api.answers["r-new"] = [result(results={"failed": 3, "passed": 9, "new": 1}, tests=tests)]
    assert on_sqlite.call("ingest", "r-new").exit_code == 0
    assert on_sqlite.call("verify") == (
        0,
        f"the API's own: counts (run r-new): failed is 3, its tests have 1\n{ONE_MISMATCH}",
        "",
    )
    [mismatch] = on_sqlite.call("verify", "--json").json()["mismatches_of_the_api"]["first"]
    assert mismatch == {
        "table": "counts", "run_id": "r-new", "row": "", "problem": "failed is 3, its tests have 1"
    }  # fmt: skip


@pytest.mark.parametrize("command", ["verify", "replay", "replay --dry-run"])
def test_without_an_archive_there_is_nothing_to_prove(
    archiver: Program, database_url: str, command: str
) -> None:
    done = archiver.call(*command.split())
    assert (done.exit_code, done.stdout) == (4, "")
    assert done.stderr.endswith("has no archive yet; `result-archiver ingest` makes one\n")


def test_an_empty_archive_is_intact(archiver: Program) -> None:
    archiver.call("track", "r-1")
    nothing = "0 mismatches in the API's own counters"
    assert archiver.call("verify") == (0, f"0 runs checked: 0 rows wrong, {nothing}\n", "")


# --- hostile content, from the API to the screen --------------------------------------------

NAMES = {
    "nul": "a\0b",
    "half a character": "\ud800 and \udfff",
    "ansi": "\x1b[2J\x1b]0;title\x07\x9b31m\r\b",
    "direction": "\u202egnp.exe\u2028\u2066",
    "html": "<script>alert(1)</script>&amp;",
    "sql": "'); DROP TABLE runs; --",
    "markup": "[bold red]x[/] [link=file:///etc/passwd]y[/link] [/]",
    "formula": '=HYPERLINK("http://127.0.0.1")',
    "long": "x" * 10_000_000,
}
DEEP = b'{"result": {"new": ' + b"[" * 150 + b"]" * 150 + b"}}"
TOO_DEEP = DEEP.replace(b"[", b"[" * 400).replace(b"]", b"]" * 400)
ACCEPTED: dict[str, bytes] = {
    **{
        name: ended(name=text, application=text, tests=[a_test(name=text, new={text: text})] * 2)
        for name, text in NAMES.items()
        if name != "long"
    },
    "long": ended(name=NAMES["long"]),
    "deep": DEEP,
    "huge numbers": b'{"result": {"duration": 1e400, "new": [1e400, -1e-400], "id": %s}}'
    % (b"7" * 5000),
    "duplicate keys": b'{"result": 1, "result": {"name": "a", "name": "b"}}',
    "byte order mark": b"\xef\xbb\xbf" + SAMPLE,
    "utf-16": SAMPLE.decode().encode("utf-16"),
    "empty": b'{"result": {}}',
}
REJECTED: dict[str, bytes] = {
    "nan": b'{"result": {"duration": NaN}}',
    "login page": b"<html>Log in</html>",
    "latin-1": SAMPLE.replace(b" plan", "pl\xe4n".encode("latin-1")),
    "nothing": b"",
    "too deep": TOO_DEEP,
    "tests of no list": ended(tests={"a": 1}),
    "cut": SAMPLE[:-9],
}
SMALL = {"result": json.loads(SAMPLE)["result"]}
SMALL["result"]["environments"] = SMALL["result"]["environments"][:1]
MISFITS: tuple[Any, ...] = (None, True, 1.5, -1, "x", [], [[1]], {}, {"new": None})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return where something stands in a JSON value."""
    yield path
    items = enumerate(value) if isinstance(value, list) else ()
    for key, member in value.items() if isinstance(value, dict) else items:
        yield from places(member, (*path, key))


def placed(path: tuple[Any, ...], misfit: Any) -> bytes:
    """Return SMALL with something else in a place."""
    document = {"": deepcopy(SMALL)}
    place: Any = document
    *way, last = ("", *path)
    for key in way:
        place = place[key]
    place[last] = misfit
    return json.dumps(document[""]).encode()


def is_framed(body: bytes) -> bool:
    """Tell whether an answer has to be accepted (DESIGN, section 2)."""
    document = json.loads(body)
    run = document.get("result") if isinstance(document, dict) else None
    return isinstance(run, dict) and all(
        isinstance(run.get(name, []), list) for name in ("tests", "environments")
    )


def chunked(run_ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(run_ids), size):
        yield run_ids[start : start + size]


def test_whatever_the_api_sends_is_archived_or_kept_as_a_reject(
    api: FakeApi, archiver: Program, database_url: str
) -> None:
    misfits = [placed(path, misfit) for path in places(SMALL) for misfit in MISFITS]
    bodies = {**ACCEPTED, **REJECTED} | {f"misfit-{n}": body for n, body in enumerate(misfits)}
    api.answers = {run_id: [Given(body)] for run_id, body in bodies.items()}
    refused = {
        run_id
        for run_id, body in bodies.items()
        if run_id in REJECTED or (run_id not in ACCEPTED and not is_framed(body))
    }
    done = archiver.call("ingest", *bodies.keys() - refused)
    assert done.exit_code == 0
    assert f"{len(bodies) - len(refused)} new" in done.stderr
    for few in chunked(sorted(refused), NO_RESULTS - 1):  # with more the API would be down
        done = archiver.call("ingest", *few)
        assert done.exit_code == 1
        assert f"{len(few)} rejected" in done.stderr
    with opened(database_url) as engine, reading(engine) as connection:
        kept = dict(connection.execute(select(rejects.c.run_id, rejects.c.body)).all())
    assert kept == {run_id: bodies[run_id] for run_id in refused}
    verified = archiver.call("verify")
    assert verified.exit_code == 0, verified
    assert f"{len(bodies) - len(refused)} runs checked: 0 rows wrong" in verified.stdout


@pytest.mark.parametrize("run_id", [*list(NAMES)[:-1], "deep", "huge numbers", "nothing"])
def test_what_is_shown_of_hostile_content_steers_no_terminal(
    api: FakeApi, tmp_path: Path, sqlite_url: str, run_id: str
) -> None:
    archiver = program(tmp_path, sqlite_url, api.url)
    api.answers = {run_id: [Given({**ACCEPTED, **REJECTED}[run_id])]}
    archiver.call("ingest", run_id)
    for arguments in (["show", run_id], ["show", run_id, "--json"], ["verify"], ["status"]):
        done = archiver.call(*arguments)
        assert (done.exit_code, done.stderr) == (0, ""), arguments
        categories = {unicodedata.category(c) for c in done.stdout.replace("\n", "")}
        assert categories.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})


def test_a_run_of_20_000_tests_is_archived_whole(api: FakeApi, archiver: Program) -> None:
    many = [a_test(id=str(number)) for number in range(20_000)]
    api.answers["r-1"] = [Given(ended(tests=many, results={"passed": 20_000}))]
    assert archiver.call("ingest", "r-1").exit_code == 0
    nothing = "0 mismatches in the API's own counters"
    assert archiver.call("verify") == (0, f"1 runs checked: 0 rows wrong, {nothing}\n", "")
