"""An archive is opened with the rights that its use needs, and closed again."""

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import insert, make_url, select

from etl.db.opening import (
    Archive,
    open_as_it_is,
    open_or_create,
    open_to_migrate,
    open_to_read,
    open_to_write,
)
from etl.db.schema import tracked_runs
from etl.errors import DatabaseError, Fault
from tests.support.postgres import Server

Opening = Callable[[str], AbstractContextManager[Archive]]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOBODY = 65534


@pytest.fixture
def archive_url(database_url: str) -> str:
    """An archive with one run."""
    with open_or_create(database_url) as archive:
        track(archive, "r-1")
    return database_url


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that other users can reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def file(public_folder: Path) -> Path:
    """An archive in a file, with one run."""
    file = public_folder / "archive.db"
    with open_or_create(f"sqlite:///{file}") as archive:
        track(archive, "r-1")
    return file


def track(archive: Archive, run_id: str) -> None:
    with archive.writing() as connection:
        row = {"run_id": run_id, "source": "default", "state": "queued"}
        connection.execute(insert(tracked_runs).values(row | {"first_tracked_at": NOW}))


def run_ids(archive: Archive) -> list[str]:
    with archive.snapshot() as connection:
        return list(connection.scalars(select(tracked_runs.c.run_id)))


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Act as a user who may not write into `folder`."""
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


@contextmanager
def privileged() -> Iterator[None]:
    """Act as the one who runs the tests again."""
    ours = os.geteuid()
    os.seteuid(os.getuid())
    try:
        yield
    finally:
        os.seteuid(ours)


def fault(open_it: Opening, url: str) -> DatabaseError:
    with pytest.raises(DatabaseError) as caught, open_it(url):
        pass
    return caught.value


# --- rights ---


@pytest.mark.parametrize("open_it", [open_to_read, open_as_it_is])
def test_a_reader_cannot_write(archive_url: str, open_it: Opening) -> None:
    with open_it(archive_url) as archive:
        with pytest.raises(DatabaseError, match=r"read-?only"):
            track(archive, "r-2")
        assert run_ids(archive) == ["r-1"]


@pytest.mark.parametrize("open_it", [open_to_write, open_or_create, open_to_migrate])
def test_a_writer_can(archive_url: str, open_it: Opening) -> None:
    with open_it(archive_url) as archive:
        track(archive, "r-2")
        assert run_ids(archive) == ["r-1", "r-2"]


@pytest.mark.parametrize("open_it", [open_to_read, open_to_write])
def test_a_new_database_is_refused_and_not_made(database_url: str, open_it: Opening) -> None:
    error = fault(open_it, database_url)
    assert (error.reason, error.remedy) == (Fault.NO_ARCHIVE, "`result-archiver ingest` makes one")
    assert not Path("archive.db").exists()


def test_a_reader_reads_on_while_a_writer_writes(archive_url: str) -> None:
    with open_to_read(archive_url) as reader, open_to_write(archive_url) as writer:
        with reader.snapshot() as connection:
            before = connection.scalars(select(tracked_runs.c.run_id)).all()
            track(writer, "r-2")
            assert connection.scalars(select(tracked_runs.c.run_id)).all() == before == ["r-1"]
        assert run_ids(reader) == ["r-1", "r-2"]


# --- closing ---


@pytest.mark.parametrize("open_it", [open_to_read, open_to_write, open_or_create])
def test_no_connection_is_left(postgresql_url: str, postgresql: Server, open_it: Opening) -> None:
    with open_or_create(postgresql_url), open_it(postgresql_url) as archive:
        assert run_ids(archive) == []
    name = make_url(postgresql_url).database
    with postgresql.administer() as admin:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        # A backend ends a moment after its client has gone.
        for _ in range(100):
            if admin.execute(query, [name]).fetchone() == (0,):
                return
            admin.execute("SELECT pg_sleep(0.05)")
    pytest.fail("a connection is left")


def test_a_closed_file_is_the_whole_archive(file: Path) -> None:
    with open_to_write(f"sqlite:///{file}") as archive:
        track(archive, "r-2")
    assert list(file.parent.iterdir()) == [file]


def test_a_failure_within_closes_it_too(file: Path) -> None:
    with suppress(ZeroDivisionError), open_to_write(f"sqlite:///{file}") as archive:
        track(archive, str(1 / 0))
    assert list(file.parent.iterdir()) == [file]


# --- files that a reader cannot write ---


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "wal"])
def test_a_reader_leaves_the_file_as_it_is(file: Path, mode: str) -> None:
    set_journal_mode(file, mode)
    before = {path: path.read_bytes() for path in file.parent.iterdir()}
    with open_to_read(f"sqlite:///{file}") as archive:
        assert run_ids(archive) == ["r-1"]
    assert {path: path.read_bytes() for path in file.parent.iterdir()} == before


@pytest.mark.parametrize("mode", ["delete", "wal"])
@pytest.mark.parametrize("name", ["archive.db", "a blank, # and ö.db"])
def test_a_reader_needs_no_right_to_write_the_folder(file: Path, mode: str, name: str) -> None:
    set_journal_mode(file, mode)
    renamed = file.rename(file.with_name(name))
    with unprivileged(file.parent), open_to_read(f"sqlite:///{renamed}") as archive:
        assert run_ids(archive) == ["r-1"]
    assert list(file.parent.iterdir()) == [renamed]


def test_what_a_killed_writer_left_is_read(file: Path) -> None:
    with open_to_write(f"sqlite:///{file}") as archive:
        track(archive, "r-2")
        copy = file.with_name("killed.db")
        for suffix in ("", "-wal"):
            content = file.with_name(f"{file.name}{suffix}").read_bytes()
            copy.with_name(f"{copy.name}{suffix}").write_bytes(content)
    before = copy.read_bytes()
    with open_to_read(f"sqlite:///{copy}") as archive:
        assert run_ids(archive) == ["r-1", "r-2"]
    assert copy.read_bytes() == before


def test_rows_of_a_file_that_changes_meanwhile_are_refused(file: Path) -> None:
    set_journal_mode(file, "wal")
    with unprivileged(file.parent), open_to_read(f"sqlite:///{file}") as archive:
        assert run_ids(archive) == ["r-1"]
        rewritten = file.stat().st_mtime_ns + 1
        with privileged():
            os.utime(file, ns=(rewritten, rewritten))
        with pytest.raises(DatabaseError, match="was written to while it was read; try again"):
            run_ids(archive)


def set_journal_mode(file: Path, mode: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
