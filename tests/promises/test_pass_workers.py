"""A pass by several workers: the archive of one process, whatever happens to them."""

import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Engine

from etl.db import database
from tests.support.dump import DECISIONS, LEDGER, dump
from tests.support.fake_api import Answer, FakeApi, result, runs_of_plans
from tests.support.postgres import find_programs, run, running_server
from tests.support.program import COMMAND, Program, program

RUNS = 240
CONNECTIONS = 8
OUR_TIMES = {
    "archived_at", "changed_at", "row_changed_at", "observed_at", "opened_at", "fetched_at",
    "first_seen_at", "decided_at", "measured_at", "digest",
}  # fmt: skip


@pytest.fixture
def archiver(archiver: Program) -> Program:
    listed = archiver.write("runs.txt", "\n".join(f"r-{number}" for number in range(RUNS)))
    assert archiver.call("track", "--from", listed).exit_code == 0
    return archiver


@pytest.fixture
def slow_api(api: FakeApi) -> FakeApi:
    api.answers |= runs_of_plans(RUNS)
    return api


def tables_of(archiver: Program) -> dict[str, list[dict[str, Any]]]:
    engine = database.connect(archiver.environment["RESULT_ARCHIVER__DATABASE__URL"])
    with database.reading(engine) as connection:
        tables = dump(connection, leave_out=(*LEDGER, *DECISIONS))
    engine.dispose()
    return tables


def timeless(archiver: Program) -> dict[str, list[dict[str, Any]]]:
    """Dump an archive without the times at which it was made."""
    return {
        name: [{key: row[key] for key in row.keys() - OUR_TIMES} for row in rows]
        for name, rows in tables_of(archiver).items()
    }


def archived_alone(archiver: Program, api: FakeApi) -> dict[str, list[dict[str, Any]]]:
    """Dump the archive that one process makes of the same runs."""
    folder = archiver.folder / "alone"
    folder.mkdir()
    alone = program(folder, f"sqlite:///{folder}/alone.db", api.url)
    assert alone.call("ingest", "--from", archiver.folder / "runs.txt").exit_code == 0
    return timeless(alone)


def check(archiver: Program, api: FakeApi) -> None:
    """Check that the archive is that of one process, and whole."""
    assert archiver.call("verify").exit_code == 0
    assert timeless(archiver) == archived_alone(archiver, api)


def children_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


def await_requests(api: FakeApi, number: int) -> None:
    until = time.monotonic() + 60
    while api.requests.total() < number:
        assert time.monotonic() < until, "too few requests"
        time.sleep(0.01)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr


def test_workers_make_the_archive_of_one_process(slow_api: FakeApi, archiver: Program) -> None:
    done = archiver.run("ingest", "--workers", "3")
    assert (done.exit_code, done.stdout) == (0, "")
    [line] = done.stderr.splitlines()
    assert f"pass 1: {RUNS} new, 0 changed, 0 unchanged" in line
    assert f"({RUNS} requests)" in line
    assert set(slow_api.requests.values()) == {1}
    [only] = archiver.call("passes", "--json").json()
    assert (only["new"], only["requests"], only["exit_code"]) == (RUNS, RUNS, 0)
    check(archiver, slow_api)


def test_a_second_pass_by_workers_finds_nothing_to_do(slow_api: FakeApi, archiver: Program) -> None:
    archiver.call("ingest")
    before = timeless(archiver)
    done = archiver.run("ingest", "--workers", "2", "--json")
    assert (done.exit_code, done.json()["requests"]) == (0, 0)
    assert timeless(archiver) == before


