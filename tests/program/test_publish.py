"""The copy that is made for readers: whole, finished, and without secrets."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine

from etl.db.database import connect, prepare, reading, writing
from etl.errors import DatabaseError
from etl.export import publish
from etl.export.own_files import DEMO_ARCHIVE, is_published_copy, mark_database
from etl.ledger import tracking
from etl.ledger.tracking import Entry
from tests.db.test_views import MONDAY
from tests.support.dump import dump
from tests.support.looks import a_test, look
from tests.support.program import Program, bare_program

TOKEN = "gAAAAABl5ZcAencryptedtokenencryptedtoken"


@pytest.fixture
def archive(sqlite_url: str) -> Iterator[Engine]:
    """An archive with a run whose read token is known."""
    engine = connect(sqlite_url)
    prepare(engine)
    look(engine, "run-1", MONDAY, a_test("cart", "passed"))
    with writing(engine) as connection:
        tracking.track(connection, [Entry("run-2", None, TOKEN, {"branch": "main"})], MONDAY)
    yield engine
    engine.dispose()


@pytest.fixture
def archiver(tmp_path: Path, sqlite_url: str) -> Program:
    return bare_program(tmp_path).given(RESULT_ARCHIVER__DATABASE__URL=sqlite_url)


def test_the_copy_has_all_but_the_secrets(archive: Engine, tmp_path: Path) -> None:
    publish.copy_to(archive, tmp_path / "copy.db")
    copy = connect(f"sqlite:///{tmp_path}/copy.db")
    with reading(archive) as one, reading(copy) as other:
        original, copied = dump(one), dump(other)
    copy.dispose()
    assert [row["read_token"] for row in original["tracked_runs"]] == [None, TOKEN]
    for row in original["tracked_runs"]:
        row["read_token"] = None
    assert copied == original


def test_no_secret_is_left_in_unused_space(archive: Engine, tmp_path: Path) -> None:
    publish.copy_to(archive, tmp_path / "copy.db")
    assert TOKEN.encode() not in (tmp_path / "copy.db").read_bytes()


def test_the_copy_has_statistics_for_its_readers(archive: Engine, tmp_path: Path) -> None:
    publish.copy_to(archive, tmp_path / "copy.db")
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        query = "SELECT idx FROM sqlite_stat1 WHERE tbl = 'runs'"
        assert {"ix_runs_started_on", "ix_runs_iso_date"} <= {
            name for (name,) in copy.execute(query)
        }


@pytest.mark.usefixtures("archive")
def test_a_program_is_told_what_was_copied(archiver: Program, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    told = archiver.call("export", "--sqlite", copy, "--json").json()
    assert told == [{"file": str(copy), "bytes": copy.stat().st_size}]


def test_the_copy_is_one_file_that_can_be_read_where_nothing_can_be_written(
    archive: Engine, archiver: Program, tmp_path: Path
) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    done = archiver.call("export", "--sqlite", folder / "results.db")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.startswith(f"{folder}/results.db: a copy to publish, ")
    with closing(sqlite3.connect(f"file:{folder}/results.db?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        query = "SELECT application, pass_rate FROM run_results"
        assert connection.execute(query).fetchall() == [("Shop", 1.0)]
    assert list(folder.iterdir()) == [folder / "results.db"]


def test_a_copy_that_is_there_is_replaced_at_once(archive: Engine, tmp_path: Path) -> None:
    """Who has the old one open goes on reading it."""
    target = tmp_path / "copy.db"
    publish.copy_to(archive, target)
    look(archive, "run-3", MONDAY, a_test("cart", "failed"))
    with closing(sqlite3.connect(target)) as before:
        publish.copy_to(archive, target)
        with closing(sqlite3.connect(target)) as after:
            runs = "SELECT count(*) FROM runs"
            assert [each.execute(runs).fetchone() for each in (before, after)] == [(1,), (2,)]


def test_a_copy_that_fails_leaves_the_old_one_and_nothing_else(
    archive: Engine, tmp_path: Path
) -> None:
    (tmp_path / "published").mkdir()
    target = tmp_path / "published" / "copy.db"
    publish.copy_to(archive, target)
    before = target.read_bytes()
    with archive.connect() as connection:
        connection.exec_driver_sql("DROP TABLE data_dictionary")
        connection.exec_driver_sql("ALTER TABLE tracked_runs RENAME COLUMN read_token TO token")
        connection.commit()
    with pytest.raises(DatabaseError, match="cannot be written: no such column: read_token"):
        publish.copy_to(archive, target)
    assert target.read_bytes() == before
    assert list(target.parent.iterdir()) == [target]


def a_database(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE notes (text)")


def another_archive(file: Path) -> None:
    engine = connect(f"sqlite:///{file}")
    prepare(engine)
    engine.dispose()


def a_demo(file: Path) -> None:
    mark_database(file, DEMO_ARCHIVE)


def a_note(file: Path) -> None:
    file.write_text("mine")


def a_short_file(file: Path) -> None:
    file.write_bytes(b"SQLite format 3\0")


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("make", [a_database, another_archive, a_demo, a_note, a_short_file])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_file_that_is_no_copy_is_named_and_stays(
    archiver: Program, tmp_path: Path, make: Callable[[Path], None], is_link: bool
) -> None:
    make(tmp_path / "theirs.db")
    before = (tmp_path / "theirs.db").read_bytes()
    if is_link:
        (tmp_path / "link.db").symlink_to("theirs.db")
    target = "link.db" if is_link else "theirs.db"
    done = archiver.call("export", "--sqlite", target)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {target}: exists, and was not written by this")
    assert (tmp_path / "theirs.db").read_bytes() == before


def test_a_copy_at_the_end_of_a_link_is_replaced(archive: Engine, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to("copy.db")
    for _ in range(2):
        publish.copy_to(archive, tmp_path / "link.db")
        assert (tmp_path / "link.db").is_symlink()
        assert is_published_copy(tmp_path / "copy.db")


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("target", ["/dev/stdout", "/dev/null", "pipe"])
def test_a_database_is_not_written_to_a_stream(
    archiver: Program, tmp_path: Path, target: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = archiver.call("export", "--sqlite", target)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {target}: is a pipe or device; ")


@pytest.mark.parametrize(
    "name", ["a%20b.db", "why?.db", "c#.db", "x%41.db", "100%.db", "file:x.db"]
)
def test_a_copy_can_have_any_name(archive: Engine, tmp_path: Path, name: str) -> None:
    publish.copy_to(archive, tmp_path / name)
    assert is_published_copy(tmp_path / name)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no/such/folder/copy.db", "cannot be written: No such file or directory"),
        (".", "is a folder; name a file in it"),
        ("archive.db", "is the archive itself; name another file"),
        ("c" * 300, "cannot be written: File name too long"),
    ],
)
def test_where_no_copy_can_be_made_is_told_in_a_line(
    archive: Engine, archiver: Program, target: str, reason: str
) -> None:
    done = archiver.call("export", "--sqlite", target)
    assert done.exit_code in {2, 4}
    assert done.stderr.startswith(f"error: {target}: {reason}")
    assert len(done.stderr.splitlines()) == 1


def test_without_an_archive_there_is_nothing_to_copy(archiver: Program, sqlite_url: str) -> None:
    done = archiver.call("export", "--sqlite", "copy.db")
    assert (done.exit_code, done.stderr) == (
        4,
        f"error: {sqlite_url}: has no archive yet; `result-archiver ingest` makes one\n",
    )


def test_on_postgresql_readers_are_let_in_instead(tmp_path: Path, postgresql_url: str) -> None:
    program = bare_program(tmp_path).given(RESULT_ARCHIVER__DATABASE__URL=postgresql_url)
    done = program.call("export", "--sqlite", "copy.db")
    assert done.exit_code == 2
    assert done.stderr.endswith("let readers in: `result-archiver db grant-reader ROLE`\n")
    assert list(tmp_path.glob("*.db")) == []
