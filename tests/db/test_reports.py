"""Reports: the same answer from the tables and from history, now and as of any moment."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, insert

from etl import clock
from etl.config.settings import DEFAULT_RULES
from etl.db.database import connect, prepare, reading, snapshot, writing
from etl.db.schema import health, ingests
from etl.derived.marks import has_dirty_marks
from etl.reports import catalog
from etl.reports.backlog import sum_open
from etl.reports.model import Filter, Filters, ReportRequest, ReportResult
from tests.support.histories import BERLIN, CHROME, SAFARI, a_run, label, measure_all, see
from tests.support.program import Program, program
from tests.support.view_rows import select_all

MARCH = datetime(2024, 3, 1, 9, 0, 0, 123000, UTC)
DAY = timedelta(days=1)
NOW = MARCH + 40 * DAY
PLANS = ({"name": "nightly"}, {"name": " smoke", "application": "café "})
TESTS = ("login", "basket", "pay | now", "search")
LETTERS = "PPPPPFFFUUAN?"


def answers(dice: random.Random, numbers: range) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield made-up answers of runs, one an hour."""
    for number in numbers:
        started_at = MARCH + number * timedelta(hours=7)
        tests = {name: dice.choice(LETTERS) for name in TESTS if dice.random() < 0.9}
        status = dice.choice(["passed", "failed", "unresolved", "cancelled"])
        environments = dice.choice([[CHROME], [SAFARI], [CHROME, SAFARI]])
        fields = dice.choice(PLANS) | {"status": status, "environments": environments}
        duration = dice.randrange(60_000, 900_000)
        yield (
            f"run-{number}",
            a_run(started_at.isoformat(), tests, duration=duration, **fields),
        )


def fill(
    engine: Engine,
    dice: random.Random,
    numbers: range,
    at: datetime,
    source: str = "default",
) -> None:
    """Store answers of runs, ten at a time, a minute from one ten to the next."""
    found = list(answers(dice, numbers))
    for place in range(0, len(found), 10):
        batch = dict(found[place : place + 10])
        see(engine, at + place * timedelta(seconds=6), batch, source=source)


def ask(engine: Engine, name: str, now: datetime = NOW, **asked: Any) -> ReportResult:
    request = ReportRequest(now, DEFAULT_RULES, BERLIN, **asked)
    with reading(engine) as connection:
        return catalog.run(connection, catalog.find(name), request)


def rows(report: ReportResult, leave_out: str = "") -> list[dict[str, Any]]:
    names = [column.name for column in report.columns]
    found = [dict(zip(names, row, strict=True)) for row in report.rows]
    return [{name: row[name] for name in names if name != leave_out} for row in found]


# --- the two ways to an answer --------------------------------------------------------------


def test_what_is_kept_in_tables_and_what_history_says_are_the_same(engine: Engine) -> None:
    dice = random.Random(3)
    fill(engine, dice, range(130), NOW - 2 * DAY)
    fill(engine, dice, range(0, 130, 3), NOW - DAY)
    label(engine, {f"run-{number}": "c1" for number in range(130)})
    note_health(engine, NOW)
    with reading(engine) as connection:
        assert not has_dirty_marks(connection)  # else the tables would not be asked
    of_commit = Filters(labels=(("commit", "c1"),))
    no_history = "is_confirmed_flaky"
    for name, definition in catalog.REPORTS.items():
        kept = ask(engine, name)
        assert kept.rows, name
        assert rows(ask(engine, name, as_of=NOW), no_history) == rows(kept, no_history), name
        if Filter.LABEL in definition.filters:
            streamed = ask(engine, name, filters=of_commit)
            assert (rows(streamed), streamed.notes) == (rows(kept), kept.notes), name


def test_days_in_tables_and_times_in_history_are_the_same(engine: Engine) -> None:
    fill(engine, random.Random(1), range(130), NOW)
    label(engine, {f"run-{number}": "c1" for number in range(130)})
    begin, end = (datetime(2024, 3, day, tzinfo=BERLIN).astimezone(UTC) for day in (11, 25))
    for name in ("trend", "weekly", "overview"):
        kept = ask(engine, name, filters=Filters(since=begin, until=end))
        filters = Filters(labels=(("commit", "c1"),), since=begin, until=end)
        assert rows(ask(engine, name, filters=filters)) == rows(kept) != [], name


@pytest.mark.parametrize("as_of", [None, NOW - DAY])
@pytest.mark.parametrize(
    "filters", [Filters(), Filters(test="basket"), Filters(plan="smoke"), Filters(until=NOW - DAY)]
)
def test_the_first_rows_that_wait_are_those_of_all(
    engine: Engine, as_of: datetime | None, filters: Filters
) -> None:
    """With a limit, the database chooses them."""
    fill(engine, random.Random(1), range(40), NOW - 2 * DAY)
    fill(engine, random.Random(2), range(40, 130), NOW - 2 * DAY, source="other")
    fill(engine, random.Random(4), range(0, 40, 3), NOW - DAY)
    whole = ask(engine, "unresolved", as_of=as_of, filters=filters)
    assert whole.total == len(whole.rows) > 5
    for most_rows in (1, 5, whole.total + 1):
        few = ask(engine, "unresolved", as_of=as_of, filters=filters, most_rows=most_rows)
        assert list(few.rows) == list(whole.rows[:most_rows])
        assert few[2:4] == whole[2:4]  # the columns: with or without the account
        assert few.total == whole.total


