"""A run that was given up stays visible until somebody deals with it, and the ways to do so."""

import json
import random
import re
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from etl.answers.outcome import Reason
from etl.db import database
from tests.support.fake_api import NOT_FOUND, Answer, FakeApi, result
from tests.support.program import Done, Program, program
from tests.support.view_rows import as_read, select_all

DENIED = Answer(b"{}", 403)
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For tests that reach into the file: the statements are the same on both databases."""


@pytest.fixture
def archiver(tmp_path: Path, database_url: str, api: FakeApi) -> Program:
    api.other = result()
    return program(tmp_path, database_url, api.url)


@pytest.fixture
def with_failures(archiver: Program, api: FakeApi) -> Program:
    """Two runs that nobody knows, one that the key may not read, one archived."""
    api.answers |= {"lost-1": [NOT_FOUND], "lost-2": [NOT_FOUND], "secret": [DENIED]}
    done = archiver.call("ingest", "good", "lost-1", "lost-2", "secret")
    assert done.exit_code == 1
    return archiver


GIVEN_UP = (
    "runs given up, now and before: 3 (1 denied, 2 not_found);"
    " `result-archiver status --failed` lists them"
)


def states(archiver: Program) -> dict[str, tuple[str, str | None]]:
    found = {}
    for run_id in ("good", "lost-1", "lost-2", "secret"):
        ledger = archiver.call("show", run_id, "--json").json()["ledger"]
        found[run_id] = (ledger["state"], ledger["reason"])
    return found


def last_line(done: Done) -> str:
    return done.stderr.splitlines()[-1]


def test_each_pass_says_how_many_runs_stand_failed_and_why(with_failures: Program) -> None:
    for number in (2, 3):
        done = with_failures.call("ingest")
        assert done.exit_code == 0
        assert last_line(done).endswith(f"Z pass {number}: {GIVEN_UP}")
    assert with_failures.call("ingest", "--json").json()["standing_failed"] == [
        {"source": "default", "reason": "denied", "runs": 1},
        {"source": "default", "reason": "not_found", "runs": 2},
    ]


def test_a_pass_without_failed_runs_says_nothing_of_them(archiver: Program) -> None:
    assert "given up" not in archiver.call("ingest", "good").stderr


def test_status_lists_all_failed_runs_with_source_reason_and_age(with_failures: Program) -> None:
    listed = with_failures.call("status", "--failed", "--json").json()["failed"]
    assert [(each["run_id"], each["source"], each["reason"]) for each in listed] == [
        ("secret", "default", "denied"),
        ("lost-1", "default", "not_found"),
        ("lost-2", "default", "not_found"),
    ]
    shown = with_failures.call("status", "--failed").stdout
    assert re.search(r"secret +default +denied +0 d", shown)
    assert "3 runs failed; `result-archiver retry` makes them due" in shown


def test_the_check_for_monitoring_fails_until_somebody_has_acted(with_failures: Program) -> None:
    checked = with_failures.call("status", "--check")
    assert checked.exit_code == 1
    assert last_line(checked) == (
        "check: 3 runs failed; `result-archiver status --failed` lists them"
    )


def test_the_check_passes_where_nothing_is_wrong(archiver: Program) -> None:
    assert archiver.call("ingest", "good").exit_code == 0
    checked = archiver.call("status", "--check")
    assert (checked.exit_code, checked.stderr) == (0, "")


@SQLITE
def test_the_check_fails_where_runs_are_overdue(archiver: Program) -> None:
    assert archiver.call("track", "good").exit_code == 0
    with sqlite3.connect(archiver.folder / "archive.db") as connection:
        connection.execute("UPDATE tracked_runs SET due_at = '2026-01-01 00:00:00.000'")
    checked = archiver.call("status", "--check")
    assert checked.exit_code == 1
    assert last_line(checked) == "check: 1 runs are overdue by an hour or more; do passes run?"


def test_naming_a_failed_run_asks_for_it_again(with_failures: Program, api: FakeApi) -> None:
    api.answers["lost-1"] = [result()]
    assert "1 new" in with_failures.call("ingest", "lost-1").stderr
    assert states(with_failures)["lost-1"] == ("settled", None)
    assert states(with_failures)["lost-2"] == ("failed", "not_found")


@pytest.mark.parametrize("command", ["ingest", "track"])
def test_a_list_that_is_given_asks_for_its_failed_runs_again(
    with_failures: Program, api: FakeApi, command: str
) -> None:
    api.answers |= {"lost-1": [result()], "lost-2": [result()]}
    with_failures.write("again.txt", "lost-1\nlost-2\n")
    assert with_failures.call(command, "--from", "again.txt").exit_code == 0
    with_failures.call("ingest")
    assert {each for each, _ in states(with_failures).values()} == {"settled", "failed"}
    assert states(with_failures)["lost-2"] == ("settled", None)


def test_a_watched_list_does_not_ask_for_its_failed_runs_again(
    with_failures: Program, api: FakeApi
) -> None:
    with_failures.write("watched.txt", "lost-1\nlost-2\n")
    watching = with_failures.given(RESULT_ARCHIVER__RUNS__SOURCES="watched.txt")
    before = api.requests.total()
    assert watching.call("ingest").exit_code == 0
    assert api.requests.total() == before


@pytest.mark.parametrize("way", ["watched", "tracked"])
def test_another_token_revives_a_denied_run_and_the_same_one_does_not(
    archiver: Program, api: FakeApi, way: str
) -> None:
    def give(token: str) -> None:
        archiver.write("tokens.csv", f"run_id,read_token\nsecret,{token}\n")
        if way == "tracked":
            assert archiver.call("track", "--from", "tokens.csv").exit_code == 0

    watching = archiver.given(RESULT_ARCHIVER__RUNS__SOURCES="tokens.csv" * (way == "watched"))
    api.answers["secret"] = [DENIED]
    give("wrong-token")
    assert watching.call("ingest", "good", "--json").json()["failed"] == 1
    asked = api.requests["secret"]
    if way == "watched":
        give("wrong-token")
        watching.call("ingest")
        assert api.requests["secret"] == asked
    api.answers["secret"] = [result()]
    give("right-token")
    done = watching.call("ingest", "--json").json()
    assert (done["new"], done["standing_failed"]) == (1, [])


def test_retry_takes_a_reason(with_failures: Program, api: FakeApi) -> None:
    api.answers["secret"] = [result()]
    assert with_failures.call("retry", "--reason", "denied", "--json").json()["retrying"] == 1
    with_failures.call("ingest")
    assert states(with_failures)["secret"] == ("settled", None)
    assert states(with_failures)["lost-1"] == ("failed", "not_found")


def test_retry_refuses_a_reason_that_does_not_exist(with_failures: Program) -> None:
    done = with_failures.call("retry", "--reason", "tired")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: --reason 'tired': give one of denied, ")
    assert all(reason.value in done.stderr for reason in Reason)


def test_a_410_is_gone_as_a_404_is(archiver: Program, api: FakeApi) -> None:
    api.answers["deleted"] = [result(status="unresolved"), Answer(b"", 410)]
    assert archiver.call("ingest", "deleted").exit_code == 0
    assert archiver.call("ingest", "deleted", "--refresh").exit_code == 0
    shown = archiver.call("show", "deleted", "--json").json()
    assert shown["run"]["gone_at"] is not None
    assert shown["ledger"]["reason"] == "gone"
    [last, *_] = archiver.call("passes", "--json").json()
    assert (last["unchanged"], last["gone"], last["failed"]) == (0, 1, 0)
    api.answers["never"] = [Answer(b"", 410)]
    assert archiver.call("ingest", "never").exit_code == 1
    assert archiver.call("show", "never", "--json").json()["ledger"]["reason"] == "not_found"


def test_the_archive_agrees_with_the_ledger_when_runs_go_and_come_back(
    archiver: Program, api: FakeApi
) -> None:
    chance = random.Random(404)
    run_ids = [f"run-{number}" for number in range(6)]
    there = [result(status="unresolved"), result(status="passed"), result(duration=1)]
    api.answers = {run_id: [there[0]] for run_id in run_ids}
    archiver.call("ingest", *run_ids)
    is_gone: set[str] = set()
    for _ in range(6):
        answers = {
            run_id: chance.choice([*there, NOT_FOUND, Answer(b"", 410)]) for run_id in run_ids
        }
        api.answers = {run_id: [answer] for run_id, answer in answers.items()}
        done = archiver.call("ingest", "--refresh", "--json", *run_ids).json()
        is_gone = {run_id for run_id, answer in answers.items() if answer.status != 200}
        assert done["gone"] == len(is_gone)
        assert done["unchanged"] + done["changed"] == len(run_ids) - len(is_gone)
        assert archiver.call("verify").exit_code == 0
        shown = {each: archiver.call("show", each, "--json").json()["run"] for each in run_ids}
        assert {each for each in run_ids if shown[each]["gone_at"]} == is_gone


@SQLITE
def test_due_runs_under_a_lease_of_another_process_are_said(archiver: Program) -> None:
    assert archiver.call("track", "good").exit_code == 0
    with sqlite3.connect(archiver.folder / "archive.db") as connection:
        connection.execute(
            "UPDATE tracked_runs SET lease_owner = 'dead', lease_until = '2099-01-01 00:00:00.000'"
        )
    done = archiver.call("ingest")
    assert done.exit_code == 0
    assert "due runs are leased to another process" in done.stderr
    assert "until=2099-01-01T00:00:00+00:00" in done.stderr


def test_passes_lists_them_with_trigger_length_requests_and_counts(
    with_failures: Program,
) -> None:
    with_failures.call("ingest")
    newest, first = with_failures.call("passes", "--json").json()
    assert (first["id"], first["trigger"], first["requests"], first["new"]) == (1, "ingest", 4, 1)
    assert (newest["requests"], newest["exit_code"]) == (0, 0)
    assert first["duration_s"] >= 0
    table = with_failures.call("passes", "--rows", "1").stdout
    assert len(table.splitlines()) == 3
    assert all(len(line) <= 80 for line in table.splitlines())


def test_the_summary_is_data_only_with_json(archiver: Program) -> None:
    done = archiver.call("ingest", "good")
    assert done.stdout == ""
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ pass 1: 1 new, ", done.stderr)
    done = archiver.call("ingest", "--json")
    assert json.loads(done.stdout)["pass_id"] == 2
    assert done.stderr == ""


def test_bi_tools_count_failed_runs_by_source_and_reason(
    with_failures: Program, database_url: str
) -> None:
    """The view has no token and no message of the API."""
    schema = "reporting." if database_url.startswith("postgresql") else ""
    engine = database.connect(database_url)
    by_reason = f"SELECT source, reason, count(*) FROM {schema}failed_runs GROUP BY 1, 2 ORDER BY 2"
    with database.reading(engine) as connection:
        counts = [tuple(row) for row in connection.execute(text(by_reason))]
        columns = connection.execute(text(f"SELECT * FROM {schema}failed_runs")).keys()
    assert counts == [("default", "denied", 1), ("default", "not_found", 2)]
    assert list(columns) == [
        "run_id", "source", "reason", "failing_since", "attempts", "first_tracked_at",
        "last_fetched_at",
    ]  # fmt: skip
    with_failures.call("retry", "--reason", "denied")
    with database.reading(engine) as connection:
        counts = [tuple(row) for row in connection.execute(text(by_reason))]
    engine.dispose()
    assert counts == [("default", "not_found", 2)]


def test_a_failed_run_fails_since_its_first_failed_fetch(
    archiver: Program, api: FakeApi, database_url: str
) -> None:
    """An answer, and a retry that somebody asks for, start a new count."""
    archiver = archiver.given(RESULT_ARCHIVER__API__ATTEMPTS="1")
    times = []
    for answer in (result(status="pending"), Answer(b"{}", 500), DENIED, DENIED):
        api.answers["secret"] = [answer]
        times.append(datetime.now(UTC) - timedelta(milliseconds=1))  # which columns round to
        archiver.call("ingest", "secret", "--refresh")
        if len(times) == 3:
            assert times[1] <= failing_since(archiver, database_url) <= times[2]
            archiver.call("retry", "secret")
            assert archiver.call("status", "--failed", "--json").json()["failed"] == []
    assert times[3] <= failing_since(archiver, database_url)


def failing_since(archiver: Program, database_url: str) -> datetime:
    """Return since when the one failed run fails: by `status` and by the view alike."""
    [failed] = archiver.call("status", "--failed", "--json").json()["failed"]
    engine = database.connect(database_url)
    with database.reading(engine) as connection:
        [row] = select_all(connection, "failed_runs")
        since = datetime.fromisoformat(failed["since"])
        assert row["failing_since"] == as_read(since, connection)
    engine.dispose()
    return since
