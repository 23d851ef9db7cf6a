"""Due runs that a transaction of a lost host has locked (promise 5)."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, select

from etl.cli.session import Wiring
from etl.db.database import connect, prepare
from etl.db.schema import tracked_runs
from tests.support.fake_api import FakeApi, result
from tests.support.program import Program, program

RUNS = 40
LOCKED = ["r-3", "r-7"]


@pytest.fixture
def archiver(tmp_path: Path, postgresql_url: str, api: FakeApi) -> Program:
    api.other = result()
    archiver = program(tmp_path, postgresql_url, api.url)
    listed = archiver.write("runs.txt", "\n".join(f"r-{number}" for number in range(RUNS)))
    assert archiver.call("track", "--from", listed).exit_code == 0
    return archiver


@pytest.fixture
def lost_host(archiver: Program, postgresql_url: str) -> Iterator[Connection]:
    """The connection of a host that has locked some runs."""
    engine = connect(postgresql_url)
    prepare(engine)
    locked = select(tracked_runs).where(tracked_runs.c.run_id.in_(LOCKED)).with_for_update()
    with engine.connect() as connection:
        connection.execute(locked)
        yield connection
    engine.dispose()


def await_requests(api: FakeApi, number: int) -> None:
    until = time.monotonic() + 30
    while api.requests.total() < number:
        assert time.monotonic() < until, "too few requests"
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
def test_a_pass_fetches_the_runs_once_the_server_ends_the_transaction(
    api: FakeApi, archiver: Program, lost_host: Connection, workers: list[str]
) -> None:
    with archiver.started("ingest", "--json", *workers) as process:
        assert process.stderr is not None
        assert any("waiting for runs that another process has" in line for line in process.stderr)
        assert api.requests.total() == RUNS - len(LOCKED)
        lost_host.rollback()
        stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert '"new": 40' in stdout
    assert set(api.requests.values()) == {1}
    [only] = archiver.call("passes", "--json").json()
    assert (only["new"], only["requests"], only["exit_code"]) == (RUNS, RUNS, 0)
    assert archiver.call("status", "--json").json()["due"] == 0


def test_a_pass_that_waits_in_vain_says_so(archiver: Program, lost_host: Connection) -> None:
    assert lost_host.in_transaction()
    done = archiver.wired(Wiring(patience_s=1.0)).call("ingest", "--json")
    assert (done.exit_code, done.json()["new"]) == (1, RUNS - len(LOCKED))
    assert "runs that another process has locked stay due" in done.stderr
    [only] = archiver.call("passes", "--json").json()
    assert only["exit_code"] == 1


def test_a_signal_ends_the_wait(api: FakeApi, archiver: Program, lost_host: Connection) -> None:
    assert lost_host.in_transaction()
    with archiver.started("ingest", "--json") as process:
        await_requests(api, RUNS - len(LOCKED))
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        stdout, _ = process.communicate(timeout=10)
    assert process.returncode == 143
    assert '"halted": "interrupted"' in stdout