def test_the_work_of_a_killed_worker_is_done_by_the_others(
    slow_api: FakeApi, archiver: Program
) -> None:
    with archiver.started("ingest", "--workers", "2", "--json") as process:
        await_requests(slow_api, RUNS // 4)
        os.kill(children_of(process)[0], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    summary = json.loads(stdout)
    assert summary["new"] == RUNS
    assert RUNS <= summary["requests"] <= slow_api.requests.total(), "also of the killed worker"
    assert slow_api.requests.total() <= RUNS + 8 + 250, "in flight, and a batch"
    check(archiver, slow_api)


def test_a_killed_pass_shows_the_runs_that_it_has_stored(
    slow_api: FakeApi, archiver: Program
) -> None:
    slowly = archiver.given(RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND="40")
    with slowly.started("ingest") as process:
        until = time.monotonic() + 60
        while not (shown := archiver.call("passes", "--json").json()) or not shown[0]["new"]:
            assert time.monotonic() < until, "no counts while it runs"
            time.sleep(0.05)
        process.kill()
    [killed] = archiver.call("passes", "--json").json()
    stored = len(tables_of(archiver)["runs"])
    assert 0 < stored < RUNS
    assert (killed["new"], killed["finished_at"], killed["exit_code"]) == (stored, None, None)
    assert archiver.call("status", "--json").json()["passes"][0]["new"] == stored


def test_a_worker_that_was_frozen_for_longer_than_its_lease_stores_nothing(
    slow_api: FakeApi, archiver: Program
) -> None:
    patient = archiver.given(RESULT_ARCHIVER__POLLING__LEASE_FOR="2s")
    with patient.started("ingest", "--workers", "2") as process:
        await_requests(slow_api, RUNS // 4)
        frozen = children_of(process)[0]
        os.kill(frozen, signal.SIGSTOP)
        time.sleep(6)
        os.kill(frozen, signal.SIGCONT)
        code, stderr = ended(process)
    assert code in {0, 1}, stderr
    assert archiver.call("ingest").exit_code == 0
    check(archiver, slow_api)


def test_a_process_that_was_frozen_for_longer_than_its_lease_stores_nothing_of_before(
    api: FakeApi, archiver: Program
) -> None:
    """Also if nobody has taken its runs: the same process fetches them again."""
    in_order = sorted(f"r-{number}" for number in range(RUNS))
    under_way = in_order[RUNS // 2 :][:CONNECTIONS]
    api.other = result()
    api.answers |= {run_id: [result()._replace(delay_s=3.0), result()] for run_id in under_way}
    impatient = archiver.given(
        RESULT_ARCHIVER__POLLING__LEASE_FOR="3s",
        RESULT_ARCHIVER__API__CONNECTIONS=str(CONNECTIONS),
    )
    with impatient.started("ingest") as process:
        await_requests(api, RUNS // 2 + CONNECTIONS)
        time.sleep(2)  # the answers before are committed
        process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        woken_at = datetime.now(UTC)
        process.send_signal(signal.SIGCONT)
        code, stderr = ended(process)
    assert code == 0, stderr
    fetched_at = {row["run_id"]: row["fetched_at"] for row in tables_of(archiver)["payloads"]}
    assert all(fetched_at[run_id] > woken_at for run_id in under_way)
    assert {run_id for run_id in in_order if api.requests[run_id] > 1} == {*under_way}
    assert archiver.call("verify").exit_code == 0


def test_workers_outlive_a_restart_of_the_database(tmp_path: Path, slow_api: FakeApi) -> None:
    with running_server() as server, server.database() as url:
        archiver = program(tmp_path, url, slow_api.url)
        listed = archiver.write("runs.txt", "\n".join(f"r-{number}" for number in range(RUNS)))
        assert archiver.call("track", "--from", listed).exit_code == 0
        with archiver.started("ingest", "--workers", "2") as process:
            await_requests(slow_api, RUNS // 4)
            programs = find_programs()
            options = ("--wait", "--mode", "fast", "--log", server.directory / "log")
            run(programs / "pg_ctl", *options, "restart", directory=server.directory)
            code, stderr = ended(process)
        assert code == 0, stderr
        check(archiver, slow_api)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_workers_after_the_runs_in_hand(
    slow_api: FakeApi, archiver: Program, number: signal.Signals
) -> None:
    with archiver.started("ingest", "--workers", "2", "--json") as process:
        await_requests(slow_api, RUNS // 4)
        process.send_signal(number)
        code, stderr = ended(process)
    assert code == 128 + number
    assert [line.partition("error: ")[2] for line in stderr.splitlines()] == [
        f"interrupted by {number.name}; due runs stay due"
    ]
    assert archiver.call("status", "--json").json()["leased"] == 0
    assert archiver.call("ingest").exit_code == 0
    check(archiver, slow_api)


def test_the_exit_code_is_the_worst_of_all(api: FakeApi, archiver: Program) -> None:
    api.other = Answer(b"", 401)
    done = archiver.run("ingest", "--workers", "2", "--json")
    assert (done.exit_code, done.json()["halted"]) == (3, "refused"), done.stderr
    assert api.requests.total() <= 8


def test_a_budget_is_that_of_all_workers(slow_api: FakeApi, archiver: Program) -> None:
    """Also of those that join from a host without that setting."""
    frugal = archiver.given(
        RESULT_ARCHIVER__POLLING__MAX_REQUESTS_PER_PASS="50",
        RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND="20",
    )
    with frugal.started("ingest", "--workers", "2") as process:
        await_requests(slow_api, 10)
        join(archiver, 1)
        code, stderr = ended(process)
    assert code == 0
    assert slow_api.requests.total() == 50
    assert (
        "polling.max_requests_per_pass is reached; the other runs stay due"
        f" requests=50 runs={RUNS - 50}"
    ) in stderr


def test_a_terminal_shows_one_bar_for_all_workers(slow_api: FakeApi, archiver: Program) -> None:
    slowly = archiver.given(RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND="100")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "ingest", "--workers", "2"],
        cwd=slowly.folder,
        env=slowly.environment | {"TERM": "xterm", "COLUMNS": "80"},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = read_terminal(ours)
    assert process.returncode == 0
    counts = re.findall(r"(\d+)/(\d+|\?)", shown)
    assert {total for _, total in counts} <= {str(RUNS), "?"}
    done = [int(number) for number, _ in counts]
    assert (done, done[-1]) == (sorted(done), RUNS)


def read_terminal(descriptor: int) -> str:
    """Return all that is written to a terminal until it is closed."""
    shown = b""
    with os.fdopen(descriptor, "rb", buffering=0) as terminal, suppress(OSError):
        while part := terminal.read(4096):
            shown += part
    return shown.decode()


# --- joining by hand ---


def join(archiver: Program, pass_id: int) -> tuple[int, str]:
    done = archiver.run("work", "--pass", str(pass_id))
    return done.exit_code, done.stderr


def test_a_worker_joins_a_pass_by_hand_and_is_waited_for(
    slow_api: FakeApi, archiver: Program
) -> None:
    slowly = archiver.given(RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND="20")
    with slowly.started("ingest", "--json") as process:
        await_requests(slow_api, 10)
        code, stderr = join(archiver, 1)
        stdout, _ = process.communicate(timeout=60)
    assert (code, process.returncode) == (0, 0)
    assert " new, 0 changed" in stderr
    assert f'"new": {RUNS}' in stdout
    check(archiver, slow_api)


def freeze_between_transactions(process: subprocess.Popen[str], archiver: Program) -> None:
    """Stop a process between its transactions: with SQLite's lock it would stop all others."""
    engine = database.connect(archiver.environment["RESULT_ARCHIVER__DATABASE__URL"])
    process.send_signal(signal.SIGSTOP)
    while is_locked(engine, process):
        time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)
    engine.dispose()


def is_locked(engine: Engine, process: subprocess.Popen[str]) -> bool:
    """Tell whether the frozen process keeps others from writing; if so, let it go on."""
    with ThreadPoolExecutor(1) as probes:
        probe = probes.submit(begin_to_write, engine)
        has_waited = bool(wait([probe], timeout=2).not_done)
        if has_waited:
            process.send_signal(signal.SIGCONT)
    return has_waited


def begin_to_write(engine: Engine) -> None:
    with database.writing(engine):
        pass  # it has the lock of an SQLite file


def test_workers_wait_for_one_that_has_joined_them(slow_api: FakeApi, archiver: Program) -> None:
    slowly = archiver.given(RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND="20")
    with (
        slowly.started("ingest", "--workers", "2", "--json") as process,
        joined(slowly, slow_api) as joiner,
    ):
        await_requests(slow_api, RUNS - 20)
        freeze_between_transactions(joiner, archiver)
        while children_of(process):
            time.sleep(0.01)
        joiner.send_signal(signal.SIGCONT)
        stdout, _ = process.communicate(timeout=60)
    assert (process.returncode, json.loads(stdout)["new"]) == (0, RUNS)


def test_the_runs_of_one_that_has_joined_and_died_are_free_again(
    slow_api: FakeApi, archiver: Program
) -> None:
    slowly = archiver.given(RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND="20")
    with (
        slowly.started("ingest", "--json") as process,
        joined(slowly, slow_api) as joiner,
    ):
        await_requests(slow_api, RUNS // 2)
        joiner.kill()
        code, stderr = ended(process)
    assert code == 1
    assert "runs of workers that died stay due" in stderr
    assert archiver.call("ingest").exit_code == 0
    check(archiver, slow_api)


@contextmanager
def joined(archiver: Program, api: FakeApi) -> Iterator[subprocess.Popen[str]]:
    """Start a worker that joins the first pass once it sends requests."""
    await_requests(api, 10)
    with archiver.started("work", "--pass", "1") as process:
        yield process


def test_in_a_pass_that_has_ended_there_is_nothing_to_do(
    slow_api: FakeApi, archiver: Program
) -> None:
    archiver.call("ingest")
    code, stderr = join(archiver, 1)
    assert (code, "pass 1 has ended" in stderr) == (0, True)
    assert join(archiver, 2) == (
        2,
        "error: pass 2 does not exist; `result-archiver passes` lists the passes\n",
    )
    assert slow_api.requests.total() == RUNS


def test_a_host_with_another_token_key_is_refused(slow_api: FakeApi, archiver: Program) -> None:
    slow_api.answers["r-1"] = [result(status="pending")]
    listed = archiver.write("token.csv", "run_id,read_token\nr-1,secret-token-of-r-1\n")
    assert archiver.call("track", "--from", listed).exit_code == 0
    other = archiver.write("other.key", f"{Fernet.generate_key().decode()}\n")
    other.chmod(0o600)
    stranger = archiver.given(RESULT_ARCHIVER__SECURITY__TOKEN_KEY_FILE=str(other))
    slowly = archiver.given(RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND="20")
    with slowly.started("ingest", "--json") as process:
        await_requests(slow_api, 10)
        joined = join(stranger, 1)
        assert ended(process)[0] == 0
    refusal = (
        f"error: security.token_key_file: {other} does not have the key of this archive's read"
        " tokens; copy the file of the host that tracks the runs; if it is lost, track them again\n"
    )
    assert joined == (2, refusal)
    alone = stranger.run("ingest")
    assert (alone.exit_code, alone.stderr) == (2, refusal)
    [only] = archiver.call("passes", "--json").json()
    assert only["requests"] == RUNS


def test_a_key_that_no_run_needs_any_more_stops_no_pass(api: FakeApi, archiver: Program) -> None:
    api.other = result()
    listed = archiver.write("token.csv", "run_id,read_token\nr-1,secret-token-of-r-1\n")
    assert archiver.call("ingest", "--from", listed).exit_code == 0
    [key_file] = (archiver.folder / "home").rglob("token.key")
    key_file.unlink()
    assert archiver.call("ingest", "r-new").exit_code == 0
