"""The folders that are made for other programs: whole, typed, alike on both databases."""

import csv
import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from etl.db.database import connect, prepare, writing
from etl.errors import DatabaseError
from etl.export import tables
from etl.export.tables import FileForm
from etl.ledger import tracking
from etl.ledger.tracking import Entry
from tests.db.test_views import MONDAY, VIEWS
from tests.support.looks import a_test, look
from tests.support.program import PATIENCE_S, Program, bare_program

TOKEN = "gAAAAABl5ZcAencryptedtokenencryptedtoken"
FORMULA = "=HYPERLINK(0)"


def fill(engine: Engine) -> None:
    """Store runs with a formula for a name, an unknown field, a label, a token and a change."""
    prepare(engine)
    cart, pay = a_test("cart", "passed"), a_test(FORMULA, "unresolved") | {"owner": ["Zoë", 1]}
    look(engine, "run-1", MONDAY, cart, pay, results={"passed": 1, "odd": 2})
    look(engine, "run-1", MONDAY + timedelta(hours=1), cart, pay | {"status": "failed"})
    look(engine, "run-2", MONDAY, cart, pay, started_at="2024-03-05T09:30:00.120Z")
    with writing(engine) as connection:
        entries = [Entry("run-1", None, None, {"branch": "main"}), Entry("run-3", None, TOKEN, {})]
        tracking.track(connection, entries, MONDAY)


def filled_program(url: str, folder: Path) -> Program:
    """Return the program with a filled archive."""
    engine = connect(url)
    fill(engine)
    engine.dispose()
    return bare_program(folder).given(RESULT_ARCHIVER__DATABASE__URL=url)


@pytest.fixture
def archive(engine: Engine) -> Engine:
    fill(engine)
    return engine


@pytest.fixture
def archiver(tmp_path: Path, database_url: str) -> Program:
    return bare_program(tmp_path).given(RESULT_ARCHIVER__DATABASE__URL=database_url)


@pytest.fixture
def both(tmp_path: Path, sqlite_url: str, postgresql_url: str) -> list[Program]:
    """The program at an archive on SQLite, and at the same one on PostgreSQL."""
    programs = []
    for name, url in (("sqlite", sqlite_url), ("postgresql", postgresql_url)):
        engine = connect(url)
        fill(engine)
        engine.dispose()
        (tmp_path / name).mkdir()
        programs.append(bare_program(tmp_path / name).given(RESULT_ARCHIVER__DATABASE__URL=url))
    return programs


def json_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def csv_rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --- what is in it --------------------------------------------------------------------------


def test_there_is_a_file_for_each_view_and_for_what_the_api_said(
    archive: Engine, archiver: Program
) -> None:
    done = archiver.call("export", "--csv", "results")
    tables = {"runs", "environments", "tests", "counts", "labels", "revisions", "test_revisions"}
    names = {file.name for file in (archiver.folder / "results").iterdir()}
    assert (done.exit_code, done.stderr) == (0, "")
    assert names == {f"{name}.csv" for name in tables | set(VIEWS)}
    assert "results/run_results.csv: 2 rows" in done.stdout.splitlines()
    assert "results/test_results.csv: 4 rows" in done.stdout.splitlines()


def test_programs_are_told_the_files_and_their_rows(archive: Engine, archiver: Program) -> None:
    files = archiver.call("export", "--jsonl", "results", "--json").json()
    assert {"file": "results/test_results.jsonl", "rows": 4} in files
    for each in files:
        assert len(json_lines(archiver.folder / each["file"])) == each["rows"]


def test_csv_is_disarmed_unless_it_is_asked_for_raw(archive: Engine, archiver: Program) -> None:
    archiver.call("export", "--csv", "safe")
    archiver.call("export", "--csv", "raw", "--raw")
    safe, raw = (csv_rows(archiver.folder / name / "tests.csv")[1] for name in ("safe", "raw"))
    assert (safe["name"], raw["name"]) == (f"'{FORMULA}", FORMULA)


def test_csv_has_times_flags_and_numbers_as_reports_have_them(
    archive: Engine, archiver: Program
) -> None:
    archiver.call("export", "--csv", "results")
    folder = archiver.folder / "results"
    run = csv_rows(folder / "run_results.csv")[1]
    assert (run["started_at"], run["started_on"]) == ("2024-03-05T09:30:00.120Z", "2024-03-05")
    assert (run["pass_rate"], run["duration_ms"], run["gone_at"]) == ("1.0", "60000", "")
    assert csv_rows(folder / "series_health.csv")[0]["is_flaky"] == "false"
    assert json.loads(csv_rows(folder / "tests.csv")[1]["extra"]) == {"owner": ["Zoë", 1]}


