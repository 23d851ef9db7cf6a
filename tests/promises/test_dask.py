"""A pass on a real Dask cluster: a scheduler and two workers, each a process of its own."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.promises.test_pass_workers import RUNS, await_requests, check, ended
from tests.support.dask_cluster import cluster, dask
from tests.support.fake_api import FakeApi, runs_of_plans
from tests.support.postgres import free_port
from tests.support.program import Program


@pytest.fixture
def slow_api(api: FakeApi) -> FakeApi:
    api.answers |= runs_of_plans(RUNS)
    return api


@pytest.fixture
def archiver(archiver: Program) -> Program:
    listed = archiver.write("runs.txt", "\n".join(f"r-{number}" for number in range(RUNS)))
    assert archiver.call("track", "--from", listed).exit_code == 0
    return archiver


def test_a_dask_cluster_makes_the_archive_of_one_process(
    slow_api: FakeApi, archiver: Program
) -> None:
    with cluster(archiver) as its:
        done = archiver.run("ingest", "--dask", its.address, "--workers", "2", "--json")
        assert done.exit_code == 0, done.stderr
        assert done.json()["new"] == RUNS
        assert set(slow_api.requests.values()) == {1}
        again = archiver.run("ingest", "--dask", its.address, "--json")
        assert (again.exit_code, again.json()["requests"]) == (0, 0)
    check(archiver, slow_api)


def test_the_task_of_a_killed_dask_worker_is_repeated_without_harm(
    slow_api: FakeApi, archiver: Program
) -> None:
    with cluster(archiver) as its:
        options = ("--dask", its.address, "--workers", "2", "--json")
        with archiver.started("ingest", *options) as process:
            await_requests(slow_api, RUNS // 4)
            its.workers[0].kill()
            code, stderr = ended(process)
        assert code == 0, stderr
    check(archiver, slow_api)


def test_a_signal_ends_all_workers_of_a_cluster(slow_api: FakeApi, archiver: Program) -> None:
    """Also those that wait for a free Dask worker."""
    slowly = archiver.given(RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND="20")
    with cluster(slowly) as its:
        options = ("--dask", its.address, "--workers", "3", "--json")
        with slowly.started("ingest", *options) as process:
            await_requests(slow_api, RUNS // 4)
            process.send_signal(signal.SIGINT)
            code, stderr = ended(process)
    assert code == 130
    assert stderr.count("interrupted by SIGINT; due runs stay due") == 1
    assert archiver.call("status", "--json").json()["leased"] == 0


@pytest.mark.parametrize("command", ["ingest", "verify", "replay"])
def test_an_address_without_a_scheduler_is_one_line(archiver: Program, command: str) -> None:
    done = archiver.run(command, "--dask", f"tcp://127.0.0.1:{free_port()}")
    assert done.exit_code == 2
    assert "no Dask scheduler answers" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["ingest", "verify"])
def test_a_scheduler_without_workers_is_one_line(archiver: Program, command: str) -> None:
    port = str(free_port())
    with dask(archiver, "scheduler", "--host", "127.0.0.1", "--port", port):
        done = archiver.run(command, "--dask", f"tcp://127.0.0.1:{port}")
    assert done.exit_code == 2
    assert done.stderr == (
        f"error: --dask tcp://127.0.0.1:{port}: no Dask worker is connected;"
        f" start one: dask worker tcp://127.0.0.1:{port}\n"
    )


def test_workers_that_have_another_archive_are_refused(
    slow_api: FakeApi, archiver: Program, tmp_path: Path
) -> None:
    ours = archiver.given(RESULT_ARCHIVER__DATABASE__URL=f"sqlite:///{tmp_path}/ours.db")
    ours.call("track", "--from", archiver.folder / "runs.txt")
    with cluster(archiver) as its:
        done = ours.run("ingest", "--dask", its.address)
        assert (done.exit_code, slow_api.requests.total()) == (2, 0)
        assert "has another archive" in done.stderr
        assert "give the workers the database.url of the command" in done.stderr
        assert ours.call("ingest").exit_code == 0
        for command in ("verify", "replay"):
            done = ours.run(command, "--dask", its.address)
            assert (done.exit_code, done.stdout) == (2, "")
            assert "has another archive" in done.stderr


def test_the_mistake_of_a_dask_worker_is_told(slow_api: FakeApi, archiver: Program) -> None:
    with cluster(archiver.given(APPLITOOLS_API_KEY="")) as its:
        done = archiver.run("ingest", "--dask", its.address)
    assert (done.exit_code, slow_api.requests.total()) == (2, 0)
    assert "a worker failed" in done.stderr
    assert "no API key" in done.stderr


def test_only_its_runner_imports_dask(slow_api: FakeApi, archiver: Program) -> None:
    code = (
        "import sys\nfrom etl.cli import command_line\nfrom etl.ingest import runners\n"
        "import etl.cli.ingest_command\nprint('distributed' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout == "False\n"
