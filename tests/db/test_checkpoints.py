"""Checkpoints of SQLite beside the commits of a pass."""

import shutil
import time
from pathlib import Path

from etl.clock import now
from etl.db.checkpoints import EVERY_S, checkpointing
from etl.db.database import connect, writing
from etl.db.opening import open_or_create, open_to_read
from etl.db.schema import tracked_runs
from etl.ledger import tracking
from etl.ledger.tracking import Entry

LONGEST_S = 30


def read_file_alone(file: Path) -> list[str]:
    """Return the runs in a database's file, without its log."""
    copy = file.with_name("copy.db")
    shutil.copyfile(file, copy)
    with open_to_read(f"sqlite:///{copy}") as archive, archive.reading() as connection:
        return list(
            connection.scalars(tracked_runs.select().with_only_columns(tracked_runs.c.run_id))
        )


def test_a_commit_is_in_the_file_while_the_archive_is_in_use(tmp_path: Path) -> None:
    file = tmp_path / "archive.db"
    with open_or_create(f"sqlite:///{file}") as archive:
        pass  # closing writes the tables to the file
    with open_or_create(f"sqlite:///{file}") as archive, checkpointing(archive.engine):
        with writing(archive.engine) as connection:
            tracking.track(connection, [Entry("run-1", None, None, {})], now())
        patient_until = time.monotonic() + LONGEST_S
        while not (found := read_file_alone(file)) and time.monotonic() < patient_until:
            time.sleep(0.1)
        assert found == ["run-1"]


def test_a_database_that_goes_away_is_left_to_the_commits(tmp_path: Path) -> None:
    """A thread that raised would print a traceback, here a warning that fails the test."""
    engine = connect(f"sqlite:///{tmp_path}/gone/archive.db")
    with checkpointing(engine):
        time.sleep(2 * EVERY_S)
    engine.dispose()