def test_json_lines_have_types_and_nested_values(archive: Engine, archiver: Program) -> None:
    archiver.call("export", "--jsonl", "results")
    folder = archiver.folder / "results"
    run = json_lines(folder / "run_results.jsonl")[1]
    assert (run["started_at"], run["started_on"]) == ("2024-03-05T09:30:00.120Z", "2024-03-05")
    assert (run["pass_rate"], run["duration_ms"], run["gone_at"]) == (1.0, 60000, None)
    assert json_lines(folder / "series_health.jsonl")[0]["is_flaky"] is False
    test = json_lines(folder / "tests.jsonl")[1]
    assert (test["name"], test["extra"]) == (FORMULA, {"owner": ["Zoë", 1]})
    assert (folder / "tests.jsonl").read_bytes().isascii()


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_both_databases_give_the_same_bytes(both: list[Program], form: str) -> None:
    for program in both:
        assert program.call("export", f"--{form}", "results").exit_code == 0
    one, other = (contents(program.folder / "results") for program in both)
    settings = f"archive_settings.{form}"  # an archive's identity is its own
    assert (settings in one, settings in other) == (True, True)
    assert {**one, settings: b""} == {**other, settings: b""}
    assert one[f"test_results.{form}"].count(b"run-2") == 2


def test_all_files_are_of_one_moment(archive: Engine, tmp_path: Path, database_url: str) -> None:
    """What is stored while they are written is left to the next export."""
    late = iter(["run-9"])

    def write(file: Path, rows: Any, parts: tables.Parts) -> int:
        written = tables.write_json_lines(file, rows, parts)
        for run_id in late:
            look(archive, run_id, MONDAY, a_test("cart", "passed"))
        return written

    files = tables.write(archive, tmp_path / "results", FileForm("jsonl", write))
    rows = {file.stem: count for file, count in files.items()}
    assert (rows["run_results"], rows["runs"]) == (2, 2)


def test_many_rows_are_read_part_by_part(archive: Engine, tmp_path: Path) -> None:
    sizes = []

    def write(file: Path, rows: Any, parts: tables.Parts) -> int:
        file.touch()
        found = [len(part) for part in parts]
        sizes.append(found)
        return sum(found)

    files = tables.write(archive, tmp_path / "results", FileForm("any", write, rows_at_once=3))
    assert files[tmp_path / "results" / "test_results.any"] == 4
    assert [3, 1] in sizes
    assert max(map(max, filter(None, sizes))) == 3


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_no_secret_is_handed_on(archive: Engine, archiver: Program, form: str) -> None:
    archiver.call("export", f"--{form}", "results", "--raw")
    found = contents(archiver.folder / "results")
    assert found
    assert [name for name, body in found.items() if TOKEN.encode() in body] == []


# --- whole or not at all --------------------------------------------------------------------


def test_an_export_that_fails_midway_leaves_the_old_files_and_nothing_else(
    archive: Engine, archiver: Program
) -> None:
    archiver.call("export", "--csv", "results")
    before = contents(archiver.folder / "results")
    look(archive, "run-4", MONDAY, a_test("cart", "passed"))
    with archive.begin() as connection:
        connection.execute(text("ALTER TABLE test_revisions RENAME COLUMN absent TO missing"))
    done = archiver.call("export", "--csv", "results")
    assert done.exit_code == DatabaseError.exit_code
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert contents(archiver.folder / "results") == before


def test_an_export_that_is_there_is_replaced(archive: Engine, archiver: Program) -> None:
    archiver.call("export", "--csv", "results")
    look(archive, "run-4", MONDAY, a_test("cart", "passed"))
    archiver.call("export", "--csv", "results")
    folder = archiver.folder / "results"
    assert len(csv_rows(folder / "run_results.csv")) == 3
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []


def test_an_export_that_was_killed_can_be_repeated(archive: Engine, archiver: Program) -> None:
    """The pipe holds the first export up midway, with half of its files written."""
    folder = archiver.folder / "results"
    folder.mkdir()
    os.mkfifo(folder / "tests.csv")
    with archiver.started("export", "--csv", "results") as process:
        wait_until(lambda: next(folder.glob(".*/runs.csv"), None) is not None)
        process.kill()
    (folder / "tests.csv").unlink()
    assert not (folder / "runs.csv").exists()
    done = archiver.call("export", "--csv", "results")
    assert (done.exit_code, done.stderr) == (0, "")
    assert len(csv_rows(folder / "tests.csv")) == 4


