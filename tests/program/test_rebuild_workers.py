"""`verify` and `replay` by several processes: the output of one, byte for byte."""

import time
from pathlib import Path

import pytest
from sqlalchemy import text

from etl.db import database
from tests.support.dask_cluster import cluster
from tests.support.fake_api import FakeApi, result
from tests.support.program import Program

RUNS = 230
"""More than four batches of 50."""

DAMAGE = (
    "UPDATE tests SET status = 'odd' WHERE run_id LIKE 'r-1%' AND position = 1",
    "DELETE FROM counts WHERE run_id LIKE 'r-20%' AND test_position = 0",
    "UPDATE plan_variants SET application = 'another'",
    "UPDATE payloads SET sha256 = 'damaged' WHERE run_id IN ('r-3', 'r-77')",
    "UPDATE daily_results SET runs = 1000",
)


@pytest.fixture
def damaged(archiver: Program, api: FakeApi) -> Program:
    for number in range(RUNS):
        api.answers[f"r-{number}"] = [result(id=f"r-{number}", name=f"plan {number % 7}")]
    listed = archiver.write("runs.txt", "\n".join(api.answers))
    assert archiver.call("ingest", "--from", listed).exit_code == 0
    damage(archiver)
    return archiver


def damage(archiver: Program) -> None:
    engine = database.connect(archiver.environment["RESULT_ARCHIVER__DATABASE__URL"])
    with database.writing(engine) as connection:
        for statement in DAMAGE:
            connection.execute(text(statement))
    engine.dispose()


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_verify_by_any_number_of_processes_prints_the_same(
    damaged: Program, options: tuple[str, ...]
) -> None:
    alone = damaged.run("verify", *options)
    assert alone.exit_code == 1
    assert len(alone.stdout) > 1000
    for number in ("1", "2", "3"):
        assert damaged.run("verify", "--workers", number, *options) == alone


def test_replay_by_any_number_of_processes_does_the_same(damaged: Program) -> None:
    outputs = []
    for number in ("1", "2", "3"):
        done = damaged.run("replay", "--workers", number)
        assert done.exit_code == 1, "two payloads are damaged"
        outputs.append(done.stdout)
        left = damaged.run("verify", "--workers", "2")
        assert "replay` mends" not in left.stdout
        damage(damaged)
    assert len(outputs[0]) > 1000
    assert outputs[1:] == [outputs[0]] * 2


def test_dry_run_of_a_replay_prints_the_same_and_changes_nothing(damaged: Program) -> None:
    alone = damaged.run("replay", "--dry-run")
    assert damaged.run("replay", "--dry-run", "--workers", "2") == alone
    assert damaged.run("replay", "--dry-run") == alone


def test_an_error_of_a_process_is_one_line(tmp_path: Path, archiver: Program) -> None:
    done = archiver.run("verify", "--workers", "2")
    assert done.exit_code == 4
    assert "Traceback" not in done.stderr


def test_verify_and_replay_on_a_cluster_print_the_same(damaged: Program) -> None:
    with cluster(damaged) as its:
        alone, dask = damaged.run("verify"), ("--dask", its.address)
        assert len(alone.stdout) > 1000
        assert damaged.run("verify", *dask) == alone
        assert damaged.run("replay", "--dry-run", *dask) == damaged.run("replay", "--dry-run")
        replayed = damaged.run("replay", *dask)
        assert replayed.exit_code == 1, "two payloads are damaged"
        assert "replay` mends" not in damaged.run("verify").stdout
        damage(damaged)
        assert damaged.run("replay") == replayed


def test_the_batch_of_a_killed_dask_worker_is_repeated(damaged: Program) -> None:
    alone = damaged.run("verify")
    with cluster(damaged) as its, damaged.started("verify", "--dask", its.address) as process:
        time.sleep(1.5)
        its.workers[0].kill()
        stdout, _ = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (alone.exit_code, alone.stdout)
