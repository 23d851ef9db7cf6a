"""An API that fails in every way it can: each run ends as it should, and nobody was annoyed.

The default suite sends some hundred requests on each database, `make chaos` 10,000. The faults
come from a seed: each run of the test sees the same.
"""

import gzip
import json
import random
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from sqlalchemy import Connection, func, select

from bench.process import measure
from etl.answers.compression import decompress
from etl.db import database
from etl.db.schema import payloads, rejects, tracked_runs
from tests.support import fake_api, faulty
from tests.support.faulty import END_OF_HEAD, chunk, head, reply
from tests.support.postgres import Server
from tests.support.program import COMMAND, Program, program

CONNECTIONS = 6
RATE = 40.0
IN_HAND_S = 0.5
"""So long after a Retry-After was sent, requests may come that were under way by then."""
LONGEST_LATENCY_S = 0.04

# The pauses after failures are half a second and more: here the API fails all the time.
IN_HASTE = """
import sys
from etl.cli import command_line
from etl.cli.session import Wiring
from etl.fetch.rate_limit import Pauses
sys.exit(command_line.main(wiring=Wiring(pauses=Pauses(0.002, 0.02))))
"""


SHORT = 300
FULL = 10_000
SCALES = [
    pytest.param(SHORT, id="short"),
    pytest.param(FULL, id="full", marks=[pytest.mark.chaos, pytest.mark.timeout(1800)]),
]
WINDOW_S = 5.0
"""What a rate is taken over: within a second, a busy machine's delays are more than 5 % of it."""
MOST_PASSES = 200


# --- what can come of a request ---


class Ending(NamedTuple):
    """Where an answer leaves its run: in which state, with what kept of it."""

    state: str
    keeps: str | None = None


ARCHIVED = Ending("settled", "payload")
REJECTED = Ending("failed", "reject")
REFUSED = Ending("failed")

Respond = Callable[[socket.socket, bytes], float | None]
"""Answers a request for the run with that body; returns how long it asked to wait, in seconds."""


class Act(NamedTuple):
    """One thing that the API may do; `ending` is None for what passes."""

    name: str
    respond: Respond
    ending: Ending | None
    body: bytes | None = None
    """What is kept, where that is not the run's own body."""


def said(*parts: str, body: bytes | None = None, wait_s: float | None = None) -> Respond:
    """Answer with a status line and headers, with the run's body if no other is given."""

    def respond(connection: socket.socket, own: bytes) -> float | None:
        connection.sendall(reply(own if body is None else body, *parts))
        return wait_s

    return respond


def done(answer: faulty.Answer) -> Respond:
    """Answer without regard to the run."""

    def respond(connection: socket.socket, _own: bytes) -> None:
        answer(connection)

    return respond


def busy_until(connection: socket.socket, _own: bytes) -> float:
    """Ask for patience until a time, which HTTP tells in whole seconds."""
    moment = int(time.time()) + 2
    date = formatdate(moment, usegmt=True)
    wait_s = moment - time.time()
    connection.sendall(reply(b"", "429 Too Many Requests", f"Retry-After: {date}"))
    return wait_s


