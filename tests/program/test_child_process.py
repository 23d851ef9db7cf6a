"""The child process that fetches: a pass that loses it, and it when its parent is lost."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from etl.fetch.door import CHILD_FROM_RUNS
from tests.support.fake_api import FakeApi, result
from tests.support.program import Program, program

RUN_IDS = [f"r-{number}" for number in range(CHILD_FROM_RUNS)]


@pytest.fixture
def slow_api(api: FakeApi) -> FakeApi:
    api.other = result()._replace(delay_s=0.05)
    return api


@pytest.fixture
def archiver(tmp_path: Path, sqlite_url: str, slow_api: FakeApi) -> Program:
    return program(tmp_path, sqlite_url, slow_api.url).given(RESULT_ARCHIVER__API__CONNECTIONS="4")


def helper_of(process: "subprocess.Popen[str]") -> int:
    """Return the ID of the process for fetching that `process` has started, as soon as it has."""
    while process.poll() is None:
        for pid in children_of(process):
            if "etl.fetch.child_main" in command_of(
                pid
            ):  # before, it is still a copy of its parent
                return pid
        time.sleep(0.01)
    raise AssertionError(process.communicate())


def children_of(process: "subprocess.Popen[str]") -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def await_requests(api: FakeApi, number: int) -> None:
    while api.requests.total() < number:
        time.sleep(0.01)


@contextmanager
def under_way(archiver: Program, api: FakeApi) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Give a pass in which some runs were asked for, and the ID of its process for fetching."""
    with archiver.started("ingest", *RUN_IDS) as process:
        helper = helper_of(process)
        await_requests(api, 5)
        yield process, helper


def rows(archiver: Program, query: str) -> int:
    with sqlite3.connect(archiver.folder / "archive.db") as connection:
        found: int = connection.execute(query).fetchone()[0]
    return found


def test_without_the_process_that_fetches_a_pass_ends_and_the_next_one_does_the_rest(
    archiver: Program, slow_api: FakeApi
) -> None:
    with under_way(archiver, slow_api) as (process, helper):
        os.kill(helper, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (1, "")
    assert stderr.endswith(
        "Z pass 1: error: the process that fetches ended by itself (exit code -9); its batches are"
        " stored, the rest stays due\n"
    )
    assert rows(archiver, "SELECT count(*) FROM tracked_runs WHERE lease_owner IS NOT NULL") == 0
    assert rows(archiver, "SELECT count(*) FROM ingests WHERE exit_code = 1") == 1
    slow_api.other = result()
    assert archiver.run("ingest").exit_code == 0
    assert rows(archiver, "SELECT count(*) FROM runs") == len(RUN_IDS)
    assert archiver.call("verify").exit_code == 0


def test_nothing_is_left_of_a_pass_that_is_killed(archiver: Program, slow_api: FakeApi) -> None:
    with under_way(archiver, slow_api) as (process, helper):
        process.kill()
        process.wait()
        until = time.monotonic() + 10
        while is_running(helper) and time.monotonic() < until:
            time.sleep(0.05)
    assert not is_running(helper)


def is_running(pid: int) -> bool:
    """Tell whether a process still does something; one that nobody has taken leave of does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_signal_for_all_processes_lets_runs_in_hand_come_back(
    archiver: Program, slow_api: FakeApi
) -> None:
    """As a service manager sends it, to each process of a service."""
    with under_way(archiver, slow_api) as (process, helper):
        for pid in (helper, process.pid):
            os.kill(pid, signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "interrupted by SIGTERM" in stderr
    assert rows(archiver, "SELECT count(*) FROM runs") == slow_api.requests.total()


def test_the_keys_of_the_terminal_reach_the_pass_alone(
    archiver: Program, slow_api: FakeApi
) -> None:
    with archiver.started("ingest", *RUN_IDS) as process:
        helper = helper_of(process)
        assert os.getpgid(helper) != os.getpgid(process.pid)


def test_what_the_process_that_fetches_is_started_with_has_no_key(
    archiver: Program, slow_api: FakeApi
) -> None:
    key = archiver.environment["APPLITOOLS_API_KEY"]
    with archiver.started("ingest", *RUN_IDS) as process:
        assert key not in command_of(helper_of(process))


def test_a_folder_with_a_module_of_the_same_name_does_no_harm(
    archiver: Program, slow_api: FakeApi
) -> None:
    """The process that fetches is started in the user's folder, and imports nothing from there."""
    for name in ("requests.py", "msgspec.py", "etl.py"):
        archiver.write(name, "raise RuntimeError('not mine')")
    script = Path(sys.executable).with_name("result-archiver")
    done = subprocess.run(
        [script, "ingest", *RUN_IDS], cwd=archiver.folder, env=archiver.environment, check=False
    )
    assert done.returncode == 0


def test_output_of_a_starting_python_is_no_message(archiver: Program, slow_api: FakeApi) -> None:
    archiver.write("sitecustomize.py", "print('hello')")
    slow_api.other = result()
    done = archiver.given(PYTHONPATH=str(archiver.folder)).run("ingest", *RUN_IDS)
    assert (done.exit_code, done.stdout) == (0, "hello\n")
    [line] = done.stderr.splitlines()
    assert f" pass 1: {len(RUN_IDS)} new" in line


def test_a_signal_for_all_that_comes_at_once_is_the_pass_s_too(archiver: Program) -> None:
    """Before the process that fetches could have said that it does not heed it."""
    with archiver.started("ingest", *RUN_IDS) as process:
        os.kill(helper_of(process), signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 0
    [line] = stderr.splitlines()
    assert f" pass 1: {len(RUN_IDS)} new" in line


def test_the_process_that_fetches_is_not_told_how_to_reach_the_database(archiver: Program) -> None:
    with archiver.started("ingest", *RUN_IDS) as process:
        told = Path(f"/proc/{helper_of(process)}/environ").read_text()
    assert "archive.db" not in told
    assert "RESULT_ARCHIVER__API__BASE_URL" in told


@pytest.mark.parametrize("due", [0, 1, CHILD_FROM_RUNS - 1, CHILD_FROM_RUNS])
def test_only_a_pass_with_many_due_runs_has_a_child_process(
    archiver: Program, slow_api: FakeApi, due: int
) -> None:
    if due:
        assert archiver.call("track", *RUN_IDS[:due]).exit_code == 0
    else:
        assert archiver.call("ingest", "r-0").exit_code == 0
    with archiver.started("ingest") as process:
        if due >= CHILD_FROM_RUNS:
            helper_of(process)
        elif due:
            await_requests(slow_api, 1)
            assert children_of(process) == []
        process.terminate()


def test_without_room_for_another_process_a_pass_says_so(
    archiver: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_arguments: Any, **_settings: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", no_room)
    done = archiver.call("ingest", *RUN_IDS)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.endswith(
        "Z pass 1: error: the process that fetches cannot be started: Resource temporarily"
        " unavailable; make room for it\n"
    )


def test_a_child_that_is_stopped_does_not_keep_a_pass_from_its_end(
    archiver: Program, slow_api: FakeApi
) -> None:
    with under_way(archiver, slow_api) as (process, helper):
        os.kill(helper, signal.SIGSTOP)
        began = time.monotonic()
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 143
    assert time.monotonic() - began < 10
    assert not is_running(helper)
