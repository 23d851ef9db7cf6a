"""The demo: a first look at the whole job, which has to end well every time."""

import shlex
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import URL

from etl.cli.session import Wiring
from etl.db import database
from etl.db.database import connect
from etl.export import publish
from etl.export.own_files import DEMO_ARCHIVE, read_application_id
from etl.ledger import tracking
from etl.ledger.tracking import Entry
from tests.db.test_views import MONDAY
from tests.support.dump import Row, dump
from tests.support.program import PATIENCE_S, Done, Program, bare_program

FILLED = (
    "runs", "environments", "tests", "counts", "labels", "revisions", "payloads", "tracked_runs",
    "ingests",
)  # fmt: skip


class Demo(NamedTuple):
    """What the demo printed, and what its file had then."""

    done: Done
    tables: dict[str, list[Row]]


BEGAN_AT = datetime.now(UTC)


@pytest.fixture(scope="module")
def archiver(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The program in a folder and an environment without any setting."""
    return bare_program(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def demos(archiver: Program) -> list[Demo]:
    """The demo now, and once more in forty days."""
    later = archiver.wired(Wiring(lambda: BEGAN_AT + timedelta(days=40)))
    return [
        Demo(run("demo"), tables(archiver.folder / "demo.db")) for run in (archiver.run, later.call)
    ]


def an_archive(file: Path) -> None:
    """A real archive, in which a run is tracked."""
    engine = connect(str(URL.create("sqlite", database=str(file))))
    database.prepare(engine)
    with database.writing(engine) as connection:
        tracking.track(connection, [Entry("run-1", None, None, {})], MONDAY)
    engine.dispose()


def a_published_copy(file: Path) -> None:
    original = file.with_name("original.db")
    an_archive(original)
    engine = connect(f"sqlite:///{original}")
    publish.copy_to(engine, file)
    engine.dispose()


def a_database(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE notes (text)")


def a_note(file: Path) -> None:
    file.write_text("mine")


def tables(file: Path) -> dict[str, list[Row]]:
    engine = database.connect(f"sqlite:///{file}")
    with database.reading(engine) as connection:
        found = dump(connection)
    engine.dispose()
    return found


def test_it_ends_well_each_time(demos: list[Demo]) -> None:
    assert [demo.done.exit_code for demo in demos] == [0, 0]


def test_it_says_what_it_archived(demos: list[Demo]) -> None:
    first, *_ = demos[0].done.stdout.splitlines()
    runs, passes = (len(demos[0].tables[table]) for table in ("runs", "ingests"))
    changes = sum(row["revision"] > 1 for row in demos[0].tables["revisions"])
    assert first == (
        f"{runs} runs archived, and {changes} changes of them, by {passes} passes within a month"
    )
    assert (runs, passes) == (288, 61)


@pytest.mark.parametrize("table", FILLED)
def test_its_file_has_rows_in_each_table(demos: list[Demo], table: str) -> None:
    assert demos[0].tables[table] != []


def test_its_month_ends_today(demos: list[Demo]) -> None:
    last_pass = max(row["started_at"] for row in demos[0].tables["ingests"])
    last_run = max(row["started_at"] for row in demos[0].tables["runs"] if row["started_at"])
    now = datetime.now(UTC)
    assert BEGAN_AT - timedelta(minutes=1) <= last_pass <= now
    assert last_pass - timedelta(hours=1) <= last_run <= now


def test_every_run_is_seen_by_two_passes(demos: list[Demo]) -> None:
    *_, before_last, _ = sorted(row["started_at"] for row in demos[0].tables["ingests"])
    rows = demos[0].tables["tracked_runs"]
    assert {row["fetches"] > 1 for row in rows if row["first_tracked_at"] <= before_last} == {True}


def test_decisions_have_bounds(demos: list[Demo]) -> None:
    bounds = [
        (row["resolution_min_ms"], row["resolution_max_ms"])
        for row in demos[0].tables["status_changes"]
        if row["opened_at"]
    ]
    assert len(bounds) > 10
    assert all(least < most for least, most in bounds)


def test_the_second_time_changes_nothing(demos: list[Demo]) -> None:
    before, after = (demo.tables for demo in demos)
    assert after == before


def test_it_prints_the_same_each_time(demos: list[Demo]) -> None:
    first, second = (demo.done.stdout for demo in demos)
    assert "Applications at a glance" in first
    assert second == first


def test_it_says_on_stderr_only_what_it_is_doing(demos: list[Demo]) -> None:
    assert {demo.done.stderr for demo in demos} == {
        "starting a made-up API on loopback: no key and no network are needed\n"
    }


def test_it_fits_one_screen(demos: list[Demo]) -> None:
    assert len(demos[0].done.stdout.splitlines()) <= 40


def test_each_command_that_it_ends_with_works(archiver: Program, demos: list[Demo]) -> None:
    _, _, steps = demos[0].done.stdout.partition("What to try next:\n")
    export, *commands = [shlex.split(line, comments=True) for line in steps.splitlines()]
    name, _, url = export[1].partition("=")
    reader = archiver.given(**{name: url})
    answers = {command[1]: reader.call(*command[1:]) for command in commands}
    assert {done.exit_code for done in answers.values()} == {0}
    assert [command[:3] for command in commands[:2]] == [
        ["result-archiver", "report", "unresolved"],
        ["result-archiver", "report", "resolution"],
    ]
    as_of, bounds = (reader.call(*command[1:], "--json").json() for command in commands[:2])
    now = reader.call("report", "unresolved", "--json").json()
    assert as_of["rows"] not in ([], now["rows"])
    assert any(row["p50_min_ms"] for row in bounds["rows"])
    assert (archiver.folder / "page.html").read_text().startswith("<!doctype html>")


def test_a_demo_that_was_killed_goes_on(tmp_path: Path) -> None:
    archiver = bare_program(tmp_path)
    with archiver.started("demo") as process:
        wait_for_passes(tmp_path / "demo.db", 10)
        process.kill()
    assert archiver.run("demo").exit_code == 0
    found = tables(tmp_path / "demo.db")
    assert len(found["runs"]) == 288
    assert {row["lease_owner"] for row in found["tracked_runs"]} == {None}
    assert sum(row["finished_at"] is not None for row in found["ingests"]) == 61


def test_an_interrupted_demo_says_how_to_go_on(tmp_path: Path) -> None:
    archiver = bare_program(tmp_path)
    with archiver.started("demo") as process:
        wait_for_passes(tmp_path / "demo.db", 10)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "the month ends early; go on: demo --file demo.db"
    assert archiver.run("demo").exit_code == 0
    assert len(tables(tmp_path / "demo.db")["runs"]) == 288


def wait_for_passes(file: Path, count: int) -> None:
    patience_until = time.monotonic() + PATIENCE_S
    while True:
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection,
        ):
            if connection.execute("SELECT count(*) FROM ingests").fetchone()[0] >= count:
                return
        assert time.monotonic() < patience_until
        time.sleep(0.01)


def test_its_tables_fit_80_columns(demos: list[Demo]) -> None:
    report, _, _ = demos[0].done.stdout.partition("What to try next:")
    assert max(map(len, report.splitlines())) <= 80


@pytest.mark.parametrize("make", [an_archive, a_published_copy, a_database, a_note])
@pytest.mark.parametrize("is_link", [False, True])
def test_it_refuses_a_file_that_is_no_demo_archive(
    tmp_path: Path, make: Callable[[Path], None], is_link: bool
) -> None:
    archiver = bare_program(tmp_path)
    make(tmp_path / "results.db")
    before = (tmp_path / "results.db").read_bytes()
    if is_link:
        (tmp_path / "link.db").symlink_to("results.db")
    file = "link.db" if is_link else "results.db"
    done = archiver.call("demo", "--file", file)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: --file {file}: exists, and is no demo archive; ")
    assert (tmp_path / "results.db").read_bytes() == before


@pytest.mark.parametrize("file", [".", "no/such/folder/demo.db", "a-file/demo.db", "/dev/null"])
def test_it_says_in_a_line_where_it_cannot_write(tmp_path: Path, file: str) -> None:
    archiver = bare_program(tmp_path)
    archiver.write("a-file", "")
    done = archiver.call("demo", "--file", file)
    assert (done.exit_code, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: --file {file}: ")


@pytest.mark.parametrize("name", ["a%20b?c#.db", "100%.db"])
def test_its_file_can_have_any_name(tmp_path: Path, name: str) -> None:
    archiver = bare_program(tmp_path)
    (tmp_path / "job%2Fbranch").mkdir()
    assert archiver.run("demo", "--file", f"job%2Fbranch/{name}").exit_code == 0
    assert read_application_id(tmp_path / "job%2Fbranch" / name) == DEMO_ARCHIVE
    assert {path.name for path in tmp_path.iterdir()} == {"job%2Fbranch", "home"}