def test_what_waits_is_summed_without_reading_a_run(sqlite_url: str) -> None:
    """An index has all of it, so that open runs cost nothing but their entries there."""
    engine = connect(sqlite_url)
    prepare(engine)
    asked: list[tuple[str, Any]] = []
    with reading(engine) as connection:
        event.listen(
            connection, "before_cursor_execute", lambda *given: asked.append((given[2], given[3]))
        )
        list(sum_open(connection, ReportRequest(NOW, DEFAULT_RULES, BERLIN)))
        [(statement, parameters)] = asked
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    engine.dispose()
    index = "ix_outcomes_variant_id_opened_at_tests_unresolved_superseded_at"
    [of_outcomes] = [step.detail for step in plan if " outcomes " in step.detail]
    assert f"USING COVERING INDEX {index}" in of_outcomes


def test_rows_of_series_name_the_rows_of_the_table(engine: Engine) -> None:
    fill(engine, random.Random(1), range(20), NOW)
    with reading(engine) as connection:
        stored = select_all(connection, "series_health")
    asked = rows(ask(engine, "series"))
    names = ("series_id", "test", "recent", "last_run_id")
    assert {tuple(row[each] for each in names) for row in asked} == {
        tuple(row[each] for each in names) for row in stored
    }
    assert len(asked) == len(stored)


def test_a_report_is_of_one_state_whatever_is_stored_meanwhile(engine: Engine) -> None:
    fill(engine, random.Random(1), range(20), NOW)
    request = ReportRequest(NOW, DEFAULT_RULES, BERLIN)
    with snapshot(engine) as connection:
        before = all_rows(connection, request)
        fill(engine, random.Random(2), range(30), NOW + DAY)
        assert all_rows(connection, request) == before
    assert rows(ask(engine, "overview")) != before["overview"]


def all_rows(connection: Connection, request: ReportRequest) -> dict[str, Any]:
    return {
        name: rows(catalog.run(connection, report, request))
        for name, report in catalog.REPORTS.items()
    }


# --- as of a moment -------------------------------------------------------------------------


def reported(archiver: Program, moment: datetime) -> dict[str, str]:
    """Return the bytes of each report, in a form each, and of the history of a test."""
    forms = dict(zip(catalog.REPORTS, ["json", "csv", "markdown", "table"] * 9, strict=False))
    as_of = f"--as-of={moment.isoformat()}"
    asked = {name: ("report", name, f"--format={form}", as_of) for name, form in forms.items()}
    asked["history"] = ("show", "--test=login", "--json", as_of)
    found = {}
    for name, arguments in asked.items():
        done = archiver.call(*arguments)
        assert done.exit_code == 0, done.stderr
        found[name] = done.stdout + done.stderr
    return found


def note_health(engine: Engine, at: datetime) -> None:
    passed = {"trigger": "ingest", "started_at": at, "finished_at": at, "exit_code": 0}
    with writing(engine) as connection:
        pass_id = connection.scalar(insert(ingests).values(passed).returning(ingests.c.id))
        row = dict.fromkeys(["open_runs", "open_tests", "never_fetched", "failed", "gone"], pass_id)
        connection.execute(
            insert(health).values(
                pass_id=pass_id,
                source="default",
                measured_at=at,
                new_fields_7_days=0,
                last_success_at=at,
                **row,
            )
        )


def test_a_report_as_of_a_moment_stays_the_same_whatever_comes_later(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    archiver = program(tmp_path, database_url, "http://127.0.0.1:1")
    dice = random.Random(5)
    fill(engine, dice, range(60), MARCH + 20 * DAY)
    fill(engine, dice, range(0, 60, 2), MARCH + 21 * DAY)
    label(engine, {f"run-{number}": f"c{number % 3}" for number in range(60)})
    note_health(engine, MARCH + 21 * DAY)
    moment = MARCH + 22 * DAY
    before = reported(archiver, moment)
    for change in range(10):  # 500 changes: 30 of old runs, and 20 of new ones, ten times
        at = moment + (change + 1) * DAY
        fill(engine, dice, range(30), at)
        fill(engine, dice, range(60, 80), at)
    label(engine, {f"run-{number}": f"c{number % 2}" for number in range(80)})
    note_health(engine, moment + DAY)
    renamed = archiver.call("alias", "add", "login", "sign in", "--application", "shop")
    assert renamed.exit_code == 0, renamed.stderr
    assert reported(archiver, moment) == before
    later = moment + 11 * DAY
    unmoved = [
        name
        for name in catalog.REPORTS
        if rows(ask(engine, name, later, as_of=moment))
        == rows(ask(engine, name, later, as_of=later))
    ]
    assert unmoved == []


def test_that_test_ids_stay_the_same_is_not_known_before_it_was_found_out(engine: Engine) -> None:
    for number in range(12):
        run = a_run((MARCH + number * DAY).isoformat(), {"login": "PF"[number % 2], "pay": "P"})
        for test in run["tests"]:
            test["id"] = f"id of {test['name']}"
        see(engine, MARCH + number * DAY, {f"run-{number}": run})
    before = rows(ask(engine, "series", as_of=NOW))
    assert [row["test_id"] for row in before] == [None, None]
    measure_all(engine, clock.now())
    assert {row["test_id"] for row in rows(ask(engine, "series"))} == {"id of login", "id of pay"}
    assert rows(ask(engine, "series", as_of=NOW)) == before
