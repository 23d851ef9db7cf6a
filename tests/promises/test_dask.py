"""A pass on a real Dask cluster: a scheduler and two workers, each a process of its own."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest

from tests.promises.test_pass_workers import RUNS, await_requests, check, ended, runs_of_plans
from tests.support.fake_api import FakeApi
from tests.support.postgres import free_port
from tests.support.program import Program


class Cluster(NamedTuple):
    address: str
    workers: list[subprocess.Popen[bytes]]


@contextmanager
def dask(archiver: Program, module: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of Dask in the archiver's environment."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{module}", *options, "--no-dashboard"]
    output = subprocess.DEVNULL
    with subprocess.Popen(
        command, cwd=archiver.folder, env=archiver.environment, stdout=output, stderr=output
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def cluster(archiver: Program) -> Iterator[Cluster]:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    with ExitStack() as stack:
        options = ("--host", "127.0.0.1", "--port", str(port))
        stack.enter_context(dask(archiver, "scheduler", *options))
        worker = ("worker", address, "--nthreads", "1", "--no-nanny", "--death-timeout", "60")
        workers = [stack.enter_context(dask(archiver, *worker)) for _ in range(2)]
        time.sleep(3)
        yield Cluster(address, workers)


@pytest.fixture
def slow_api(api: FakeApi) -> FakeApi:
    api.answers |= runs_of_plans()
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


def test_an_address_without_a_scheduler_is_one_line(archiver: Program) -> None:
    done = archiver.run("ingest", "--dask", f"tcp://127.0.0.1:{free_port()}")
    assert done.exit_code == 2
    assert "no Dask scheduler answers" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_only_its_runner_imports_dask(slow_api: FakeApi, archiver: Program) -> None:
    code = (
        "import sys\nfrom etl.cli import command_line\nfrom etl.ingest import runners\n"
        "import etl.cli.ingest_command\nprint('distributed' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout == "False\n"
