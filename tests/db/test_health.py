"""What a pass writes down at its end about the archive."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, select

from etl.answers.outcome import Reason
from etl.db import schema
from etl.db.database import connect, prepare, reading, writing
from etl.db.schema import drift, ingests
from etl.ledger import health, leases, tracking
from etl.ledger.lifecycle import Standing, State
from etl.ledger.tracking import Entry
from etl.ledger.verdicts import Recorded
from tests.support.histories import a_run, see
from tests.support.looks import a_test, look

NOW = datetime(2024, 3, 31, 12, 0, 0, 123000, UTC)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
EMPTY = {
    "pass_id": 1,
    "source": "default",
    "measured_at": NOW,
    "open_runs": 0,
    "open_tests": 0,
    "oldest_open_at": None,
    "never_fetched": 0,
    "failed": 0,
    "gone": 0,
    "poll_gap_p95_ms": None,
    "new_fields_7_days": 0,
    "last_success_at": None,
}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A new archive in which a pass is just ending."""
    engine = connect(database_url)
    prepare(engine)
    a_pass(engine, NOW, 1)
    yield engine
    engine.dispose()


def a_pass(engine: Engine, at: datetime, exit_code: int) -> None:
    row = {"trigger": "ingest", "started_at": at, "finished_at": at, "exit_code": exit_code}
    with writing(engine) as connection:
        connection.execute(insert(ingests).values(row))


def measured(engine: Engine) -> dict[str, Any]:
    """Return the row of the pass, of the only account."""
    [row] = measured_by_account(engine).values()
    return row


def measured_by_account(engine: Engine) -> dict[str, dict[str, Any]]:
    """Return the rows of the pass; made a second time, as after a commit whose answer was lost."""
    for _ in range(2):
        with writing(engine) as connection:
            health.record_health(connection, 1, NOW)
    with reading(engine) as connection:
        rows = connection.execute(select(schema.health)).mappings()
        return {row["source"]: dict(row) for row in rows}


def only(row: dict[str, Any], names: str) -> list[Any]:
    return [row[name] for name in names.split()]


def test_an_empty_archive_is_told_as_such(engine: Engine) -> None:
    assert measured(engine) == EMPTY


def test_what_waits_for_a_person_is_counted_as_it_is_now(engine: Engine) -> None:
    statuses = ("unresolved", "unresolved", "passed")
    tests = [a_test(f"test {n}", status) for n, status in enumerate(statuses)]
    look(engine, "older", NOW - DAY, *tests, started_at="2024-03-04T09:00:00Z")
    look(engine, "newer", NOW - DAY, *tests[1:], started_at="2024-03-05T09:00:00Z")
    look(engine, "decided", NOW - DAY, *tests, started_at="2024-03-03T09:00:00Z")
    look(engine, "decided", NOW, tests[2], started_at="2024-03-03T09:00:00Z")
    since = datetime(2024, 3, 4, 9, 1, tzinfo=UTC)
    assert only(measured(engine), "open_runs open_tests oldest_open_at") == [2, 3, since]


def test_a_run_of_unknown_end_waits_since_it_was_seen(engine: Engine) -> None:
    look(engine, "run-1", NOW - DAY, a_test("cart", "unresolved"), duration=None)
    assert measured(engine)["oldest_open_at"] == NOW - DAY


def test_the_ledger_is_counted(engine: Engine) -> None:
    look(engine, "archived", NOW)
    known = {
        "queued": Standing(State.QUEUED, NOW),
        "retrying": Standing(State.RETRYING, NOW, 1, Reason.NO_ANSWER, "timeout"),
        "failed": Standing(State.FAILED, None, 5, Reason.NOT_FOUND, "not found"),
    }
    with writing(engine) as connection:
        tracking.track(connection, [Entry(run_id, None, None, {}) for run_id in known], NOW)
        leases.record(connection, [Recorded(run_id, each, None) for run_id, each in known.items()])
        leases.mark_gone(connection, ["archived"], NOW)
    assert only(measured(engine), "never_fetched failed gone") == [2, 1, 1]


def test_each_account_is_measured_by_itself(engine: Engine) -> None:
    for minutes, source in enumerate(["eu", "us", "us"], start=1):
        looks = {2 * DAY: "UU", DAY + minutes * MINUTE: "UU", DAY: "PU"}
        for before, letters in looks.items():
            run = a_run("2024-03-04T09:00:00Z", {"a": letters})
            see(engine, NOW - before, {f"run-{minutes}": run}, source=source)
    failed = Standing(State.FAILED, None, 5, Reason.NOT_FOUND, "not found")
    with writing(engine) as connection:
        tracking.track(connection, [Entry("queued", "asia", None, {})], NOW)
        tracking.track(connection, [Entry("failed", "us", None, {})], NOW)
        leases.record(connection, [Recorded("failed", failed, None)])
        leases.mark_gone(connection, ["run-1"], NOW)
    rows = measured_by_account(engine)
    names = "open_runs never_fetched failed gone poll_gap_p95_ms"
    assert {source: only(row, names) for source, row in rows.items()} == {
        "asia": [0, 1, 0, 0, None],
        "eu": [1, 0, 0, 1, 1 * 60_000],
        "us": [2, 0, 1, 0, 3 * 60_000],
    }


def test_the_gap_between_looks_is_that_of_changes_that_were_seen(engine: Engine) -> None:
    """20 changes with gaps of 1 to 20 minutes: the 19th is the 95th percentile (nearest rank)."""
    for minutes in range(1, 21):
        run_id = f"run-{minutes}"
        look(engine, run_id, NOW - 2 * DAY, a_test("cart", "pending"))
        look(engine, run_id, NOW - DAY - minutes * MINUTE, a_test("cart", "pending"))
        look(engine, run_id, NOW - DAY, a_test("cart", "passed"))
    look(engine, "long ago", NOW - 50 * DAY, a_test("cart", "pending"))
    look(engine, "long ago", NOW - 31 * DAY, a_test("cart", "passed"))
    assert measured(engine)["poll_gap_p95_ms"] == 19 * 60_000


def test_only_new_fields_of_the_last_week_are_counted(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(
            insert(drift),
            [
                {"path": f"field {n}", "json_type": "string", "first_run_id": "run-1"}
                | {"first_seen_at": NOW - n * DAY}
                for n in (1, 6, 7, 8)
            ],
        )
    assert measured(engine)["new_fields_7_days"] == 2


def test_the_last_success_is_that_of_the_newest_pass_that_ended_well(engine: Engine) -> None:
    a_pass(engine, NOW - DAY, 0)
    a_pass(engine, NOW - MINUTE, 0)
    a_pass(engine, NOW, 5)
    assert measured(engine)["last_success_at"] == NOW - MINUTE


def test_no_question_reads_all_runs(sqlite_url: str) -> None:
    """Each goes by an index that has only the rows it is about, whatever is archived beside."""
    engine = connect(sqlite_url)
    prepare(engine)
    asked: list[tuple[str, Any]] = []
    with writing(engine) as connection:
        event.listen(
            connection,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, parameters, *_: asked.append(
                (statement, parameters)
            ),
        )
        health.record_health(connection, 1, NOW)
        plans = [
            row.detail.split()
            for statement, parameters in tuple(asked)
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
    engine.dispose()
    big = {"tracked_runs", "outcomes", "revisions"}
    read = [plan for plan in plans if plan[:1] in (["SCAN"], ["SEARCH"]) and plan[1] in big]
    assert len(read) == 5
    assert [plan for plan in read if not plan[plan.index("INDEX") + 1].startswith("ix_")] == []