def cut_off(connection: socket.socket, own: bytes) -> None:
    """Promise the whole body, and close in the middle of it."""
    faulty.send_and_close(reply(own)[: -len(own) // 2])(connection)


def reset_in_mid_body(connection: socket.socket, own: bytes) -> None:
    connection.sendall(reply(own)[: -len(own) // 2])
    time.sleep(0.01)
    faulty.reset(connection)


def gone_before_the_head(connection: socket.socket, _own: bytes) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def endless(start: bytes, piece: bytes) -> faulty.Answer:
    """Send pieces for as long as they are taken."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(piece)

    return answer


def chunked(connection: socket.socket, own: bytes) -> None:
    pieces = [chunk(own[start : start + 100]) for start in range(0, len(own), 100)]
    connection.sendall(
        b"".join([head("200 OK", "Transfer-Encoding: chunked"), *pieces, chunk(b"")])
    )


def zipped(connection: socket.socket, own: bytes) -> None:
    connection.sendall(reply(gzip.compress(own), "200 OK", "Content-Encoding: gzip"))


def without_length(connection: socket.socket, own: bytes) -> None:
    faulty.send_and_close(head("200 OK") + own)(connection)


LOGIN = b"<!DOCTYPE html><title>Sign in</title><form action=/login method=post></form>"
BOMB = gzip.compress(bytes(3 * 1_048_576))
GOOD = Act("good", said("200 OK"), ARCHIVED)
STILL_GOING = fake_api.result(status="pending").body
GOING = Act("going", said("200 OK", body=STILL_GOING), Ending("running", "payload"), STILL_GOING)
ODD_BUT_GOOD = (
    Act("wrong content type", said("200 OK", "Content-Type: text/html"), ARCHIVED),
    Act("chunked", chunked, ARCHIVED),
    Act("gzip", zipped, ARCHIVED),
    Act("without a length", without_length, ARCHIVED),
)
PASSING = (
    Act("429 seconds", said("429 Slow", "Retry-After: 1", body=b"", wait_s=1), None),
    Act("429 date", busy_until, None),
    Act("429", said("429 Slow", body=b""), None),
    Act("429 unreadable", said("429 Slow", "Retry-After: soon", body=b""), None),
    Act("408", said("408 Request Timeout", body=b""), None),
    Act("500", said("500 Oops", body=LOGIN), None),
    Act("502", said("502 Bad Gateway", body=LOGIN), None),
    Act("503", said("503 Unavailable", "Retry-After: 1", body=b"", wait_s=1), None),
    Act("504", said("504 Gateway Timeout", body=b""), None),
    Act("redirect", said("302 Found", "Location: /login", body=b""), None),
    Act("reset", done(faulty.reset), None),
    Act("closed before the head", gone_before_the_head, None),
    Act("cut off", cut_off, None),
    Act("reset in mid body", reset_in_mid_body, None),
    Act("slow drip", done(faulty.drip(head("200 OK"), b" ", 0.05)), None),
    Act("slow head", done(faulty.drip(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05)), None),
    Act("silence", done(faulty.stall(b"")), None),
    Act("no HTTP", done(faulty.send_and_close(b"220 mail.example.com ESMTP" + END_OF_HEAD)), None),
    Act("gzip garbage", said("200 OK", "Content-Encoding: gzip", body=b"\x1f\x8b" + LOGIN), None),
)
LASTING = (
    Act("400", said("400 Bad Request", body=b"{}"), REFUSED),
    Act("403", said("403 Forbidden", body=b"{}"), REFUSED),
    Act("404", said("404 Not Found", body=b"{}"), REFUSED),
    Act("410", said("410 Gone", body=LOGIN), REFUSED),
    Act("endless body", done(endless(head("200 OK"), bytes(65_536))), REFUSED),
    Act("bomb", said("200 OK", "Content-Encoding: gzip", body=BOMB), REFUSED),
    Act("login page", said("200 OK", body=LOGIN), REJECTED, LOGIN),
    Act("empty", said("200 OK", body=b""), REJECTED, b""),
    Act("broken JSON", said("200 OK", body=b'{"result": {'), REJECTED, b'{"result": {'),
    Act("no result", said("200 OK", body=b'{"error": 1}'), REJECTED, b'{"error": 1}'),
)
FAULTS = (*PASSING, *LASTING)
WAITS = {"429 seconds", "429 date", "503"}
SLOW = {"slow drip", "slow head", "silence"}


# --- the script: what each run will see ---

Script = Sequence[Act]


def make_scripts(requests: int) -> dict[str, Script]:
    """Make scripts that take about `requests` requests: each fault occurs, most runs are well.

    What passes comes at most three times in a row, so that no run uses up its attempts, but for
    the one that never gets anything else.
    """
    dice = random.Random(2026)
    scripts: dict[str, Script] = {"a": [GOING]}
    scripts |= {f"z-{act.name}": [act] for act in (*ODD_BUT_GOOD, *LASTING)}
    scripts |= {f"z-{act.name}": [act, GOOD] for act in PASSING}
    scripts["z-never well"] = [act for act in PASSING if act.name == "500"]
    while sum(map(len, scripts.values())) < requests:
        scripts[f"{dice.randrange(10**9):09}/{len(scripts)}"] = _script(dice)
    return scripts


def _script(dice: random.Random) -> Script:
    last = dice.choices([GOOD, dice.choice(ODD_BUT_GOOD), dice.choice(LASTING)], [80, 15, 5])[0]
    # Each wait stops all for a second or two, and each slow answer costs half a one.
    weights = [0.2 if act.name in WAITS | SLOW else 1.0 for act in PASSING]
    count = dice.choices([0, 1, 2, 3], [88, 8, 2, 2])[0]
    return [*dice.choices(PASSING, weights, k=count), last]


# --- the server, and what it sees ---


class Asked(NamedTuple):
    """That the API asked everybody to wait: when it said so, and until when."""

    at: float
    until: float


class Storm(socketserver.ThreadingTCPServer):
    """Gives each run its script, the last act for good. Times are of `time.monotonic`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, scripts: Mapping[str, Script]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.arrivals: list[float] = []
        self.asked: list[Asked] = []
        self.acts: Counter[str] = Counter()
        self.most_connections = 0
        self._left = {run_id: list(script) for run_id, script in scripts.items()}
        self._dice = random.Random(1)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    @contextmanager
    def connected(self, connection: socket.socket) -> Iterator[None]:
        """Count a connection; those that the client has closed are none any more."""
        with self._lock:
            self._open.add(connection)
            standing = sum(map(_stands, self._open))
            self.most_connections = max(self.most_connections, standing)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(connection)

    def respond(self, connection: socket.socket, run_id: str) -> None:
        """Note a request, and do the run's next act."""
        with self._lock:
            self.arrivals.append(time.monotonic())
            left = self._left[run_id]
            act = left.pop(0) if len(left) > 1 else left[0]
            self.acts[act.name] += 1
            latency_s = self._dice.uniform(0, LONGEST_LATENCY_S)
        time.sleep(latency_s)
        at = time.monotonic()
        wait_s = act.respond(connection, body_of(run_id))
        if wait_s is not None:
            self.asked.append(Asked(time.monotonic(), at + wait_s))


def _stands(connection: socket.socket) -> bool:
    """Ask the kernel (tcp(7), TCP_INFO) whether both ends hold the connection."""
    established = 1
    with suppress(OSError):
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == established
    return False


class _Handler(socketserver.StreamRequestHandler):
    server: Storm
    timeout = 10
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with self.server.connected(self.connection), suppress(OSError):
            while line := self.rfile.readline():
                while self.rfile.readline() not in {b"\r\n", b""}:
                    pass
                path = urlsplit(line.split()[1].decode()).path
                self.server.respond(self.connection, unquote(path.removeprefix("/api/result/")))


@contextmanager
def raging(scripts: Mapping[str, Script]) -> Iterator[Storm]:
    with Storm(scripts) as storm:
        thread = threading.Thread(target=storm.serve_forever, args=[0.01])
        thread.start()
        try:
            yield storm
        finally:
            storm.shutdown()
            thread.join()


def body_of(run_id: str) -> bytes:
    return fake_api.result(name=run_id).body


# --- one storm, and all that has to hold after it ---


class Weathered(NamedTuple):
    """What was left of a storm."""

    requests: int
    storm: Storm
    scripts: Mapping[str, Script]
    database_url: str
    exit_codes: list[int]

    def tell(self) -> None:
        """Say what happened, for `make chaos` to show."""
        acts, arrivals = self.storm.acts, self.storm.arrivals
        faults = sum(acts[act.name] for act in FAULTS)
        sys.stdout.write(
            f"\n{len(self.scripts)} runs, {len(arrivals)} requests in"
            f" {arrivals[-1] - arrivals[0]:.0f} s and {len(self.exit_codes)} passes:"
            f" {faults} answers of {len(FAULTS)} faults, {len(self.storm.asked)} Retry-After;"
            f" at most {max(_rates(arrivals)):.1f} requests a second of {RATE:.0f}\n"
        )


@pytest.fixture(scope="module", params=SCALES)
def all_weathered(
    request: pytest.FixtureRequest,
    postgresql: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Mapping[str, Weathered]]:
    """A storm on each kind of database, weathered to its end: both at once, as they mostly wait."""
    folders = [tmp_path_factory.mktemp("storm") for _ in range(2)]
    with postgresql.database() as postgresql_url, ThreadPoolExecutor() as executor:
        urls = [f"sqlite:///{folders[0]}/archive.db", postgresql_url]
        weathered = list(executor.map(_weather, folders, urls, [request.param] * 2))
        for each in weathered:
            each.tell()
        yield dict(zip(["sqlite", "postgresql"], weathered, strict=True))


@pytest.fixture(params=["sqlite", "postgresql"])
def weathered(request: pytest.FixtureRequest, all_weathered: Mapping[str, Weathered]) -> Weathered:
    return all_weathered[request.param]


def _weather(folder: Path, database_url: str, requests: int) -> Weathered:
    scripts = make_scripts(requests)
    with raging(scripts) as storm:
        archiver = _archiver(folder, database_url, storm.url)
        archiver.write("runs.json", json.dumps(list(scripts)))
        weathered = Weathered(requests, storm, scripts, database_url, [])
        weathered.exit_codes.append(_ingest(archiver, "--from", "runs.json"))
        while _has_unfinished(weathered) and len(weathered.exit_codes) < MOST_PASSES:
            weathered.exit_codes.append(_ingest(archiver))
    return weathered


def _has_unfinished(weathered: Weathered) -> bool:
    """Tell whether runs have to be tried again: a pass may end early, as the API looks down."""
    unfinished = tracked_runs.c.state.in_(["queued", "retrying"])
    with _reading(weathered) as connection:
        return bool(connection.scalar(select(func.count()).where(unfinished)))


def _archiver(folder: Path, database_url: str, api_url: str) -> Program:
    return program(folder, database_url, api_url).given(
        RESULT_ARCHIVER__API__CONNECTIONS=str(CONNECTIONS),
        RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND=str(RATE),
        RESULT_ARCHIVER__API__READ_TIMEOUT_S="0.4",
        RESULT_ARCHIVER__API__TOTAL_TIMEOUT_S="0.6",
        RESULT_ARCHIVER__API__MAX_BODY_MB="1",
        RESULT_ARCHIVER__POLLING__RETRY_EVERY="50ms",
        RESULT_ARCHIVER__POLLING__RUNNING_EVERY="50ms",
        RESULT_ARCHIVER__POLLING__GROWTH="0",
        RESULT_ARCHIVER__POLLING__MAX_ATTEMPTS="2",
    )


def _ingest(archiver: Program, *arguments: str) -> int:
    return subprocess.run(
        [sys.executable, "-c", IN_HASTE, "ingest", *arguments],
        cwd=archiver.folder,
        env=archiver.environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    ).returncode


def test_each_fault_occurred(weathered: Weathered) -> None:
    assert {act.name for act in FAULTS} <= weathered.storm.acts.keys()
    assert len(weathered.storm.arrivals) >= weathered.requests


def test_each_pass_ends_with_what_it_met(weathered: Weathered) -> None:
    assert weathered.exit_codes[0] in {1, 5}
    assert set(weathered.exit_codes) <= {0, 1, 5}


def test_each_run_ends_in_the_state_of_its_script(weathered: Weathered) -> None:
    with _reading(weathered) as connection:
        query = select(tracked_runs.c.run_id, tracked_runs.c.state)
        states = dict(connection.execute(query).all())
    assert states == {
        run_id: (script[-1].ending or REFUSED).state for run_id, script in weathered.scripts.items()
    }


def test_the_archive_has_all_that_could_be_had(weathered: Weathered) -> None:
    with _reading(weathered) as connection:
        query = select(payloads.c.run_id, payloads.c.body, payloads.c.encoding)
        kept = {row.run_id: decompress(row.body, row.encoding) for row in connection.execute(query)}
        rejected = dict(connection.execute(select(rejects.c.run_id, rejects.c.body)).all())
    assert kept == _last_bodies(weathered, "payload")
    assert rejected == _last_bodies(weathered, "reject")


def _last_bodies(weathered: Weathered, kept: str) -> dict[str, bytes]:
    """Return the last body of each run of which the archive should have a `payload` or `reject`."""
    return {
        run_id: body_of(run_id) if script[-1].body is None else script[-1].body
        for run_id, script in weathered.scripts.items()
        if (script[-1].ending or REFUSED).keeps == kept
    }


def test_no_run_stays_leased(weathered: Weathered) -> None:
    with _reading(weathered) as connection:
        query = select(tracked_runs.c.run_id).where(tracked_runs.c.lease_owner.is_not(None))
        assert connection.scalars(query).all() == []


def test_the_rate_is_kept_at_any_time(weathered: Weathered) -> None:
    assert 0.5 * RATE < max(_rates(weathered.storm.arrivals)) <= 1.05 * RATE


def _rates(arrivals: Sequence[float]) -> Iterator[float]:
    """Yield the requests a second of each window that ends with a request."""
    first = 0
    for count, arrived_at in enumerate(arrivals):
        while arrivals[first] <= arrived_at - WINDOW_S:
            first += 1
        yield (count + 1 - first) / WINDOW_S


def test_no_more_connections_than_allowed(weathered: Weathered) -> None:
    assert 1 < weathered.storm.most_connections <= CONNECTIONS


def test_each_retry_after_is_respected_by_all(weathered: Weathered) -> None:
    asked = weathered.storm.asked
    assert len(asked) >= len(WAITS)
    for at, until in asked:
        since = [
            arrived_at - at for arrived_at in weathered.storm.arrivals if at < arrived_at < until
        ]
        assert len(since) < CONNECTIONS
        assert max(since, default=0) < IN_HAND_S


@contextmanager
def _reading(weathered: Weathered) -> Iterator[Connection]:
    engine = database.connect(weathered.database_url)
    with database.reading(engine) as connection:
        yield connection
    engine.dispose()


# --- large answers ---

LARGE_RUNS = 150
LARGE_BYTES = 1_000_000
MOST_MEMORY_MIB = 220
"""Some 80 are the program itself; all bodies at once would be 150 more than the usual 160."""


def large() -> bytes:
    """An answer of a megabyte, a fifth of it names; the rest costs no time in the database."""
    dice = random.Random(1)
    tests = [{"name": dice.randbytes(LARGE_BYTES // 2000).hex()} for _ in range(200)]
    return b" " * (LARGE_BYTES * 4 // 5) + fake_api.result(tests=tests).body


def test_memory_does_not_grow_with_the_answers(tmp_path: Path, sqlite_url: str) -> None:
    with fake_api.serving() as api:
        api.other = fake_api.Answer(large())
        archiver = program(tmp_path, sqlite_url, api.url)
        archiver.write("runs.json", json.dumps([f"r-{each}" for each in range(LARGE_RUNS)]))
        command = [*COMMAND, "ingest", "--from", "runs.json"]
        sample = measure(command, archiver.environment, archiver.folder)
    assert api.requests.total() == LARGE_RUNS
    assert sample.peak_mib < MOST_MEMORY_MIB
