import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import Column, Connection, Engine, and_, insert, literal, select

from etl.answers.compression import compress, decompress
from etl.answers.normalize import normalize
from etl.answers.outcome import Answer, Reason, Reject
from etl.answers.payload import decode
from etl.answers.rows import COUNTERS
from etl.answers.test_names import name_tests
from etl.archive import store
from etl.archive.archived_runs import ArchivedRun, NewestAnswer, read_archived, read_newest_answers
from etl.archive.rejects import keep_rejects
from etl.archive.store import StoredAnswer
from etl.config.settings import DEFAULT_RULES
from etl.db.database import connect, prepare, reading, writing
from etl.db.schema import (
    Day,
    Timestamp,
    counts,
    drift,
    environments,
    ingests,
    metadata,
    payloads,
    rejects,
    revisions,
    runs,
    test_revisions,
    tests,
    tracked_runs,
    warnings,
)
from etl.errors import DatabaseError
from etl.ledger import leases, tracking
from etl.ledger.lifecycle import Seen, Standing, State
from etl.ledger.tracking import Entry
from etl.ledger.verdicts import Recorded
from tests.support.dump import COUNTED, FIXED, LEDGER, Row, dump, rows_of
from tests.support.histories import count_all

SAMPLE = (Path(__file__).parents[1] / "samples" / "result.json").read_bytes()
START = datetime(2024, 3, 1, 18, 0, 0, 123000, UTC)
"""In Tokyo, whose days `runs.started_on` has here, it is 2 March by then."""
RUN_IDS = ("run-1", "run-2", "run-3")
NOTHING = dict.fromkeys(COUNTERS)


def unreadable(run_id: str, message: str, body: bytes) -> Reject:
    return Reject(run_id, START, 200, Reason.UNREADABLE, message, body, "c0ffee")


