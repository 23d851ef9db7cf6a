from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Table, delete, insert, select
from sqlalchemy.exc import IntegrityError

from etl.db import bulk
from etl.db.database import connect, prepare, shown_url, writing
from etl.db.schema import (
    among,
    daily_results,
    drift,
    environments,
    labels,
    payloads,
    runs,
    tests,
    tracked_runs,
)
from etl.errors import DatabaseError
from tests.support.dump import rows_of
from tests.support.postgres import Server

AT = datetime(2024, 2, 29, 23, 59, 59, 999000, UTC)
ODD_TEXTS = ["", r"\N", r"\.", "tab\there", "line\nbreak\r\n", "back\\slash", "NULL", "ä€𝄞"]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A new archive, with one tracked run."""
    engine = connect(database_url)
    prepare(engine)
    with writing(engine) as connection:
        run = {"run_id": "run-1", "source": "default", "state": "queued", "first_tracked_at": AT}
        connection.execute(insert(tracked_runs).values(run))
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with writing(engine) as connection:
        yield connection


def run_row(**changes: Any) -> tuple[Any, ...]:
    """Return a row of `runs` with a value in every column."""
    row = {
        "run_id": "run-1",
        "source": "default",
        "result_id": "result-1",
        "name": "plan",
        "application": "app",
        "status": "passed",
        "started_at": AT,
        "started_on": date(2024, 2, 29),
        "iso_date": "2024-02-29",
        "started_hour": 23,
        "duration_ms": 2**63 - 1,
        "ended_at": AT + timedelta(seconds=1),
        "environment_count": 0,
        "test_count": -(2**63),
        "environment_signature": "[]",
        "revision": 1,
        "content_hash": "c0ffee",
        "archived_at": AT,
        "changed_at": AT,
        "row_changed_at": AT,
        "gone_at": AT,
        "extra": '{"b":[1,null],"a":"text"}',
    }
    return tuple((row | changes).values())


def test_a_row_is_read_back_as_it_was_inserted(connection: Connection) -> None:
    bulk.insert(connection, runs, [run_row()])
    [row] = rows_of(connection, runs)
    assert row.pop("extra") == {"b": [1, None], "a": "text"}
    assert tuple(row.values()) == run_row()[:-1]


def test_texts_and_nulls_come_back_as_they_were(connection: Connection) -> None:
    rows = [("run-1", f"name-{index}", text) for index, text in enumerate(ODD_TEXTS)]
    bulk.insert(connection, labels, rows)
    assert [tuple(row.values()) for row in rows_of(connection, labels)] == rows
    bulk.insert(connection, runs, [run_row()])
    bulk.insert(connection, environments, [("run-1", 1, "", *[None] * 7)])
    [environment] = rows_of(connection, environments)
    assert tuple(environment.values()) == ("run-1", 1, "", *[None] * 7)


def test_every_byte_comes_back_as_it_was(connection: Connection) -> None:
    body = bytes(range(256))
    bulk.insert(connection, payloads, [("run-1", 1, body, "zstd", 256, "c0ffee", AT, None)])
    assert rows_of(connection, payloads)[0]["body"] == body


def test_a_time_of_any_zone_is_kept_in_utc_and_cut_to_milliseconds(connection: Connection) -> None:
    kathmandu = timezone(timedelta(hours=5, minutes=45))
    moment = datetime(2024, 1, 1, 3, 0, 0, 123999, kathmandu)
    bulk.insert(connection, drift, [("result.new", "string", "run-1", moment)])
    kept = rows_of(connection, drift)[0]["first_seen_at"]
    assert kept == datetime(2023, 12, 31, 21, 15, 0, 123000, UTC)
    bulk.update(connection, drift, ["first_seen_at"], [(moment, "result.new", "string")])
    assert rows_of(connection, drift)[0]["first_seen_at"] == kept


def test_a_naive_time_is_refused(connection: Connection) -> None:
    naive = datetime(2024, 1, 1)  # noqa: DTZ001  the mistake itself
    with pytest.raises(ValueError, match="2024-01-01 00:00:00 has no time zone"):
        bulk.insert(connection, drift, [("result.new", "string", "run-1", naive)])
    with pytest.raises(ValueError, match="2024-01-01 00:00:00 has no time zone"):
        bulk.update(connection, drift, ["first_seen_at"], [(naive, "result.new", "string")])


def test_an_update_changes_the_named_columns_of_the_named_rows(connection: Connection) -> None:
    bulk.insert(connection, labels, [("run-1", name, "old") for name in "abc"])
    bulk.update(connection, labels, ["value"], [("new", "run-1", "a"), ("", "run-1", "c")])
    kept = {row["name"]: row["value"] for row in rows_of(connection, labels)}
    assert kept == {"a": "new", "b": "old", "c": ""}


def test_an_update_can_set_all_kinds_of_columns_to_a_value_and_to_null(
    connection: Connection,
) -> None:
    bulk.insert(connection, runs, [run_row()])
    names = [column.name for column in runs.columns if column.name != "run_id"]
    changed = run_row(name=None, started_at=None, started_on=None, duration_ms=None, extra=None)
    bulk.update(connection, runs, names, [(*changed[1:], "run-1")])
    [row] = rows_of(connection, runs)
    assert tuple(row.values()) == changed
    bulk.update(connection, runs, names, [(*run_row()[1:], "run-1")])
    [row] = rows_of(connection, runs)
    assert tuple(row.values())[:-1] == run_row()[:-1]


def test_no_rows_are_no_work(connection: Connection) -> None:
    bulk.insert(connection, labels, [])
    bulk.update(connection, labels, ["value"], [])
    assert rows_of(connection, labels) == []


def test_a_row_that_is_there_already_is_an_integrity_error(connection: Connection) -> None:
    bulk.insert(connection, labels, [("run-1", "branch", "main")])
    with pytest.raises(IntegrityError), connection.begin_nested():
        bulk.insert(connection, labels, [("run-1", "branch", "main")])
    assert len(rows_of(connection, labels)) == 1


def test_a_row_that_breaks_a_rule_is_told_in_one_line(engine: Engine) -> None:
    with pytest.raises(DatabaseError) as caught, writing(engine) as connection:
        bulk.insert(connection, labels, [("unknown", "branch", "secret-value")])
    message = str(caught.value)
    assert "foreign key" in message.lower()
    assert "\n" not in message
    assert "secret-value" not in message


def insert_on_a_connection_that_is_lost(engine: Engine, postgresql: Server) -> None:
    with writing(engine) as connection, postgresql.administer() as admin:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        bulk.insert(connection, drift, [("result.new", "string", "run-1", AT)])


def test_a_connection_that_is_lost_during_an_insert_is_told_and_replaced(
    postgresql_url: str, postgresql: Server
) -> None:
    engine = connect(postgresql_url)
    prepare(engine)
    with pytest.raises(DatabaseError) as caught:
        insert_on_a_connection_that_is_lost(engine, postgresql)
    assert str(caught.value) == (
        f"{shown_url(engine)}: the connection is lost"
        "; check database.url, and that the database runs and lets this user in"
    )
    with writing(engine) as connection:
        assert rows_of(connection, drift) == []
    engine.dispose()


def test_many_runs_are_found_by_the_key_and_not_by_reading_all_rows(sqlite_url: str) -> None:
    engine = connect(sqlite_url)
    prepare(engine)
    chosen = delete(tests).where(among(tests.c.run_id, ["run-1", "run-2"]))
    compiled = chosen.compile(engine)
    with writing(engine) as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", ('["run-1"]',)).all()
    engine.dispose()
    assert any("SEARCH tests USING PRIMARY KEY" in row.detail for row in plan), plan


DAY = date(2024, 5, 1)


@pytest.mark.parametrize(
    ("table", "last"), [(tests, 1), (daily_results, DAY), (labels, "a label")], ids=str
)
def test_rows_are_found_and_deleted_by_the_whole_key_and_not_by_reading_more(
    sqlite_url: str, table: Table, last: Any
) -> None:
    """Neither all rows, nor those that begin alike, such as all days of a plan."""
    engine = connect(sqlite_url)
    prepare(engine)
    statements: list[str] = []
    keys = [(f"run-{number}", last) for number in range(max(bulk.HEIGHTS))]
    names = [column.name for column in table.columns][-1:]
    with writing(engine) as connection:
        driver: Any = connection.connection.driver_connection
        driver.set_trace_callback(statements.append)
        bulk.find(connection, table, names, keys)
        bulk.delete(connection, table, keys)
        bulk.take(connection, table, names, keys)
        driver.set_trace_callback(None)
        chosen = [each for each in statements if each.startswith(("SELECT", "DELETE"))]
        plans = [connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {each}").all() for each in chosen]
    engine.dispose()
    assert len(plans) == 3
    for plan in plans:
        searches = [row.detail for row in plan if row.detail.startswith(("SEARCH", "SCAN"))]
        assert len(searches) == max(bulk.HEIGHTS)
        assert all(search.count("=?") == 2 for search in searches), searches


def test_runs_are_chosen_by_being_among_others_or_not(connection: Connection) -> None:
    listed, others = (
        connection.scalars(select(tracked_runs.c.run_id).where(condition)).all()
        for condition in (
            among(tracked_runs.c.run_id, ["run-1", "run-2"]),
            ~among(tracked_runs.c.run_id, ["run-1", "run-2"]),
        )
    )
    assert (listed, others) == (["run-1"], [])
