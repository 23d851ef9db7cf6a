"""The service for long: it loses nothing, and holds no more files, threads and memory than before.

The default suite does 60 passes over an API that breaks connections. `make soak` does 1,000, and
ten minutes with new runs all the time, in which the API and the database are away once;
SOAK_MINUTES makes that shorter or longer.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from itertools import cycle
from pathlib import Path

import pytest
from msgspec import json
from msgspec.structs import replace
from sqlalchemy import Engine, select

from etl import clock
from etl.answers.compression import decompress
from etl.db import database
from etl.db.schema import ingests, payloads, runs, tracked_runs
from etl.sandbox.api import READ_KEY
from etl.sandbox.server import Sandbox, running
from etl.sandbox.world import World
from etl.sandbox.world_clock import Clock
from tests.support import fake_api, faulty
from tests.support.fake_api import FakeApi
from tests.support.many_passes import Count, Order
from tests.support.postgres import Server, find_programs, run
from tests.support.program import program

MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
OUTAGE_S = 8
SETTINGS = {
    "RESULT_ARCHIVER__SCHEDULE__EVERY": "3s",
    "RESULT_ARCHIVER__POLLING__RUNNING_EVERY": "2s",
    "RESULT_ARCHIVER__POLLING__GROWTH": "0",
    "RESULT_ARCHIVER__POLLING__WATCH_EVERY": "3s",
    "RESULT_ARCHIVER__POLLING__SETTLE_AFTER": "4s",
    "RESULT_ARCHIVER__POLLING__WATCH_FOR": "1h",
    "RESULT_ARCHIVER__POLLING__RETRY_EVERY": "1s",
    "RESULT_ARCHIVER__POLLING__RETRY_AT_MOST_EVERY": "4s",
    "RESULT_ARCHIVER__POLLING__LEASE_FOR": "5s",
}

SETTLED = 20
"""After this number of passes a service has opened all that it keeps."""
A_HANDFUL = 5
GROWTH_KIB = 3 * 1024


@pytest.mark.soak
@pytest.mark.timeout(MINUTES * 60 + 300)
def test_the_service_loses_nothing_and_does_not_grow(
    postgresql: Server, postgresql_url: str, tmp_path: Path
) -> None:
    world = World(end=clock.now(), runs=40)
    its_clock = Clock(world.end, speed=120)
    port = _free_port()
    listed = tmp_path / "runs.txt"
    listed.touch()
    archiver = program(tmp_path, postgresql_url, f"http://127.0.0.1:{port}").given(
        **SETTINGS, RESULT_ARCHIVER__RUNS__SOURCES=str(listed)
    )
    memory_kib: list[int] = []
    with archiver.started("schedule") as service:
        for second, sandbox in _seconds(world, its_clock, port, postgresql):
            if sandbox and second % 2 == 0 and second < MINUTES * 60 - 60:
                _execute(sandbox, listed)
            memory_kib.append(_resident_kib(service))
        its_clock.set(speed=0)
        with running(world, its_clock, port=port) as sandbox:
            _wait_until_all_is_seen(postgresql_url, clock.now())
            service.terminate()
            _, log = service.communicate(timeout=15)
        assert service.returncode == 0, log[-2000:]
    assert "Traceback" not in log
    listed_ids = listed.read_text().split()
    assert len(listed_ids) > MINUTES * 5
    assert _kept(postgresql_url) == {
        run_id: world.answer(run_id, its_clock.now()) for run_id in listed_ids
    }
    assert _exit_codes(postgresql_url) >= {0, 5}
    after_a_third = memory_kib[len(memory_kib) // 3]
    assert memory_kib[-1] < 1.1 * after_a_third


@pytest.mark.parametrize("way", ["threads", "child"])
@pytest.mark.parametrize(
    "passes",
    [
        pytest.param(60, marks=pytest.mark.timeout(300)),
        pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
def test_a_pass_leaves_no_file_thread_or_memory_behind(
    sqlite_url: str, tmp_path: Path, way: str, passes: int
) -> None:
    with faulty.serving() as api:
        api.answer = _breaking_answers()
        counts, errors = _pass(Order(passes, way, api.url, sqlite_url, str(tmp_path), 256))
    assert errors == ""
    assert len(counts) == passes
    early, late = counts[SETTLED - 1], counts[-1]
    assert abs(late.files - early.files) <= A_HANDFUL, (early, late)
    assert abs(late.threads - early.threads) <= A_HANDFUL, (early, late)
    assert late.memory_kib - early.memory_kib < GROWTH_KIB, (early, late)
    assert len(api.requests) > passes * 40


@pytest.mark.parametrize("way", ["threads", "child"])
@pytest.mark.parametrize("max_files", [9, 10, 12, 20])
def test_too_many_open_files_are_called_by_their_name_and_cost_no_run(
    database_url: str, tmp_path: Path, api: FakeApi, way: str, max_files: int
) -> None:
    """The limit is named, whoever meets it: a connection, the database, the child process."""
    api.other = fake_api.result()._replace(delay_s=0.05)
    order = Order(3, way, api.url, database_url, str(tmp_path), max_files, 64, 10, "warning")
    with _archive(database_url) as engine:
        database.prepare(engine)
    _counts, errors = _pass(order)
    assert "no more files can be opened (too many open files); raise the limit (`ulimit" in errors
    assert "API is down" not in errors
    assert "please report it" not in errors
    _pass(replace(order, max_files=256, passes=1))
    with _archive(database_url) as engine, database.reading(engine) as connection:
        states = connection.execute(select(tracked_runs.c.state, tracked_runs.c.attempts)).all()
        assert 5 not in set(connection.scalars(select(ingests.c.exit_code)))
    assert states == [("settled", 0)] * 40


def _pass(order: Order) -> tuple[list[Count], str]:
    """Do passes over 40 runs by a process of their own; return its counts and its stderr."""
    Path(order.folder, "key").write_text("a key")
    Path(order.folder, "runs.txt").write_text("".join(f"r{number}\n" for number in range(40)))
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.many_passes", json.encode(order)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    return [
        json.decode(line, type=Count) for line in done.stdout.splitlines()
    ], done.stderr.decode()


def _breaking_answers() -> faulty.Answer:
    """Give results, but reset, cut off, refuse or leave hanging each tenth request or so."""
    going = fake_api.result(status="pending").body
    whole = faulty.send(faulty.reply(going))
    cut_off = faulty.send_and_close(faulty.reply(going)[:-100])
    failing = faulty.send(faulty.reply(b"", "500 Internal Server Error"))
    turns = cycle(
        [whole] * 9 + [faulty.reset] + [whole] * 9 + [cut_off] + [whole] * 9 + [failing]
        + [whole] * 29 + [faulty.stall(b"")] + [whole] * 9 + [faulty.stall(faulty.head("200 OK"))]
    )  # fmt: skip
    taking = threading.Lock()

    def answer(connection: socket.socket) -> None:
        with taking:
            turn = next(turns)
        turn(connection)

    return answer


def _seconds(
    world: World, its_clock: Clock, port: int, server: Server
) -> Iterator[tuple[int, Sandbox | None]]:
    """Let time pass; the API is away for a while at a third of it, the database at two thirds."""
    total = int(MINUTES * 60)
    with running(world, its_clock, port=port) as sandbox:
        yield from _ticks(range(total // 3), sandbox)
    yield from _ticks(range(total // 3, total // 3 + OUTAGE_S), None)
    with running(world, its_clock, port=port) as sandbox:
        yield from _ticks(range(total // 3 + OUTAGE_S, 2 * total // 3), sandbox)
        _pg_ctl(server, "stop", "--mode", "fast")
        yield from _ticks(range(2 * total // 3, 2 * total // 3 + OUTAGE_S), sandbox)
        _pg_ctl(server, "start", "--log", server.directory / "log")
        yield from _ticks(range(2 * total // 3 + OUTAGE_S, total), sandbox)


def _ticks(seconds: range, sandbox: Sandbox | None) -> Iterator[tuple[int, Sandbox | None]]:
    for second in seconds:
        time.sleep(1)
        yield second, sandbox


def _pg_ctl(server: Server, *arguments: str | Path) -> None:
    run(find_programs() / "pg_ctl", "--wait", *arguments, directory=server.directory)


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _execute(sandbox: Sandbox, listed: Path) -> None:
    """Start a run, and add its ID to the list that the service watches."""
    plan_id = sorted(sandbox.world.plans)[len(listed.read_text()) % len(sandbox.world.plans)]
    request = urllib.request.Request(
        f"{sandbox.url}/api/plan/{plan_id}/execute?apiKey={READ_KEY}", method="POST"
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        run_id = json.decode(response.read())["result"]["id"]
    with listed.open("a") as file:
        file.write(f"{run_id}\n")


def _resident_kib(process: subprocess.Popen[str]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found, "the service is gone"
    return int(found[1])


def _wait_until_all_is_seen(url: str, since: datetime, patience_s: float = 120) -> None:
    """Wait until each run is settled, or was asked for again `since` the world stands still."""
    unseen = select(tracked_runs.c.run_id).where(
        tracked_runs.c.state != "settled",
        (tracked_runs.c.state != "watching") | (tracked_runs.c.last_fetched_at < since),
    )
    deadline = time.monotonic() + patience_s
    while True:
        with _archive(url) as engine, database.reading(engine) as connection:
            left = connection.scalars(unseen).all()
        if not left:
            return
        assert time.monotonic() < deadline, left
        time.sleep(1)


@contextlib.contextmanager
def _archive(url: str) -> Iterator[Engine]:
    engine = database.connect(url)
    try:
        yield engine
    finally:
        engine.dispose()


def _kept(url: str) -> dict[str, bytes]:
    newest = (
        select(payloads.c.run_id, payloads.c.body, payloads.c.encoding)
        .join(runs, runs.c.run_id == payloads.c.run_id)
        .where(payloads.c.revision == runs.c.revision)
    )
    with _archive(url) as engine, database.reading(engine) as connection:
        return {
            row.run_id: decompress(row.body, row.encoding) for row in connection.execute(newest)
        }


def _exit_codes(url: str) -> set[int]:
    with _archive(url) as engine, database.reading(engine) as connection:
        return {
            code for code in connection.scalars(select(ingests.c.exit_code)) if code is not None
        }