def after(minutes: int) -> datetime:
    return START + timedelta(minutes=minutes)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A new archive that tracks RUN_IDS."""
    engine = connect(database_url)
    prepare(engine)
    with writing(engine) as connection:
        tracking.track(connection, [Entry(run_id, None, None, {}) for run_id in RUN_IDS], START)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with writing(engine) as connection:
        yield connection


# --- answers, and looking at them -----------------------------------------------------------


def received(body: bytes, fetched_at: datetime = START, run_id: str = "run-1") -> Answer:
    """Return `body` as a pass has it when it comes to be stored."""
    payload = decode(body)
    sha256 = hashlib.sha256(body).hexdigest()
    rows = normalize(run_id, payload, ZoneInfo("Asia/Tokyo"))
    packed = compress(body, sha256)
    named = name_tests(rows.tests)
    return Answer(run_id, "default", fetched_at, packed, payload.content_hash, rows, named)


def answer(result: Mapping[str, Any], minutes: int = 0, run_id: str = "run-1") -> Answer:
    return received(json.dumps({"result": result}).encode(), after(minutes), run_id)


def look(connection: Connection, *answers: Answer) -> dict[str, StoredAnswer]:
    """Store answers, and note in the ledger when they came, as a pass does."""
    saved = store.store_answers(connection, answers, DEFAULT_RULES)
    standing = Standing(State.SETTLED, None)
    leases.record(
        connection, [Recorded(each.run_id, standing, each.fetched_at) for each in answers]
    )
    return saved


def a_test(name: str, status: str = "passed", **counted: int) -> dict[str, Any]:
    return {"id": f"id of {name}", "name": name, "status": status, "results": counted}


def columns_of(rows: Sequence[Row], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


# --- the rows -------------------------------------------------------------------------------


def test_the_sample_fills_the_tables_with_exactly_these_rows(connection: Connection) -> None:
    tracking.track(connection, [Entry("run-1", None, None, {"branch": "main"})], START)
    look(connection, received(SAMPLE, START))
    key = {"run_id": "run-1"}
    five = {"failed": 3, "passed": 12, "aborted": 0, "pending": 0, "unresolved": 0}
    desktop = {"os": "Linux", "device": "Desktop", "extra": None}
    content_hash = decode(SAMPLE).content_hash
    started_at = datetime(2023, 10, 24, 13, 0, 12, 463000, UTC)
    assert dump(connection, leave_out=(*LEDGER, *COUNTED)) == {
        "labels": [key | {"name": "branch", "value": "main"}],
        "runs": [
            key
            | {
                "source": "default",
                "result_id": "ac247a18-75d5-4094-8ab3-56788d6d2ff9",
                "name": " plan",
                "application": " app",
                "status": "failed",
                "started_at": started_at,
                "started_on": date(2023, 10, 24),
                "iso_date": "2023-10-24",
                "started_hour": 22,
                "duration_ms": 228669,
                "ended_at": datetime(2023, 10, 24, 13, 4, 1, 132000, UTC),
                "environment_count": 3,
                "test_count": 1,
                "environment_signature": (
                    '[["Linux","Chrome","Desktop","1440x900"],'
                    '["Linux","Chrome","Desktop","1442x3227"],'
                    '["Linux","Firefox","Desktop","690x490"]]'
                ),
                "revision": 1,
                "content_hash": content_hash,
                "archived_at": START,
                "changed_at": START,
                "row_changed_at": START,
                "gone_at": None,
                "extra": None,
            }
        ],
        "environments": [
            key
            | desktop
            | {
                "position": 1,
                "name": "env-name_lvc0ei",
                "viewport": "1442x3227",
                "viewport_width": 1442,
                "viewport_height": 3227,
                "browser": "Chrome",
            },
            key
            | desktop
            | {
                "position": 2,
                "name": "firefox_ltr6xexec",
                "viewport": "690x490",
                "viewport_width": 690,
                "viewport_height": 490,
                "browser": "Firefox",
            },
            key
            | desktop
            | {
                "position": 3,
                "name": "Chrome",
                "viewport": "1440x900",
                "viewport_width": 1440,
                "viewport_height": 900,
                "browser": "Chrome",
            },
        ],
        "tests": [
            key
            | {
                "position": 1,
                "test_id": "fcc41ac2-95e6-4fed-93d1-c609483300e4",
                "name": "",
                "status": "failed",
                "type": "sitemap_test",
                "sitemap": "",
                "results_url": None,
                "extra": None,
            }
        ],
        "counts": [
            key | five | {"test_position": 0, "scope": "run", "other": None, "total": 15},
            key | five | {"test_position": 1, "scope": "test", "other": None, "total": 15},
        ],
        "revisions": [
            key
            | five
            | {
                "revision": 1,
                "observed_at": START,
                "last_seen_at": None,
                "superseded_at": None,
                "status": "failed",
                "started_at": started_at,
                "duration_ms": 228669,
                "total": 15,
                "content_hash": content_hash,
            }
        ],
        "test_revisions": [],
        "payloads": [
            key
            | {
                "revision": 1,
                "body": compress(SAMPLE, "").compressed,
                "encoding": "zstd",
                "size": len(SAMPLE),
                "sha256": hashlib.sha256(SAMPLE).hexdigest(),
                "fetched_at": START,
                "last_seen_at": None,
            }
        ],
        "warnings": [],
        "drift": [],
        "rejects": [],
    }


def test_what_has_no_column_is_kept_as_json_where_it_stood(connection: Connection) -> None:
    odd = {"nested": [1, 2.5, None, True, "ä"]}
    result = {
        "new": odd,
        "results": {"failed": 1, "skipped": 2},
        "environments": [{"name": "e", "region": "eu"}],
        "tests": [{"name": "t", "owner": odd, "results": {"retried": 3}}],
    }
    body = json.dumps({"result": result, "version": 2}).encode()
    look(connection, received(body))
    assert rows_of(connection, runs)[0]["extra"] == {"new": odd, "$": {"version": 2}}
    assert rows_of(connection, environments)[0]["extra"] == {"region": "eu"}
    assert rows_of(connection, tests)[0]["extra"] == {"owner": odd}
    others = columns_of(rows_of(connection, counts), "test_position", "other")
    assert others == [(0, {"skipped": 2}), (1, {"retried": 3})]


def test_an_answer_without_anything_in_it_is_archived(connection: Connection) -> None:
    look(connection, answer({}))
    [run] = rows_of(connection, runs)
    assert (run["status"], run["started_at"], run["test_count"]) == (None, None, 0)
    assert columns_of(rows_of(connection, counts), *COUNTERS, "total") == [(None,) * 6]


def test_the_first_and_the_last_moment_there_are_can_be_kept(connection: Connection) -> None:
    moments = ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59.999+00:00"]
    for started_at, run_id in zip(moments, RUN_IDS, strict=False):
        look(connection, answer({"started_at": started_at}, run_id=run_id))
    kept = [row["started_at"] for row in rows_of(connection, runs)]
    assert kept == [datetime.fromisoformat(moment) for moment in moments]


def test_warnings_are_kept_with_the_revision_that_they_are_of(connection: Connection) -> None:
    look(connection, answer({"duration": "abc"}))
    look(connection, answer({"duration": 1, "name": "a\0b"}, minutes=1))
    key = {"run_id": "run-1"}
    assert rows_of(connection, warnings) == [
        key
        | {
            "revision": 1,
            "path": "result.duration",
            "value": '"abc"',
            "reason": "is no whole number",
        },
        key
        | {
            "revision": 2,
            "path": "result.name",
            "value": r'"a\u0000b"',
            "reason": "has a NUL or a lone surrogate, kept as U+FFFD",
        },
    ]
    assert rows_of(connection, runs)[0]["name"] == "a\N{REPLACEMENT CHARACTER}b"


def test_an_encoding_that_is_not_known_is_named() -> None:
    with pytest.raises(ValueError, match="unknown encoding 'brotli'"):
        decompress(b"", "brotli")


def test_times_rest_on_sqlite_as_bi_clients_read_them(sqlite_url: str) -> None:
    """DESIGN, section 6: a space, three digits; a day is its midnight."""
    engine = connect(sqlite_url)
    prepare(engine)
    with writing(engine) as connection:
        fill_every_column_that_has_times(connection)
        kept = {
            column: as_it_rests(connection, column)
            for table in metadata.sorted_tables
            if table.name
            not in {*COUNTED, *FIXED, "health", "source_limits", "workers", "pass_workers"}
            for column in table.columns
            if isinstance(column.type, Timestamp | Day)
        }
    engine.dispose()
    others = {
        runs.c.started_on: "2024-03-02 00:00:00.000",
        runs.c.ended_at: "2024-03-01 18:00:01.000",
        ingests.c.finished_at: "2024-03-01 18:00:00.000",
    }
    assert kept == dict.fromkeys(kept, "2024-03-01 18:00:00.123") | others


def as_it_rests(connection: Connection, column: Column[Any]) -> Any:
    """Return the one value that stands in a column, as the database has it."""
    name, table = column.name, column.table.name
    rows = connection.exec_driver_sql(
        f"SELECT DISTINCT {name} FROM {table} WHERE {name} IS NOT NULL"
    )
    return rows.scalar_one()


def fill_every_column_that_has_times(connection: Connection) -> None:
    """Put START in all of them but those that have to differ."""
    tracking.track(connection, [Entry("run-1", None, None, {})], START)
    first = {"started_at": START.isoformat(), "status": "failed", "duration": 877}
    look(connection, answer(first))
    look(connection, answer(first | {"new": 1}))
    leases.mark_gone(connection, ["run-1"], START)
    keep_rejects(connection, [unreadable("run-1", "is no JSON", b"<")])
    finished_at = START.replace(microsecond=0)
    run = {"trigger": "test", "started_at": START, "finished_at": finished_at}
    connection.execute(insert(ingests).values(run))
    tracking.make_due(connection, None, START)
    held = {tracked_runs.c.lease_owner: "somebody", tracked_runs.c.lease_until: START}
    connection.execute(tracked_runs.update().values(held | {tracked_runs.c.failing_since: START}))


# --- the same again, and something else -----------------------------------------------------


def test_the_same_content_again_changes_no_row(connection: Connection) -> None:
    result = {"status": "unresolved", "duration": "abc", "tests": [a_test("a", failed=1)]}
    look(connection, answer(result))
    once = dump(connection, leave_out=LEDGER)
    again = json.dumps({"result": dict(reversed(result.items()))}, indent=2).encode()
    saved = look(connection, received(again, after(5)))["run-1"]
    assert dump(connection, leave_out=LEDGER) == once
    assert (saved.is_new, saved.is_changed, saved.archived.revision) == (False, False, 1)


def test_going_back_to_an_earlier_content_opens_a_new_stretch(connection: Connection) -> None:
    a: dict[str, Any] = {"status": "unresolved", "duration": 1}
    b: dict[str, Any] = {"status": "passed", "results": {"passed": 2}}
    for minutes, result in [(0, a), (10, a), (20, b), (30, b), (40, b), (50, a)]:
        look(connection, answer(result, minutes))
    names = ("revision", "observed_at", "last_seen_at", "superseded_at", "status", "duration_ms")
    kept = rows_of(connection, revisions)
    assert columns_of(kept, *names, "passed", "total") == [
        (1, after(0), after(10), after(20), "unresolved", 1, None, None),
        (2, after(20), after(40), after(50), "passed", None, 2, 2),
        (3, after(50), None, None, "unresolved", 1, None, None),
    ]
    assert kept[0]["content_hash"] == kept[2]["content_hash"] != kept[1]["content_hash"]


def test_a_change_replaces_what_the_answer_decides_of_a_run(connection: Connection) -> None:
    old = {"name": "old", "status": "unresolved", "environments": [{"os": "Linux"}] * 2}
    new = {"name": "new", "status": "passed", "environments": [{"os": "macOS"}], "extra": 1}
    look(connection, answer(old))
    look(connection, answer(new, minutes=5))
    [run] = rows_of(connection, runs)
    replaced = ("name", "status", "environment_count", "revision", "changed_at", "extra")
    assert columns_of([run], *replaced) == [("new", "passed", 1, 2, after(5), {"extra": 1})]
    assert run["archived_at"] == START
    assert run["content_hash"] == answer(new).content_hash
    assert columns_of(rows_of(connection, environments), "position", "os") == [(1, "macOS")]


ODD_BODIES = [
    b' {"result" : {"name": "\\u00e4"} }\r\n',
    b'\xef\xbb\xbf{"result": {"name": "with a byte order mark"}}',
    '{"result": {"name": "in UTF-16: ä"}}'.encode("utf-16"),
    b'{"result": {"name": "\\ud800"}, "result": {"name": "a name twice"}}',
    b' {"result" : {"name": "\\u00e4"} }\r\n',
]


def test_the_body_of_every_revision_can_be_had_back_byte_for_byte(connection: Connection) -> None:
    for minutes, body in enumerate(ODD_BODIES):
        look(connection, received(body, after(minutes)))
    kept = rows_of(connection, payloads)
    assert [decompress(row["body"], row["encoding"]) for row in kept] == ODD_BODIES
    assert [row["size"] for row in kept] == [len(body) for body in ODD_BODIES]


def test_a_test_that_left_the_answer_leaves_the_tables_but_not_history(
    connection: Connection,
) -> None:
    look(connection, answer({"tests": [a_test("a", passed=1), a_test("b", "failed", failed=2)]}))
    look(connection, answer({"tests": [a_test("a", passed=1)]}, minutes=1))
    assert columns_of(rows_of(connection, tests), "position", "name") == [(1, "a")]
    assert columns_of(rows_of(connection, counts), "test_position") == [(0,), (1,)]
    assert rows_of(connection, test_revisions) == [
        NOTHING
        | {
            "run_id": "run-1",
            "revision": 1,
            "position": 2,
            "test_id": "id of b",
            "name": "b",
            "status": "failed",
            "failed": 2,
            "absent": False,
        }
    ]


def test_a_test_that_appeared_was_absent_from_the_revision_before(connection: Connection) -> None:
    look(connection, answer({"tests": [a_test("a")]}))
    look(connection, answer({"tests": [a_test("a"), a_test("b")]}, minutes=1))
    nothing = NOTHING | dict.fromkeys(["test_id", "name", "status"])
    assert rows_of(connection, test_revisions) == [
        nothing | {"run_id": "run-1", "revision": 1, "position": 2, "absent": True}
    ]


def test_history_keeps_no_test_that_stayed_as_it_was(connection: Connection) -> None:
    look(connection, answer({"status": "unresolved", "tests": [a_test("a"), a_test("b")]}))
    look(connection, answer({"status": "passed", "tests": [a_test("a"), a_test("b")]}, minutes=1))
    assert rows_of(connection, test_revisions) == []


def test_history_tells_a_count_of_0_from_none(connection: Connection) -> None:
    look(connection, answer({"tests": [a_test("a")]}))
    look(connection, answer({"tests": [a_test("a", failed=0)]}, minutes=1))
    look(connection, answer({"tests": [a_test("a")]}, minutes=2))
    kept = columns_of(rows_of(connection, test_revisions), "revision", "failed")
    assert kept == [(1, None), (2, 0)]


def test_a_clock_that_was_set_back_does_not_turn_history_around(connection: Connection) -> None:
    look(connection, answer({"status": "unresolved"}, minutes=60))
    look(connection, answer({"status": "passed"}, minutes=0))
    names = ("observed_at", "last_seen_at", "superseded_at")
    assert columns_of(rows_of(connection, revisions), *names) == [
        (after(60), after(60), after(60)),
        (after(60), None, None),
    ]
    [run] = rows_of(connection, runs)
    assert run["changed_at"] == after(60)


# --- 'as of' (DESIGN, section 2) ------------------------------------------------------------

TESTED = ("test_id", "name", "status", *COUNTERS)

some_tests = st.lists(
    st.builds(
        a_test,
        st.sampled_from("ab"),
        st.sampled_from(["passed", "failed"]),
        failed=st.integers(0, 1),
    ),
    max_size=3,
)


@contextmanager
def rolled_back(connection: Connection) -> Iterator[None]:
    """Undo what is done in the block."""
    savepoint = connection.begin_nested()
    try:
        yield
    finally:
        savepoint.rollback()


def as_of(connection: Connection, revision: int) -> dict[int, tuple[Any, ...]]:
    """Return the tests that the run had in `revision`, by position."""
    same_test = and_(counts.c.run_id == tests.c.run_id, counts.c.test_position == tests.c.position)
    now = select(tests, counts, literal(False).label("absent")).join(counts, same_test)
    history = (
        select(test_revisions)
        .where(test_revisions.c.revision >= revision)
        .order_by(test_revisions.c.revision.desc())
    )
    rows = [*connection.execute(now).mappings(), *connection.execute(history).mappings()]
    # A later one replaces an earlier one: the smallest revision stands last.
    found = {row["position"]: row for row in rows}
    return {
        position: tuple(row[name] for name in TESTED)
        for position, row in found.items()
        if not row["absent"]
    }


def states_of(listed: Sequence[dict[str, Any]]) -> dict[int, tuple[Any, ...]]:
    return {
        position: (test["id"], test["name"], test["status"], test["results"]["failed"], *[None] * 4)
        for position, test in enumerate(listed, start=1)
    }


def test_every_revision_can_be_had_back_as_it_was(connection: Connection) -> None:
    @settings(max_examples=100 if connection.dialect.name == "sqlite" else 20, deadline=None)
    @given(st.lists(some_tests, min_size=1, max_size=6))
    def holds(history: list[list[dict[str, Any]]]) -> None:
        with rolled_back(connection):
            for minutes, listed in enumerate(history):
                look(connection, answer({"tests": listed}, minutes))
            contents = [listed for listed, _same in groupby(history)]
            known = [as_of(connection, revision + 1) for revision in range(len(contents))]
        assert known == [states_of(listed) for listed in contents]

    holds()


# --- drift and rejects ----------------------------------------------------------------------


def test_drift_keeps_the_earliest_sight_whatever_came_first(connection: Connection) -> None:
    sights = [answer({"new": 1}, 3 - number, run_id) for number, run_id in enumerate(RUN_IDS)]
    earliest = {
        "path": "result.new",
        "json_type": "number",
        "first_run_id": "run-3",
        "first_seen_at": after(1),
    }
    for batches in (zip(sights), zip(reversed(sights)), [sights]):
        with rolled_back(connection):
            for batch in batches:
                look(connection, *batch)
            assert rows_of(connection, drift) == [earliest]


def test_drift_seen_at_the_same_moment_is_of_the_first_run_by_code_point(
    connection: Connection,
) -> None:
    tracking.track(connection, [Entry(run_id, None, None, {}) for run_id in "Za"], START)
    for order in ("Za", "aZ"):
        with rolled_back(connection):
            for run_id in order:
                look(connection, answer({"new": 1}, run_id=run_id))
            assert columns_of(rows_of(connection, drift), "first_run_id") == [("Z",)]


def test_drift_of_several_kinds_is_told_apart(connection: Connection) -> None:
    look(connection, answer({"status": "odd", "new": 1, "tests": [{"new": None}]}))
    look(connection, answer({"new": "text"}, run_id="run-2"))
    assert columns_of(rows_of(connection, drift), "path", "json_type", "first_run_id") == [
        ("result.new", "number", "run-1"),
        ("result.new", "string", "run-2"),
        ("result.status=odd", "string", "run-1"),
        ("result.tests[].new", "null", "run-1"),
    ]


def test_more_novelties_than_one_statement_can_name_are_kept(connection: Connection) -> None:
    look(connection, answer({f"new-{number}": 1 for number in range(1200)}))
    look(connection, answer({f"new-{number}": 1 for number in range(1201)}, minutes=1))
    moments = [row["first_seen_at"] for row in rows_of(connection, drift)]
    assert sorted(moments) == [START] * 1200 + [after(1)]


def test_the_same_bad_answer_is_rejected_once(connection: Connection) -> None:
    bad = unreadable("run-1", "the answer is empty", b"")
    keep_rejects(connection, [bad])
    once = rows_of(connection, rejects)
    keep_rejects(connection, [replace(bad, fetched_at=after(1))])
    keep_rejects(connection, [])
    assert rows_of(connection, rejects) == once
    [row] = once
    kept = [
        row[name] for name in ("run_id", "fetched_at", "http_status", "reason", "body", "sha256")
    ]
    assert kept == ["run-1", START, 200, "the answer is empty", b"", "c0ffee"]


def test_another_bad_answer_is_another_reject(connection: Connection) -> None:
    bad = unreadable("run-1", "the answer is empty", b"")
    others = [
        replace(bad, run_id="run-2"),
        replace(bad, sha256="deca"),
        replace(bad, http_status=500),
    ]
    keep_rejects(connection, [bad, *others])
    assert len(rows_of(connection, rejects)) == 4


# --- runs that the API has no more ----------------------------------------------------------


def gone_at(connection: Connection) -> dict[str, datetime | None]:
    return {row["run_id"]: row["gone_at"] for row in rows_of(connection, runs)}


def test_a_run_is_gone_since_it_was_first_missed(connection: Connection) -> None:
    look(connection, answer({}), answer({}, run_id="run-2"))
    leases.mark_gone(connection, ["run-1", "run-3"], after(1))
    leases.mark_gone(connection, ["run-1"], after(2))
    assert gone_at(connection) == {"run-1": after(1), "run-2": None}


@pytest.mark.parametrize("result", [{"status": "passed"}, {"status": "failed"}])
def test_a_run_that_is_back_is_gone_no_more(connection: Connection, result: dict[str, Any]) -> None:
    look(connection, answer({"status": "passed"}), answer({}, run_id="run-2"))
    leases.mark_gone(connection, ["run-1", "run-2"], after(1))
    saved = look(connection, answer(result, minutes=2))["run-1"]
    assert gone_at(connection) == {"run-1": None, "run-2": after(1)}
    assert saved.archived.gone_at is None


def test_a_run_that_answers_with_the_same_bytes_is_gone_no_more(connection: Connection) -> None:
    """Only a copy of the views has to learn of it: row_changed_at moves."""
    look(connection, answer({}))
    once = dump(connection)
    leases.mark_gone(connection, ["run-1"], after(1))
    leases.clear_gone(connection, dict.fromkeys(["run-1", "run-2"], after(2)))
    once["runs"][0]["row_changed_at"] = after(2)
    once["tracked_runs"][0]["context_changed_at"] = after(2)
    assert dump(connection) == once


# --- what is known of runs ------------------------------------------------------------------


def test_saving_tells_new_from_changed_from_unchanged(connection: Connection) -> None:
    look(connection, answer({"name": "a"}), answer({"name": "b"}, run_id="run-2"))
    changed, new = answer({"name": "c"}, 1, "run-2"), answer({"name": "d"}, 1, "run-3")
    saved = store.store_answers(connection, [answer({"name": "a"}, 1), changed, new], DEFAULT_RULES)
    known = read_archived(connection, RUN_IDS)
    assert saved == {
        "run-1": StoredAnswer(is_new=False, is_changed=False, archived=known["run-1"]),
        "run-2": StoredAnswer(is_new=False, is_changed=True, archived=known["run-2"]),
        "run-3": StoredAnswer(is_new=True, is_changed=False, archived=known["run-3"]),
    }


def test_the_archive_tells_what_it_has_of_a_run(connection: Connection) -> None:
    result = {"status": "passed", "started_at": "2024-03-01T11:00:00Z", "duration": 60_000}
    look(connection, answer(result, minutes=5))
    started_at = datetime(2024, 3, 1, 11, 0, 0, 0, UTC)
    assert read_archived(connection, ["run-1", "run-2"]) == {
        "run-1": ArchivedRun(
            run_id="run-1",
            revision=1,
            content_hash=answer(result).content_hash,
            status="passed",
            started_at=started_at,
            ended_at=started_at + timedelta(minutes=1),
            archived_at=after(5),
            changed_at=after(5),
            gone_at=None,
            context_changed_at=None,
            last_fetched_at=after(5),
        )
    }


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({}, Seen("passed", after(1), over_since=after(2), changed_at=after(2))),
        ({"started_at": None}, Seen("passed", after(0), after(2), after(2))),
        ({"ended_at": None}, Seen("passed", after(1), after(3), after(3))),
        ({"revision": 2}, Seen("passed", after(1), after(2), changed_at=after(3))),
    ],
)
def test_what_polling_decides_by_is_known_as_well_as_can_be(
    changes: dict[str, Any], seen: Seen
) -> None:
    known = ArchivedRun(
        run_id="run-1",
        revision=1,
        content_hash="c0ffee",
        status="passed",
        started_at=after(1),
        ended_at=after(2),
        archived_at=after(3),
        changed_at=after(3),
        gone_at=None,
        context_changed_at=None,
        last_fetched_at=after(4),
    )
    assert known._replace(**changes).seen(first_tracked_at=after(0)) == seen


def test_a_run_is_known_by_the_bytes_of_its_newest_payload(connection: Connection) -> None:
    newest = answer({"name": "b"}, minutes=1)
    look(connection, answer({"name": "a"}))
    look(connection, newest)
    seen = read_archived(connection, ["run-1"])["run-1"].seen(START)
    assert read_newest_answers(connection, dict.fromkeys(["run-1", "run-2"], START)) == {
        "run-1": NewestAnswer(seen, newest.body.sha256)
    }


# --- whole batches --------------------------------------------------------------------------


def test_the_order_in_which_runs_come_changes_no_row(connection: Connection) -> None:
    first = [answer({"new": 1}, 9 - number, run_id) for number, run_id in enumerate(RUN_IDS)]
    then = [answer({"new": None}, 10, run_id) for run_id in RUN_IDS]
    one_by_one = [[each] for two in zip(first[::-1], then[::-1], strict=True) for each in two]
    dumps = []
    for batches in ([first, then], one_by_one):
        with rolled_back(connection):
            for batch in batches:
                look(connection, *batch)
            count_all(connection)
            dumps.append(dump(connection))
    assert dumps[0] == dumps[1]


def test_no_answers_change_nothing(connection: Connection) -> None:
    look(connection, answer({}))
    once = dump(connection)
    assert look(connection) == {}
    assert dump(connection) == once


def broken(whole: Answer) -> Answer:
    """Return an answer whose rows break a key, in the middle of what is stored of it."""
    rows = whole.rows
    return replace(whole, rows=rows._replace(environments=rows.environments * 2))


def store_a_batch_that_breaks(engine: Engine) -> None:
    environment = {"environments": [{"os": "Linux"}]}
    with writing(engine) as connection:
        tracking.track(connection, [Entry("run-4", None, None, {"branch": "main"})], after(1))
        leases.mark_gone(connection, ["run-2"], after(1))
        keep_rejects(connection, [unreadable("run-3", "is no JSON", b"<")])
        changed = answer({"name": "b", "tests": [a_test("a", failed=1)]}, 1)
        look(connection, changed, broken(answer(environment, 1, "run-3")))


def test_an_error_amid_a_batch_leaves_nothing_of_it(engine: Engine) -> None:
    with writing(engine) as connection:
        look(connection, answer({"tests": [a_test("a"), a_test("b")]}))
        look(connection, answer({}, run_id="run-2"))
    with reading(engine) as connection:
        before = dump(connection)
    with pytest.raises(DatabaseError, match="environments"):
        store_a_batch_that_breaks(engine)
    with reading(engine) as connection:
        assert dump(connection) == before


def store_until_interrupted(engine: Engine) -> None:
    with writing(engine) as connection:
        look(connection, answer({"tests": [a_test("a")]}))
        raise KeyboardInterrupt


def test_an_interrupt_amid_a_batch_leaves_nothing_of_it(engine: Engine) -> None:
    with reading(engine) as connection:
        before = dump(connection)
    with pytest.raises(KeyboardInterrupt):
        store_until_interrupted(engine)
    with reading(engine) as connection:
        assert dump(connection) == before
