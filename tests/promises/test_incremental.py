"""A copy that a BI tool keeps by asking again and again for what changed since the last time."""

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from etl.db.database import connect, prepare, reading
from etl.db.schema import runs
from tests.support import fake_api
from tests.support.fake_api import FakeApi, result
from tests.support.program import Program, program

OVERLAP = timedelta(minutes=10)
SLOW = "m"
"""Runs are asked for in the order of their IDs: some quick ones before it, some after."""
SLOW_S = 3.0
"""Longer than a second, by which what came quickly is stored."""

Copy = dict[str, tuple[datetime, int]]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with fake_api.serving() as api:
        yield api


@pytest.fixture
def archiver(tmp_path: Path, database_url: str, api: FakeApi) -> Program:
    in_turn = {"RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND": "20"}
    return program(tmp_path, database_url, api.url).given(**in_turn)


class Mirror:
    """What docs/BI.md says to do: ask from a while before the newest change, and merge by key."""

    def __init__(self, url: str) -> None:
        self.engine = connect(url)
        self.rows: Copy = {}
        self.lags: list[timedelta] = []
        """How much older than the newest change that was known each new one was."""

    def refresh(self) -> None:
        newest = max((row_changed_at for row_changed_at, _ in self.rows.values()), default=None)
        query = select(runs.c.run_id, runs.c.row_changed_at, runs.c.revision)
        if newest is not None:
            query = query.where(runs.c.row_changed_at >= newest - OVERLAP)
        with reading(self.engine) as connection:
            for run_id, row_changed_at, revision in connection.execute(query):
                row = (row_changed_at, revision)
                if newest is not None and self.rows.get(run_id) != row:
                    self.lags.append(newest - row_changed_at)
                self.rows[run_id] = row

    def everything(self) -> Copy:
        with reading(self.engine) as connection:
            query = select(runs.c.run_id, runs.c.row_changed_at, runs.c.revision)
            return {
                row.run_id: (row.row_changed_at, row.revision) for row in connection.execute(query)
            }


def test_an_incremental_copy_misses_nothing(
    archiver: Program, api: FakeApi, database_url: str
) -> None:
    """A slow answer is stored after quick ones that were asked for later, with its earlier time.

    Otherwise row_changed_at grows with the order of the commits of a process: by how much it can
    fall back is what a request may take (`api.total_timeout_s`), and the second until it is stored.
    """
    api.answers[SLOW] = [result(status="passed")._replace(delay_s=SLOW_S)]
    quick = [f"{letter}-{n}" for letter in "az" for n in range(10)]
    api.answers |= {run_id: [result(status="passed")] for run_id in quick}
    mirror = Mirror(database_url)
    prepare(mirror.engine)
    with archiver.started("ingest", SLOW, *quick) as process:
        while process.poll() is None:
            mirror.refresh()
            time.sleep(0.05)
    mirror.refresh()
    assert mirror.rows == mirror.everything()
    assert mirror.rows.keys() == {SLOW, *quick}
    assert timedelta(0) < max(mirror.lags) < timedelta(seconds=SLOW_S + 1)
    mirror.engine.dispose()
