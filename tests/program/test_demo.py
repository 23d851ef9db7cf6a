"""The demo: a first look at the whole job, which has to end well every time."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import URL

from etl.db import database
from etl.db.database import connect
from etl.export import publish
from etl.export.own_files import DEMO_ARCHIVE, read_application_id
from etl.ledger import tracking
from etl.ledger.tracking import Entry
from tests.db.test_views import MONDAY
from tests.support.dump import LEDGER, Row, dump
from tests.support.program import Done, bare_program

FILLED = (
    "runs", "environments", "tests", "counts", "labels", "revisions", "payloads", "tracked_runs",
    "ingests",
)  # fmt: skip


class Demo(NamedTuple):
    """What the demo printed, and what its file had then."""

    done: Done
    tables: dict[str, list[Row]]


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> list[Demo]:
    """The demo twice, in a folder and an environment without any setting."""
    archiver = bare_program(tmp_path_factory.mktemp("demo"))
    return [Demo(archiver.run("demo"), tables(archiver.folder / "demo.db")) for _ in range(2)]


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
    runs = len(demos[0].tables["runs"])
    assert first == f"{runs} runs archived, 0 changed, 0 asked again and unchanged, 0 failed"


@pytest.mark.parametrize("table", FILLED)
def test_its_file_has_rows_in_each_table(demos: list[Demo], table: str) -> None:
    assert demos[0].tables[table] != []


def test_the_second_time_changes_nothing_but_the_ledger(demos: list[Demo]) -> None:
    before, after = ({**demo.tables, **dict.fromkeys(LEDGER)} for demo in demos)
    assert after == before


def test_it_shows_the_same_reports_each_time(demos: list[Demo]) -> None:
    first, second = (demo.done.stdout.partition("\n")[2] for demo in demos)
    assert "Applications at a glance" in first
    assert second == first


def test_it_says_on_stderr_only_what_it_is_doing(demos: list[Demo]) -> None:
    assert {demo.done.stderr for demo in demos} == {
        "starting a made-up API on loopback: no key and no network are needed\n"
    }


def test_its_tables_fit_80_columns(demos: list[Demo]) -> None:
    report, _, _ = demos[0].done.stdout.partition("What to try next:")
    assert max(map(len, report.splitlines())) <= 80


def test_a_run_id_that_it_shows_can_be_copied(demos: list[Demo]) -> None:
    archived = {row["run_id"] for row in demos[0].tables["runs"]}
    _, _, unresolved = demos[0].done.stdout.partition("Waiting for a person")
    shown = {line.split()[-1] for line in unresolved.splitlines() if line.strip()}
    assert len(shown & archived) == 5


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