def wait_until(is_so: Callable[[], bool]) -> None:
    patience_until = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < patience_until
        time.sleep(0.01)


def test_a_link_in_the_folder_stays_a_link(archive: Engine, archiver: Program) -> None:
    (archiver.folder / "results").mkdir()
    link = archiver.folder / "results" / "runs.csv"
    link.symlink_to("../published.csv")
    for _ in range(2):
        assert archiver.call("export", "--csv", "results").exit_code == 0
        assert link.is_symlink()
        assert len(csv_rows(archiver.folder / "published.csv")) == 2


# --- what is not ours -----------------------------------------------------------------------

THEIRS = {
    "a list with tokens": ("runs.csv", "run_id,read_token\nrun-1,tok-1\n"),
    "a list of one column": ("runs.csv", "run_id\nrun-1\n"),
    "a list of two of our columns": ("runs.csv", "run_id,source\nrun-1,default\n"),
    "a plain list": ("runs.csv", "# our runs\nrun-1\n"),
    "a list with semicolons": ("runs.csv", "run_id;read_token\nrun-1;tok-1\n"),
    "another table": ("tests.csv", "name,owner\nlogin,Zoë\n"),
    "a table of ours with a column of theirs": ("labels.csv", "run_id,name,value,owner\n"),
    "not a table": ("calendar.csv", "\0" * 100),
    "one endless line": ("calendar.csv", "day" * 100_000),
    "a list in JSON Lines": ("runs.jsonl", '{"run_id": "run-1", "read_token": "tok-1"}\n'),
    "a list in JSON": ("runs.jsonl", '["run-1", "run-2"]\n'),
    "a nest": ("runs.jsonl", '{"a": ' + "[" * 100_000),
}


@pytest.mark.parametrize("case", THEIRS)
def test_a_file_that_is_no_export_is_named_and_nothing_is_written(
    archive: Engine, archiver: Program, case: str
) -> None:
    name, content = THEIRS[case]
    archiver.write(name, content)
    before = contents_of_files(archiver.folder)
    done = archiver.call("export", f"--{name.rpartition('.')[2]}", ".")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {name}: exists, and was not written by this command; move it away, or give"
        " another name\n"
    )
    assert contents_of_files(archiver.folder) == before


def contents_of_files(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.glob("[!a]*") if path.is_file()]  # but those of archive.db
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_an_export_of_an_older_version_is_replaced(
    archive: Engine, archiver: Program, form: str
) -> None:
    """Versions add columns: an older file has all but the newest of them."""
    archiver.call("export", f"--{form}", "results")
    before = contents(archiver.folder / "results")
    file = archiver.folder / "results" / f"runs.{form}"
    if form == "csv":
        older = [line.rsplit(",", 1)[0] for line in file.read_text("utf-8").splitlines()]
    else:
        older = [json.dumps(dict([*row.items()][:-1])) for row in json_lines(file)]
    file.write_text("\n".join(older), "utf-8")
    assert archiver.call("export", f"--{form}", "results").exit_code == 0
    assert contents(archiver.folder / "results") == before


# --- what is wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ["", "--csv a --parquet b", "--csv a --sqlite b.db", "--raw"])
def test_one_target_has_to_be_named(archiver: Program, arguments: str) -> None:
    done = archiver.call("export", *arguments.split())
    assert done == (
        2,
        "",
        (
            "error: export: give one of --sqlite FILE, --csv FOLDER, --jsonl FOLDER or"
            " --parquet FOLDER\n"
        ),
    )
    assert not (archiver.folder / "a").exists()


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("a-file", "File exists"),
        ("a-file/results", "Not a directory"),
        ("taken", "Is a directory"),
        ("c" * 300, "File name too long"),
    ],
)
def test_where_nothing_can_be_written_is_told_in_a_line(
    archive: Engine, archiver: Program, folder: str, reason: str
) -> None:
    archiver.write("a-file", "")
    (archiver.folder / "taken" / "runs.csv").mkdir(parents=True)
    done = archiver.call("export", "--csv", folder)
    assert done == (2, "", f"error: --csv {folder}: cannot be written: {reason}\n")
    assert [file.name for file in (archiver.folder / "taken").iterdir()] == ["runs.csv"]


def test_without_an_archive_there_is_nothing_to_export(archiver: Program) -> None:
    done = archiver.call("export", "--csv", "results")
    assert done.exit_code == DatabaseError.exit_code
    assert done.stderr.endswith("has no archive yet; `result-archiver ingest` makes one\n")
    assert not (archiver.folder / "results").exists()
