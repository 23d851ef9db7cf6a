"""Run lists as users give them: exit codes, messages, and the rows of the ledger."""

import re
from pathlib import Path

import pytest
from sqlalchemy import select

from etl.db import database
from etl.db.schema import tracked_runs
from tests.support.fake_api import FakeApi, result
from tests.support.program import Done, Program, program

TOKEN = "tok-CANARY-1"


@pytest.fixture
def two_accounts(archiver: Program, api: FakeApi) -> Program:
    """The program with the accounts default, eu and us, whose runs all pass."""
    api.other = result()
    return archiver.given(
        RESULT_ARCHIVER__API__ATTEMPTS="1",
        **{
            f"RESULT_ARCHIVER__SOURCES__{name}__{key}": value
            for name in ("EU", "US")
            for key, value in [("BASE_URL", api.url), ("KEY_ENV", f"{name}_KEY")]
        },
        EU_KEY="eu-key-4711",
        US_KEY="us-key-4711",
    )


@pytest.fixture
def sqlite_archiver(tmp_path: Path, sqlite_url: str, api: FakeApi) -> Program:
    return program(tmp_path, sqlite_url, api.url)


def tracked(archiver: Program) -> dict[str, str]:
    """Return the source of each tracked run."""
    engine = database.connect(archiver.environment["RESULT_ARCHIVER__DATABASE__URL"])
    with database.reading(engine) as connection:
        rows = connection.execute(select(tracked_runs.c.run_id, tracked_runs.c.source)).all()
    engine.dispose()
    return {row.run_id: row.source for row in rows}


def bad_lines(done: Done) -> list[str]:
    """Return the lines about a second account, without the time that a pass gives them."""
    lines = [line for line in done.stderr.splitlines() if "belongs to source" in line]
    return [re.sub(r"^[-0-9]+T[:0-9]+Z ", "", line) for line in lines]


def second(place: str, run_id: str, account: str, other: str) -> str:
    return (
        f"{place}: run {run_id}: belongs to source {account}, not {other};"
        f" correct the list, or archive {other} in a database of its own"
    )


def test_a_run_of_two_accounts_in_one_list_is_a_bad_line(two_accounts: Program) -> None:
    two_accounts.write("runs.csv", "run_id,source\nr1,eu\nr2,us\nr1,us\n")
    done = two_accounts.call("track", "--from", "runs.csv")
    assert (done.exit_code, bad_lines(done)) == (1, [second("runs.csv:4", "r1", "eu", "us")])
    assert tracked(two_accounts) == {"r1": "eu", "r2": "us"}


def test_a_run_of_a_second_account_in_a_later_list_is_a_bad_line(two_accounts: Program) -> None:
    two_accounts.write("eu.csv", "run_id,source\nr1,eu\n")
    two_accounts.write("us.json", '[{"run_id": "r1", "source": "us"}]')
    assert two_accounts.call("track", "--from", "eu.csv").exit_code == 0
    done = two_accounts.call("track", "--from", "us.json")
    assert (done.exit_code, bad_lines(done)) == (1, [second("us.json:1", "r1", "eu", "us")])
    assert tracked(two_accounts) == {"r1": "eu"}


def test_an_archived_run_keeps_its_account(two_accounts: Program) -> None:
    assert two_accounts.call("ingest", "r1").exit_code == 0
    two_accounts.write("runs.csv", "run_id,source\nr1,us\nr2,\nr1,default\nr1,\n")
    done = two_accounts.given(RESULT_ARCHIVER__RUNS__SOURCES="runs.csv").call("ingest")
    place = f"{two_accounts.folder}/runs.csv:2"
    assert (done.exit_code, bad_lines(done)) == (1, [second(place, "r1", "default", "us")])
    done = two_accounts.call("track", "r1", "--source", "eu")
    assert (done.exit_code, bad_lines(done)) == (1, [second("argument", "r1", "default", "eu")])
    assert tracked(two_accounts) == {"r1": "default", "r2": "default"}


def test_an_account_that_was_left_out_can_be_given_later(two_accounts: Program) -> None:
    two_accounts.call("track", "r1")
    assert two_accounts.call("track", "r1", "--source", "eu").exit_code == 0
    assert two_accounts.call("track", "r1").exit_code == 0
    assert tracked(two_accounts) == {"r1": "eu"}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('[{"run_id": "r1"}', 1),
        ('["r1"\n"r2"]', 2),
        ('["r1"]]', 1),
        ("[" * 100_000, 1),
        ("run_id:read_token\nr1:tok-CANARY-1\n", 1),
        ("run_id\nr1|tok-CANARY-1\n", 2),
        ("<html>\nPlease log in\n</html>", 1),
    ],
)
def test_a_list_that_is_not_whole_is_never_silent(
    sqlite_archiver: Program, content: str, place: int
) -> None:
    sqlite_archiver.write("runs.txt", content)
    done = sqlite_archiver.call("track", "--from", "runs.txt")
    assert done.exit_code == 1
    assert f"runs.txt:{place}: " in done.stderr
    assert set(tracked(sqlite_archiver)) <= {"r1", "r2"}
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "content",
    [
        f"run_id|read_token\nr1|{TOKEN}\n",
        f"read_token;run_id\n{TOKEN};r1\n",
        f"sep=^\nrun_id^read_token\nr1^{TOKEN}\n",
        f"run_id^read_token\nr1^{TOKEN}\n",
        f"run_id\tread_token\nr1|{TOKEN}\n",
        f"id|read_token\nr1|{TOKEN}\n",
    ],
)
def test_a_read_token_is_never_in_clear(
    sqlite_archiver: Program, api: FakeApi, content: str
) -> None:
    api.other = result()
    sqlite_archiver.write("runs.csv", content)
    done = sqlite_archiver.call("ingest", "--from", "runs.csv")
    database_files = sqlite_archiver.folder.glob("archive.db*")
    assert not any(TOKEN.encode() in file.read_bytes() for file in database_files)
    assert TOKEN not in done.stdout + done.stderr
    assert set(tracked(sqlite_archiver)) <= {"r1"}


def test_a_source_that_names_no_file_is_said_by_each_pass(sqlite_archiver: Program) -> None:
    watching = sqlite_archiver.given(RESULT_ARCHIVER__RUNS__SOURCES="runs.tx")
    for _ in range(2):
        done = watching.call("ingest")
        assert done.exit_code == 0
        assert "/runs.tx: there is no such file" in done.stderr
